"""`./dev quickstart`: from nothing to a running, load-balanced service, told step by step.

Builds the default lab (or completes the one that is there; remains that hold no swarm are replaced), builds the example
image on one host, deploys it on all, calls it through the published port of several hosts, and says what to try next.
Everything goes through `swarmctl`, as a user would do it. What a user has made meanwhile is left alone: a lab whose swarm
does not come up, a service of the same name that is another one, the number of its replicas.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from swarm import process
from swarm.errors import DeadlineExceeded, FailedPrecondition, NotFound, SwarmError, Unavailable
from swarm.labs import DEFAULT_LAB

from orchestrator.lab import lab
from orchestrator.lab.layout import LabLayout, load

EXAMPLE = Path(__file__).resolve().parents[2] / "compose-examples" / "web"
BUSYBOX = Path("/bin/busybox")
PROGRAM = Path(sys.executable).parent / "swarmctl"
PUBLISHED_PORT = 8080
REPLICAS = 3
ANSWER_TIMEOUT = 30.0
# Whatever else this shell is set to: all that follows is about the default lab.
TARGET = {"SWARM_LAB": DEFAULT_LAB, "SWARM_HOST": "", "SWARM_TLS": "", "SWARM_NODE": ""}
_started = time.monotonic()


def say(line: str) -> None:
    stamp = f"[{time.monotonic() - _started:5.1f} s]"
    show(typer.style(stamp, bold=True) + " " + line)


def show(text: str) -> None:
    try:
        typer.echo(text.rstrip())
    except BrokenPipeError:
        # Whoever read us has enough; a lab that is half made is of no use to anybody, so the rest is done unseen.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def swarmctl(*arguments: str, check: bool = True, timeout: float = 180) -> process.Completed:
    """Runs our own `swarmctl`. Raises SwarmError with its sentence where it fails."""
    done = await process.run([PROGRAM, *arguments], check=False, timeout=timeout, env=TARGET)
    if check and done.exit_code != 0:
        raise SwarmError(f"`swarmctl {' '.join(arguments)}` failed: {done.complaint.removeprefix('Error: ')}")
    return done


async def build_lab() -> LabLayout:
    """The default lab, running. Remains that hold no swarm are replaced; any others are for their owner to remove.

    Raises FailedPrecondition with the words to type.
    """
    lab.require_root()  # nobody else may even look at what a lab holds
    try:
        return await lab.up(DEFAULT_LAB, 3, 2, say)
    except (DeadlineExceeded, FailedPrecondition, Unavailable) as error:
        layout = load(DEFAULT_LAB)
        if layout is None:
            raise
        holders = lab.holders(layout)
        if holders:
            raise FailedPrecondition(
                f"the lab that is here does not come up: {error}. The state of its swarm is on {', '.join(holders)} and stays"
                " there; mend it, or remove the lab with all that it holds (`swarmctl lab down`) and repeat `./dev quickstart`"
            ) from error
        say(f"The lab that was here does not come up and holds no swarm any more ({error}); building it anew")
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
    """Creates the service. One of an earlier run keeps what was changed of it, as far as REPLICAS nodes can answer."""
    found = await swarmctl("service", "inspect", "web", check=False)
    if found.exit_code == NotFound.exit_code:
        say(f"Deploying {REPLICAS} replicas of `web`, published on port {PUBLISHED_PORT} of every host")
        await swarmctl(
            "service", "create", "--name", "web", "--replicas", str(REPLICAS),
            "--publish", f"{PUBLISHED_PORT}:80", "web",
        )  # fmt: skip
        return
    if found.exit_code != 0:
        raise SwarmError(found.complaint.removeprefix("Error: "))
    replicas = replicas_of(json.loads(found.text)[0]["service"])
    if replicas >= REPLICAS:
        say(f"The service `web` is there with {replicas} replicas, which it keeps")
        await swarmctl("service", "update", "--image", "web", "web")  # does nothing where the image is the same
    else:
        say(f"The service `web` is there with only {replicas} of {REPLICAS} replicas; scaling it to {REPLICAS}")
        replicas = REPLICAS
        await swarmctl("service", "update", "--image", "web", "--replicas", str(REPLICAS), "web")
    nodes = len({place.node for place in (await places()).values()})
    if nodes < REPLICAS:
        # what hosts that were away or other scales left: placed anew, they are spread
        say(f"Its replicas are on fewer than {REPLICAS} nodes ({nodes}); stopping them all and placing them anew")
        await swarmctl("service", "scale", "web=0")
        await swarmctl("service", "scale", f"web={replicas}")


def replicas_of(service: Mapping[str, Any]) -> int:
    """How many replicas the example service has; `service` is the object that `service inspect` shows.

    Raises FailedPrecondition where it is another one of that name: not ours to change.
    """
    spec = service["spec"]
    image = spec["task"]["container"]["image"]
    ports = {(port["published_port"], port["target_port"]) for port in spec["ports"]}
    if image != "web" or (PUBLISHED_PORT, 80) not in ports or "replicated" not in spec["mode"]:
        raise FailedPrecondition(
            f"the lab has a service `web` (image {image}) that is not the quickstart's, or no longer; if nobody needs it,"
            " remove it with `swarmctl service rm web` and repeat `./dev quickstart`"
        )
    return int(spec["mode"]["replicated"]["replicas"])


@dataclass(frozen=True)
class Place:
    """Where a container runs."""

    task: str
    node: str


@dataclass(frozen=True)
class Answer:
    """What a container said to a request that went to a host's published port."""

    asked: str
    text: str
    container: str
    place: Place


def placed(document: list[dict[str, Any]]) -> dict[str, Place]:
    """Container's host name, which is the beginning of its task's id → its place, from `service ps --format json`."""
    return {
        task["id"][:12]: Place(task["names"]["task"], task["names"]["node"])
        for task in document
        if task["status"]["state"] == "running" and task["desired_state"] == "running"
    }


async def places() -> dict[str, Place]:
    return placed(json.loads((await swarmctl("service", "ps", "web", "--format", "json")).text))


def _ask(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}:{PUBLISHED_PORT}/cgi-bin/whoami", timeout=3) as response:
        return str(response.read().decode().strip())


async def call(
    hosts: Mapping[str, str],
    ask: Callable[[str], str] = _ask,
    look: Callable[[], Awaitable[dict[str, Place]]] = places,
    *,
    timeout: float = ANSWER_TIMEOUT,
) -> list[Answer]:
    """Asks the hosts (name → address) in turn until containers on REPLICAS different nodes have answered; one answer of each.

    Answers that repeat, or come from a container that was replaced meanwhile, do not count. Raises DeadlineExceeded.
    """
    found: dict[str, Answer] = {}  # by node
    where, trouble = await look(), ""
    try:
        async with asyncio.timeout(timeout):
            while True:
                for name, address in hosts.items():
                    try:
                        text = await asyncio.to_thread(ask, address)
                    except OSError as error:
                        trouble = f"; {address} said {error}"
                        continue
                    said = re.match(r"container (\S+)", text)
                    if said and said[1] not in where:
                        where = await look()
                        found = {node: answer for node, answer in found.items() if answer.container in where}
                    if said and said[1] in where:
                        place = where[said[1]]
                        found.setdefault(place.node, Answer(name, text, said[1], place))
                    if len(found) >= REPLICAS:
                        return sorted(found.values(), key=lambda answer: answer.place.task)
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise DeadlineExceeded(
            f"only containers on {len(found)} of {REPLICAS} nodes answered on port {PUBLISHED_PORT} within {timeout:g} s"
            f"{trouble}; `swarmctl service ps web` and `swarmctl node ls` show where they run"
        ) from None


async def main() -> None:
    layout = await build_lab()
    say("Building the image `web` and pushing it to the lab's registry")
    await build_image()
    await deploy()
    say("Calling it through the hosts' published port")
    answers = await call({host.name: host.address for host in layout.hosts})
    show("")
    for arguments in (("node", "ls"), ("service", "ls"), ("service", "ps", "web")):
        show(f"$ swarmctl {' '.join(arguments)}")
        show((await swarmctl(*arguments)).text)
        show("")
    for answer in answers:
        show(f"asked {answer.asked}: {answer.text} ({answer.place.task} on {answer.place.node})")
    name = "swarmctl" if shutil.which("swarmctl") else str(PROGRAM)
    show("\nThe lab keeps running. Try:")
    show(f"  {name} service scale web=6")
    show(f"  {name} service logs -f web")
    show(f"  {name} lab kill w1          # pull a host's plug and watch `{name} service ps web`")
    show(f"  curl http://{layout.hosts[0].address}:{PUBLISHED_PORT}/cgi-bin/whoami")
    show(f"  {name} lab down             # remove it all")


def offer_link(program: Path, target: Path = Path("/usr/local/bin/swarmctl")) -> None:
    """Asks whether `swarmctl` shall be linked into the PATH; without a terminal only says how."""
    command = f"ln -sf {program} {target}"
    if not sys.stdin.isatty():
        show(f"\nTo have `swarmctl` in your PATH: {command}")
        return
    try:
        answer = input(f"\nLink swarmctl into {target.parent}? [y/N] ")
    except EOFError:
        show("")
        return
    if answer.strip().lower() in ("y", "yes"):
        if target.is_symlink() and not target.exists():
            target.unlink()  # into a checkout that is gone
        try:
            target.symlink_to(program)
        except OSError as error:
            raise FailedPrecondition(f"{target} cannot be made ({error.strerror}); try `{command}`") from error
        show(f"Linked {target}")


if __name__ == "__main__":
    try:
        asyncio.run(main())
        if not shutil.which("swarmctl"):
            offer_link(PROGRAM)  # outside of the event loop, which would take the first Ctrl-C for itself
    except SwarmError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
