"""`./dev quickstart`: from nothing to a running, load-balanced service, told step by step.

Builds the default lab (or completes the one that is there; one that cannot be revived is replaced), builds the example
image on one host, deploys it on all, calls it through the published port of several hosts, and says what to try next.
Everything goes through `swarmctl`, as a user would do it.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import typer
from swarm import process
from swarm.errors import DeadlineExceeded, FailedPrecondition, SwarmError

from orchestrator.lab import lab
from orchestrator.lab.layout import DEFAULT_LAB, LabLayout, load

EXAMPLE = Path(__file__).resolve().parents[2] / "compose-examples" / "web"
BUSYBOX = Path("/bin/busybox")
PUBLISHED_PORT = 8080
REPLICAS = 3
ANSWER_TIMEOUT = 30.0
_started = time.monotonic()


def say(line: str) -> None:
    stamp = f"[{time.monotonic() - _started:5.1f} s]"
    typer.echo(typer.style(stamp, bold=True) + " " + line)


def show(text: str) -> None:
    typer.echo(text.rstrip())


async def swarmctl(*arguments: str, check: bool = True, timeout: float = 180) -> process.Completed:
    """Runs our own `swarmctl`. Raises SwarmError with its sentence where it fails."""
    program = Path(sys.executable).parent / "swarmctl"
    done = await process.run([program, *arguments], check=False, timeout=timeout)
    if check and done.exit_code != 0:
        raise SwarmError(f"`swarmctl {' '.join(arguments)}` failed: {done.complaint.removeprefix('Error: ')}")
    return done


async def build_lab() -> LabLayout:
    """The default lab, running. One that does not come up again is replaced."""
    try:
        return await lab.up(DEFAULT_LAB, 3, 2, say)
    except (DeadlineExceeded, FailedPrecondition) as error:
        if load(DEFAULT_LAB) is None:
            raise
        say(f"The lab that was here does not come up ({error}); building it anew")
        await lab.down(DEFAULT_LAB, say)
        return await lab.up(DEFAULT_LAB, 3, 2, say)


async def build_image() -> None:
    if not BUSYBOX.exists():
        raise FailedPrecondition(f"{BUSYBOX} is missing; install the package busybox-static")
    with tempfile.TemporaryDirectory(prefix="swarm-quickstart-") as directory:
        context = Path(directory) / "web"
        shutil.copytree(EXAMPLE, context)
        shutil.copy(BUSYBOX, context / "busybox")
        await swarmctl("image", "build", "-t", "web", str(context))


async def deploy() -> None:
    """Creates the service, or updates the one of an earlier run."""
    exists = (await swarmctl("service", "inspect", "web", check=False)).exit_code == 0
    if exists:
        await swarmctl(
            "service", "update", "--image", "web", "--replicas", str(REPLICAS), "--update-parallelism", "0", "web"
        )
    else:
        await swarmctl(
            "service", "create", "--name", "web", "--replicas", str(REPLICAS),
            "--publish", f"{PUBLISHED_PORT}:80", "web",
        )  # fmt: skip


def _answer(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}:{PUBLISHED_PORT}/cgi-bin/whoami", timeout=3) as response:
        return str(response.read().decode().strip())


async def call(layout: LabLayout) -> list[tuple[str, str]]:
    """(host asked, answer) of as many different containers as there are replicas. Raises DeadlineExceeded."""
    answers: dict[str, tuple[str, str]] = {}
    trouble = ""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            while True:
                for host in layout.hosts:
                    try:
                        answer = await asyncio.to_thread(_answer, host.address)
                    except OSError as error:
                        trouble = f"; {host.address} said {error}"
                        continue
                    found = re.match(r"container (\S+)", answer)
                    if found:
                        answers.setdefault(found[1], (host.name, answer))
                    if len(answers) >= REPLICAS:
                        return sorted(answers.values())
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise DeadlineExceeded(
            f"only {len(answers)} of {REPLICAS} containers answered on port {PUBLISHED_PORT}"
            f" within {ANSWER_TIMEOUT:g} s{trouble}"
        ) from None


async def _places() -> dict[str, str]:
    """The beginning of a task's id, which is its container's host name → "web.1 on w2"."""
    shown = json.loads((await swarmctl("service", "ps", "web", "--format", "json")).text)
    return {task["id"][:12]: f"{task['names']['task']} on {task['names']['node']}" for task in shown}


async def main() -> None:
    layout = await build_lab()
    say("Building the image `web` and pushing it to the lab's registry")
    await build_image()
    say(f"Deploying {REPLICAS} replicas of `web`, published on port {PUBLISHED_PORT} of every host")
    await deploy()
    say("Calling it through the hosts' published port")
    answers = await call(layout)
    show("")
    for arguments in (("node", "ls"), ("service", "ls"), ("service", "ps", "web")):
        show(f"$ swarmctl {' '.join(arguments)}")
        show((await swarmctl(*arguments)).text)
        show("")
    places = await _places()
    for host, answer in answers:
        show(f"asked {host}: {answer} ({places.get(answer.split()[1], 'just replaced')})")
    program = Path(sys.executable).parent / "swarmctl"
    on_path = shutil.which("swarmctl")
    name = "swarmctl" if on_path else str(program)
    show("\nThe lab keeps running. Try:")
    show(f"  {name} service scale web=6")
    show(f"  {name} service logs -f web")
    show(f"  {name} lab kill w1          # pull a host's plug and watch `{name} service ps web`")
    show(f"  curl http://{layout.hosts[0].address}:{PUBLISHED_PORT}/cgi-bin/whoami")
    show(f"  {name} lab down             # remove it all")
    if not on_path:
        offer_link(program)


def offer_link(program: Path) -> None:
    """Asks whether `swarmctl` shall be linked into the PATH; without a terminal only says how."""
    target = Path("/usr/local/bin/swarmctl")
    command = f"ln -s {program} {target}"
    if not sys.stdin.isatty():
        show(f"\nTo have `swarmctl` in your PATH: {command}")
        return
    if input(f"\nLink swarmctl into {target.parent}? [y/N] ").strip().lower() in ("y", "yes"):
        target.symlink_to(program)
        show(f"Linked {target}")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except SwarmError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
