"""A lab as a test sees it: `swarmctl` as a user runs it, requests to published ports, faults, and bounded waiting."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.lab import hosts, lab
from orchestrator.lab.layout import LabHost, LabLayout
from orchestrator.lab.quickstart import BUSYBOX, EXAMPLE

T = TypeVar("T")
SWARMCTL = Path(sys.executable).parent / "swarmctl"


class CommandFailed(AssertionError):
    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        super().__init__(f"{' '.join(map(str, done.args))}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        self.done = done


def eventually(check: Callable[[], T], *, timeout: float = 30.0, period: float = 0.1) -> T:
    """The first true value that `check` returns; an exception or a false value counts as "not yet". Bounded."""
    end = time.monotonic() + timeout
    last: object = None
    while True:
        try:
            found = check()
            if found:
                return found
            last = found
        except (AssertionError, OSError, KeyError, IndexError) as error:
            last = error
        if time.monotonic() > end:
            raise AssertionError(f"did not happen within {timeout:g} s; last seen: {last!r}")
        time.sleep(period)


@dataclass(frozen=True)
class Task:
    """One line of `service ps`."""

    id: str
    name: str
    node: str
    state: str
    error: str
    message: str


class TestLab:
    """One running lab."""

    __test__ = False

    def __init__(self, layout: LabLayout) -> None:
        self.layout = layout

    @property
    def name(self) -> str:
        return self.layout.name

    def host(self, name: str) -> LabHost:
        return self.layout.host(name)

    # ------------------------------------------------------------------------------------------------- commands

    def run(self, *arguments: str, node: str = "", timeout: float = 90) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "SWARM_LAB": self.name, "NO_COLOR": "1", "COLUMNS": "250"}
        environment.pop("SWARM_HOST", None)
        if node:
            environment["SWARM_NODE"] = node
        return subprocess.run(
            [str(SWARMCTL), *arguments], capture_output=True, text=True, timeout=timeout, env=environment, check=False
        )

    def swarmctl(self, *arguments: str, node: str = "", timeout: float = 90) -> str:
        """Standard output; raises CommandFailed where the command fails."""
        done = self.run(*arguments, node=node, timeout=timeout)
        if done.returncode != 0:
            raise CommandFailed(done)
        return done.stdout

    def json(self, *arguments: str, node: str = "") -> Any:
        return json.loads(self.swarmctl(*arguments, "--format", "json", node=node))

    def refused(self, *arguments: str, node: str = "") -> tuple[int, str]:
        """(exit code, what it said) of a command that must fail, without a traceback."""
        done = self.run(*arguments, node=node)
        assert done.returncode != 0, f"{arguments} was accepted: {done.stdout}"
        said = done.stderr.strip()
        assert said, f"{arguments} failed silently"
        assert "Traceback" not in said + done.stdout, said
        return done.returncode, said

    # ------------------------------------------------------------------------------------------------- looking

    def tasks(self, service: str, *, desired: str = "") -> list[Task]:
        """All tasks that `service ps` knows, or those of one desired state."""
        chosen = ("--filter", f"desired-state={desired}") if desired else ()
        return [
            Task(
                id=task["id"],
                name=task["names"]["task"],
                node=task["names"]["node"],
                state=task["status"]["state"],
                error=task["status"]["error"],
                message=task["status"]["message"],
            )
            for task in self.json("service", "ps", service, *chosen)
        ]

    def running(self, service: str) -> list[Task]:
        return [task for task in self.tasks(service, desired="running") if task.state == "running"]

    def services(self) -> dict[str, dict[str, Any]]:
        return {summary["service"]["spec"]["name"]: summary for summary in self.json("service", "ls")}

    def wait_running(self, service: str, count: int, *, timeout: float = 30) -> list[Task]:
        def check() -> list[Task]:
            found = self.running(service)
            assert len(found) == count, found
            return found

        return eventually(check, timeout=timeout) if count else []

    def nodes(self, asked: str = "") -> dict[str, dict[str, Any]]:
        return {node["description"]["hostname"]: node for node in self.json("node", "ls", node=asked)}

    def state(self, host: str) -> str:
        return str(self.nodes()[host]["status"]["state"])

    def leader(self, asked: str = "") -> str:
        return next(name for name, node in self.nodes(asked).items() if node.get("manager_status") == "Leader")

    def lead(self, name: str) -> None:
        """Until that manager leads: who does instead is ended as planned, while the others do not run and hence do not take
        over in its place."""
        for _ in range(5):
            self.wait_ready()
            leader = self.leader()
            if leader == name:
                return
            with contextlib.ExitStack() as block:
                for host in self.layout.managers:
                    if host.name not in (name, leader):
                        block.enter_context(self.paused(host.name, manager=True))
                self.stop_manager(leader)
                with contextlib.suppress(AssertionError):
                    eventually(lambda: self.leader(name) == name, timeout=10)
        assert self.leader() == name

    def get(self, host: str, port: int, path: str = "/cgi-bin/whoami", timeout: float = 3.0) -> str:
        return self.fetch(f"http://{self.host(host).address}:{port}{path}", timeout)

    @staticmethod
    def fetch(url: str, timeout: float = 3.0) -> str:
        """The answer to a request from the machine itself."""
        with urllib.request.urlopen(url, timeout=timeout) as response:
            return str(response.read().decode().strip())

    def who(self, host: str, port: int) -> str:
        """The container id that answers."""
        found = re.match(r"container (\S+)", self.get(host, port))
        assert found is not None
        return found[1]

    def containers(self) -> set[str]:
        """The tasks whose containers' monitors run on any host, whatever the managers believe."""
        found = set()
        for host in self.layout.hosts:
            for pid in hosts.processes(host).all:
                with contextlib.suppress(OSError):
                    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                    if Path(words[0]).name == "conmon" and "--exec" not in words:
                        found.add(words[words.index("--cid") + 1])
        return found

    def wait_consistent(self, replicas: dict[str, int], *, timeout: float = 40) -> None:
        """Until each service has that many running tasks, and exactly these have containers: none lost, none twice."""

        def check() -> bool:
            wanted: set[str] = set()
            for service, count in replicas.items():
                running = {task.id for task in self.running(service)}
                assert len(running) == count, f"{service}: {len(running)} of {count} running"
                wanted |= running
            assert self.containers() == wanted
            return True

        eventually(check, timeout=timeout, period=0.3)

    def task_pid(self, task_id: str) -> tuple[str, int]:
        """(host, process id) of a running task's first process, found by its cgroup."""
        for host in self.layout.hosts:
            for pid in hosts.processes(host).all:
                try:
                    cgroup = Path(f"/proc/{pid}/cgroup").read_text()
                    if f"{host.cgroup}/" in cgroup and task_id in cgroup and "conmon" not in _comm(pid):
                        return host.name, pid
                except OSError:
                    continue
        raise AssertionError(f"no process of task {task_id}")

    def inside(self, task_id: str, *command: str, timeout: float = 15) -> str:
        """Runs a busybox command in the namespaces of a running task."""
        _, pid = self.task_pid(task_id)
        done = subprocess.run(
            ["nsenter", f"--target={pid}", "--net", "--mount", "--uts", "--pid", *command],
            capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise CommandFailed(done)
        return done.stdout

    def resolve(self, task_id: str, name: str) -> list[str]:
        """What the resolver inside a task's container answers. With nslookup, which asks by itself: a statically linked
        busybox cannot use the C library's resolver."""
        return re.findall(r"Address\S*:?\s+(10\.\S+)", self.inside(task_id, "nslookup", name))

    def fetch_inside(self, task_id: str, url: str) -> str:
        """A request from a task's network namespace. With our own interpreter: the image's statically linked wget crashes
        in the C library's resolver."""
        _, pid = self.task_pid(task_id)
        program = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=3).read().decode())"
        done = subprocess.run(
            ["nsenter", f"--target={pid}", "--net", sys.executable, "-c", program, url],
            capture_output=True, text=True, timeout=15, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise CommandFailed(done)
        return done.stdout

    # -------------------------------------------------------------------------------------------------- faults

    def cut(self, host: str) -> None:
        asyncio.run(lab.cut(self.layout, self.host(host)))

    def heal(self, host: str) -> None:
        asyncio.run(lab.heal(self.layout, self.host(host)))

    def kill(self, host: str) -> None:
        asyncio.run(lab.kill(self.layout, self.host(host)))

    def start(self, host: str) -> None:
        asyncio.run(lab.start(self.layout, self.host(host)))

    def wait_ready(self, *names: str, timeout: float = 60) -> None:
        asyncio.run(lab.wait_ready(self.layout, set(names) or {host.name for host in self.layout.hosts}, timeout))

    def kill_daemon(self, host: str) -> None:
        """kill -9 of `swarmd` alone: its containers and the manager go on."""
        pid = hosts.processes(self.host(host)).daemon
        assert pid is not None
        hosts.kill([pid], signal.SIGKILL)
        eventually(lambda: hosts.processes(self.host(host)).daemon != pid)

    @contextlib.contextmanager
    def paused(self, host: str, *, manager: bool) -> Iterator[None]:
        """The manager or the daemon of a host does not run for the length of the block (SIGSTOP)."""
        found = hosts.processes(self.host(host))
        pid = found.manager if manager else found.daemon
        assert pid is not None
        hosts.kill([pid], signal.SIGSTOP)
        try:
            yield
        finally:
            hosts.kill([pid], signal.SIGCONT)

    @contextlib.contextmanager
    def small_disk(self, host: str, spare: int) -> Iterator[Path]:
        """The host's state is on a file system with `spare` bytes left; yields its directory. Restarts the host twice."""
        state = self.host(host).state_directory
        aside = state.with_name(f"{state.name}.aside")

        self.kill(host)
        state.rename(aside)
        state.mkdir()
        used = sum(path.lstat().st_blocks * 512 + 4096 for path in aside.rglob("*"))
        _run("mount", "-t", "tmpfs", "-o", f"size={used + spare}", "tmpfs", str(state))
        _run("cp", "-a", f"{aside}/.", str(state))
        shutil.rmtree(aside)
        self.start(host)
        self.wait_ready(host)
        try:
            yield state
        finally:
            while found := hosts.processes(self.host(host)).all:
                hosts.kill(found)
            for rootfs in (state / "rootfs").iterdir():
                subprocess.run(["umount", "-l", str(rootfs / "merged")], capture_output=True, check=False)
            _run("cp", "-a", f"{state}/.", str(aside))
            self.kill(host)  # unmounts what is below its state as well, and the small disk
            state.rmdir()
            aside.rename(state)
            self.start(host)
            self.wait_ready(host)

    def kill_manager(self, host: str) -> None:
        """kill -9 of the manager process alone; `swarmd` starts it again."""
        pid = hosts.processes(self.host(host)).manager
        assert pid is not None
        hosts.kill([pid], signal.SIGKILL)

    def stop_manager(self, host: str) -> None:
        """SIGTERM of the manager process alone, as at a planned stop; `swarmd` starts it again."""
        pid = hosts.processes(self.host(host)).manager
        assert pid is not None
        hosts.kill([pid], signal.SIGTERM)

    def start_daemon(self, host: str) -> None:
        asyncio.run(hosts.start_daemon(self.host(host)))

    # -------------------------------------------------------------------------------------------------- images

    def build_web(self, tag: str = "web") -> None:
        """The example image, built on the first host and pushed to the lab's registry."""
        with tempfile.TemporaryDirectory(prefix="swarm-test-") as directory:
            context = Path(directory) / "web"
            shutil.copytree(EXAMPLE, context)
            shutil.copy(BUSYBOX, context / "busybox")
            self.swarmctl("image", "build", "-t", tag, str(context), timeout=120)

    def last_words(self, lines: int) -> dict[str, str]:
        """The ends of the logs of all hosts' daemons, by HOST/LOG."""
        logs = [log for host in self.layout.hosts for log in sorted((host.state_directory / "logs").glob("*.log"))]
        return {
            f"{log.parts[-3]}/{log.name}": "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
            for log in logs
        }

    def remove_services(self) -> None:
        """Every service gone, with all its tasks."""
        names = list(self.services())
        if names:
            self.swarmctl("service", "rm", *names)
        eventually(lambda: not self.services(), timeout=60)


def _comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def fill(directory: Path) -> Path:
    """Writes to the file system that is mounted at `directory` until it is full; removing the returned file makes room."""
    assert directory.is_mount(), f"{directory} is on a file system that others need"
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))
    return filler
