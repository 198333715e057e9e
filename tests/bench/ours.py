"""Our own cluster under measurement: a lab of 3 managers and 2 workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from pathlib import Path

import grpc
from swarm.v1 import control_pb2, control_pb2_grpc, types_pb2

from orchestrator.lab import hosts
from orchestrator.lab import lab as labs
from tests.bench.subject import resident, wait
from tests.support.lab import TestLab

IMAGE = "bench"


class Ours:
    name = "swarmctl"

    def __init__(self) -> None:
        self._lab: TestLab | None = None
        self._stubs: dict[str, control_pb2_grpc.ControlStub] = {}
        self._cut: set[str] = set()

    @property
    def lab(self) -> TestLab:
        assert self._lab is not None
        return self._lab

    def up(self) -> None:
        layout = asyncio.run(labs.up(f"b{os.getpid()}", 3, 2, lambda line: print(f"  {line}", file=sys.stderr)))
        self._lab = TestLab(layout)
        self.lab.build_web(IMAGE)
        for host in layout.managers:
            channel = grpc.insecure_channel(
                f"unix:{host.control_socket}", options=[("grpc.default_authority", "localhost")]
            )
            self._stubs[host.name] = control_pb2_grpc.ControlStub(channel)
        self._warm()

    def _warm(self) -> None:
        """Two tasks on each host, so that all hosts have the image, as the other subject's have."""
        self.create("warm", 10)
        wait(lambda: self.running("warm") >= 10, "the image is on all hosts")
        self.remove("warm")
        wait(lambda: self.containers() == 0, "no container left")

    def down(self) -> None:
        if self._lab is not None:
            asyncio.run(labs.down(self.lab.name, lambda _: None))

    def _stub(self) -> control_pb2_grpc.ControlStub:
        return next(stub for name, stub in self._stubs.items() if name not in self._cut)

    def _node(self) -> str:
        return next(host.name for host in self.lab.layout.managers if host.name not in self._cut)

    def create(self, service: str, replicas: int, *, network: str = "") -> None:
        extra = ("--network", network) if network else ()
        self.lab.swarmctl(
            "service", "create", "--detach", "--no-resolve-image", "--stop-signal", "KILL", "--name", service,
            "--replicas", str(replicas), *extra, IMAGE, "/bin/sleep", "100000", node=self._node(),
        )  # fmt: skip

    def _tasks(self, service: str) -> list[types_pb2.Task]:
        request = control_pb2.ListTasksRequest(
            filters=[
                control_pb2.Filter(key="service", value=service),
                control_pb2.Filter(key="desired-state", value="running"),
            ],
            # As Docker's managers answer: from memory, without asking a majority whether they still lead.
            stale=True,
        )
        with contextlib.suppress(grpc.RpcError):
            return [
                task
                for task in self._stub().ListTasks(request, timeout=3).tasks
                if task.status.state == types_pb2.TASK_STATE_RUNNING
            ]
        return []

    def running(self, service: str) -> int:
        return len(self._tasks(service))

    def remove(self, service: str) -> None:
        self.lab.swarmctl("service", "rm", service, node=self._node())

    def containers(self) -> int:
        return len(self._monitors())

    def create_network(self, network: str) -> None:
        self.lab.swarmctl("network", "create", "-d", "overlay", network, node=self._node())

    def update(self, service: str, *, parallelism: int, monitor: float) -> None:
        self.lab.swarmctl(
            "service", "update", "--detach", "--no-resolve-image", "--force", "--update-parallelism", str(parallelism),
            "--update-monitor", f"{monitor:g}s", service, node=self._node(),
        )  # fmt: skip

    def updated(self, service: str) -> bool:
        with contextlib.suppress(grpc.RpcError):
            answer = self._stub().GetService(control_pb2.GetRequest(reference=service), timeout=3)
            return bool(answer.summary.service.update_status.state == types_pb2.UPDATE_STATE_COMPLETED)
        return False

    def cut_worker(self) -> str:
        self.lab.cut("w2")
        return "w2"

    def running_elsewhere(self, service: str, worker: str) -> int:
        nodes = {node.id: node.description.hostname for node in self._nodes()}
        return sum(nodes.get(task.node_id) != worker for task in self._tasks(service))

    def _nodes(self) -> list[types_pb2.Node]:
        with contextlib.suppress(grpc.RpcError):
            return list(self._stub().ListNodes(control_pb2.ListRequest(), timeout=3).nodes)
        return []

    def cut_leader(self) -> str:
        leader = self.lab.leader()
        self._cut.add(leader)
        self.lab.cut(leader)
        return leader

    def heal(self, host: str) -> None:
        self.lab.heal(host)
        self._cut.discard(host)

    def write(self, name: str) -> bool:
        return self.lab.run("network", "create", "-d", "overlay", name, node=self._node()).returncode == 0

    def healthy(self) -> bool:
        nodes = self._nodes()
        with contextlib.suppress(grpc.RpcError):
            members = self._stub().ListNodes(control_pb2.ListRequest(), timeout=3).members
            return (
                len(nodes) == 5
                and all(node.status.state == types_pb2.NODE_STATE_READY for node in nodes)
                and all(member.reachable for member in members)
            )
        return False

    def memory(self) -> dict[str, int]:
        found = {}
        for host in self.lab.layout.hosts:
            daemons = [pid for pid in hosts.processes(host).all if "python" in _program(pid)]
            found[host.name] = sum(resident(pid) for pid in daemons)
        return found

    def monitor_memory(self) -> list[int]:
        return [resident(pid) for pid in self._monitors()]

    def _monitors(self) -> list[int]:
        found = []
        for host in self.lab.layout.hosts:
            found += [pid for pid in hosts.processes(host).all if _program(pid) == "conmon"]
        return found


def _program(pid: int) -> str:
    try:
        return Path(Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]).name
    except OSError:
        return ""


def usable() -> None:
    """Raises where this machine cannot run a lab."""
    subprocess.run(["runc", "--version"], check=True, capture_output=True)
