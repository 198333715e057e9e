"""A real Docker Swarm under measurement: Debian's docker.io, 3 managers and 2 workers, each a network namespace.

Its command line for commands, its HTTP API over the daemons' sockets for observations.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path
from typing import Any

from tests.bench.subject import resident, wait

HOSTS = 5
MANAGERS = 3
DOCKER = "/usr/bin/docker"
IMAGE = "web:1"
PREFIX = "bdk"


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(5)
        self.sock.connect(self._path)


class DockerSwarm:
    name = "docker"

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="bdk-", dir="/tmp"))
        self._daemons: dict[int, subprocess.Popen[bytes]] = {}
        self._cut: set[int] = set()

    # -------------------------------------------------------------------------------------------------- the hosts

    def up(self) -> None:
        switch = f"{PREFIX}sw"
        _run("ip", "netns", "add", switch)
        _run("ip", "-n", switch, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", switch, "link", "set", "br0", "up")
        rootfs = self._directory / "image" / "bin"
        rootfs.mkdir(parents=True)
        shutil.copy("/bin/busybox", rootfs / "busybox")
        for program in ("sh", "sleep", "httpd", "wget"):
            (rootfs / program).symlink_to("busybox")
        for i in range(1, HOSTS + 1):
            namespace, directory = f"{PREFIX}{i}", self._directory / str(i)
            (directory / "exec").mkdir(parents=True)
            _run("mount", "-t", "tmpfs", "tmpfs", str(directory / "exec"))  # as /run is, and as the other subject's
            _run("ip", "netns", "add", namespace)
            _run("ip", "link", "add", f"{PREFIX}u{i}", "type", "veth", "peer", "name", "eth0", "netns", namespace)
            _run("ip", "link", "set", f"{PREFIX}u{i}", "netns", switch)
            _run("ip", "-n", switch, "link", "set", f"{PREFIX}u{i}", "master", "br0", "up")
            _run("ip", "-n", namespace, "addr", "add", f"198.51.100.{i}/24", "dev", "eth0")
            _run("ip", "-n", namespace, "link", "set", "eth0", "up")
            _run("ip", "-n", namespace, "link", "set", "lo", "up")
            with (directory / "log").open("wb") as log:
                self._daemons[i] = subprocess.Popen(
                    ["nsenter", f"--net=/run/netns/{namespace}", "unshare", "-m", "dockerd",
                     "--data-root", str(directory / "data"), "--exec-root", str(directory / "exec"),
                     "--pidfile", str(directory / "pid"), "-H", f"unix://{directory}/docker.sock"],
                    stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
        for i in range(1, HOSTS + 1):
            wait(lambda i=i: self._get(i, "/info") is not None, f"dockerd {i}", 90)
            with subprocess.Popen(
                ["tar", "-C", str(self._directory / "image"), "-c", "."], stdout=subprocess.PIPE
            ) as tar:
                self._docker(i, "import", "-c", 'CMD ["/bin/sleep","100000"]', "-", IMAGE, stdin=tar.stdout)
        self._docker(1, "swarm", "init", "--advertise-addr", "198.51.100.1")
        for i in range(2, HOSTS + 1):
            role = "manager" if i <= MANAGERS else "worker"
            token = self._docker(1, "swarm", "join-token", "-q", role).strip()
            self._docker(
                i, "swarm", "join", "--advertise-addr", f"198.51.100.{i}", "--token", token, "198.51.100.1:2377"
            )
        wait(self.healthy, "docker swarm healthy", 60)

    def down(self) -> None:
        for daemon in self._daemons.values():
            daemon.terminate()
        for daemon in self._daemons.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(20)
        for name in [f"{PREFIX}{i}" for i in range(1, HOSTS + 1)] + [f"{PREFIX}sw"]:
            for pid in _output("ip", "netns", "pids", name).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), 9)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        time.sleep(0.5)
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in sorted((m for m in mounts if m.startswith(str(self._directory))), key=len, reverse=True):
            subprocess.run(["umount", "-l", mount], capture_output=True, check=False)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _get(self, i: int, path: str) -> Any:
        connection = _UnixConnection(self._directory / str(i) / "docker.sock")
        try:
            connection.request("GET", f"/v1.41{path}")
            answer = connection.getresponse()
            return json.loads(answer.read()) if answer.status == 200 else None
        except (OSError, ValueError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def _docker(self, i: int, *arguments: str, stdin: Any = None) -> str:
        done = self._try(i, *arguments, stdin=stdin)
        if done.returncode != 0:
            raise RuntimeError(f"docker {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def _try(self, i: int, *arguments: str, stdin: Any = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "DOCKER_HOST": f"unix://{self._directory}/{i}/docker.sock"}
        return subprocess.run(
            [DOCKER, *arguments], stdin=stdin, capture_output=True, text=True, env=environment, timeout=120, check=False
        )

    def _manager(self) -> int:
        return next(i for i in range(1, MANAGERS + 1) if i not in self._cut)

    # ---------------------------------------------------------------------------------------------- the operations

    def create(self, service: str, replicas: int, *, network: str = "") -> None:
        extra = ("--network", network) if network else ()
        self._docker(
            self._manager(), "service", "create", "-d", "--no-resolve-image", "--stop-signal", "KILL", "--name", service,
            "--replicas", str(replicas), *extra, IMAGE,
        )  # fmt: skip

    def _tasks(self, service: str) -> list[Any]:
        filters = urllib.parse.quote(json.dumps({"service": [service], "desired-state": ["running"]}))
        tasks = self._get(self._manager(), f"/tasks?filters={filters}") or []
        return [task for task in tasks if task["Status"]["State"] == "running"]

    def running(self, service: str) -> int:
        return len(self._tasks(service))

    def remove(self, service: str) -> None:
        self._docker(self._manager(), "service", "rm", service)

    def containers(self) -> int:
        return sum(len(self._get(i, "/containers/json") or []) for i in range(1, HOSTS + 1))

    def create_network(self, network: str) -> None:
        self._docker(self._manager(), "network", "create", "-d", "overlay", network)

    def update(self, service: str, *, parallelism: int, monitor: float) -> None:
        self._docker(
            self._manager(), "service", "update", "-d", "--no-resolve-image", "--force",
            "--update-parallelism", str(parallelism), "--update-monitor", f"{monitor:g}s", service,
        )  # fmt: skip

    def updated(self, service: str) -> bool:
        found = self._get(self._manager(), f"/services/{service}") or {}
        return bool(found.get("UpdateStatus", {}).get("State") == "completed")

    def cut_worker(self) -> str:
        self._link(HOSTS, up=False)
        return str(HOSTS)

    def running_elsewhere(self, service: str, worker: str) -> int:
        nodes = {node["ID"]: node["Status"]["Addr"] for node in self._get(self._manager(), "/nodes") or []}
        return sum(nodes.get(task.get("NodeID")) != f"198.51.100.{worker}" for task in self._tasks(service))

    def cut_leader(self) -> str:
        leader = next(
            node["Status"]["Addr"].rsplit(".", 1)[1]
            for node in self._get(self._manager(), "/nodes") or []
            if node.get("ManagerStatus", {}).get("Leader")
        )
        self._cut.add(int(leader))
        self._link(int(leader), up=False)
        return str(leader)

    def heal(self, host: str) -> None:
        self._link(int(host), up=True)
        self._cut.discard(int(host))

    def _link(self, i: int, *, up: bool) -> None:
        _run("ip", "-n", f"{PREFIX}sw", "link", "set", f"{PREFIX}u{i}", "up" if up else "down")

    def write(self, name: str) -> bool:
        return self._try(self._manager(), "network", "create", "-d", "overlay", name).returncode == 0

    def healthy(self) -> bool:
        nodes = self._get(self._manager(), "/nodes") or []
        return len(nodes) == HOSTS and all(
            node["Status"]["State"] == "ready"
            and node.get("ManagerStatus", {"Reachability": "reachable"}).get("Reachability") == "reachable"
            for node in nodes
        )

    def memory(self) -> dict[str, int]:
        found = {}
        for i in range(1, HOSTS + 1):
            daemon = int((self._directory / str(i) / "pid").read_text())
            children = [int(pid) for pid in _output("pgrep", "-P", str(daemon)).split()]
            containerd = [pid for pid in children if Path(f"/proc/{pid}/comm").read_text().strip() == "containerd"]
            found[str(i)] = resident(daemon) + sum(resident(pid) for pid in containerd)
        return found

    def monitor_memory(self) -> list[int]:
        found = []
        for i in range(1, HOSTS + 1):
            for pid in _output("ip", "netns", "pids", f"{PREFIX}{i}").split():
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{pid}/comm").read_text().startswith("containerd-shim"):
                        found.append(resident(int(pid)))
        return found


def _run(*arguments: str) -> None:
    subprocess.run(arguments, check=True, stdout=sys.stderr)


def _output(*arguments: str) -> str:
    return subprocess.run(arguments, capture_output=True, text=True, check=False).stdout
