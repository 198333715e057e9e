"""`./dev bench --failover [--trials N]`: how long a swarm of three managers takes no writes when its leader is lost.

Each trial takes the leader away (killed; its cable pulled; or, for comparison, stopped as planned), at once asks another
manager to create a network, and counts the seconds until that is done: what a client sees that does not even know of the loss.
Between trials all managers are well again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import grpc
from swarm.channels import open_blocking_local
from swarm.v1 import control_pb2, control_pb2_grpc, types_pb2

from orchestrator.lab import hosts
from orchestrator.lab import lab as labs
from orchestrator.lab.layout import LabLayout
from tests.bench.subject import wait

WANTED = "median ≤ 0.6 s, worst ≤ 1.5 s"
_SETTLED = 1.0  # seconds that all is well before the next trial
_names = itertools.count(1)


class Managers:
    """Three managers, asked through their local sockets."""

    def __init__(self, layout: LabLayout) -> None:
        self.layout = layout
        self._stubs = {
            host.name: control_pb2_grpc.ControlStub(open_blocking_local(host.control_socket))
            for host in layout.managers
        }

    def leader(self) -> str:
        """The host that leads, once all members are reachable; empty before."""
        for stub in self._stubs.values():
            with contextlib.suppress(grpc.RpcError):
                answer = stub.ListNodes(control_pb2.ListRequest(), timeout=3)
                names = {node.id: node.description.hostname for node in answer.nodes}
                well = all(node.status.state == types_pb2.NODE_STATE_READY for node in answer.nodes)
                if well and len(answer.members) == len(self._stubs) and all(m.reachable for m in answer.members):
                    return next((names[m.node_id] for m in answer.members if m.leader), "")
        return ""

    def settled(self) -> str:
        """The leader, once it has led a swarm that is well for a while."""
        known, since = "", 0.0

        def steady() -> bool:
            nonlocal known, since
            now = self.leader()
            if now != known or not now:
                known, since = now, time.monotonic()
            return bool(known) and time.monotonic() - since >= _SETTLED

        wait(steady, "all managers are well")
        return known

    def write(self, host: str) -> None:
        """A write through one manager: repeated, with the same request id, until it is accepted."""
        spec = types_pb2.NetworkSpec(name=f"failover-{next(_names)}", driver="overlay")
        request = control_pb2.CreateNetworkRequest(spec=spec, request_id=uuid.uuid4().hex)
        while True:
            with contextlib.suppress(grpc.RpcError):
                self._stubs[host].CreateNetwork(request, timeout=10)
                return

    # ---- ways to lose a leader

    @contextmanager
    def killed(self, host: str) -> Iterator[None]:
        self._signal(host, signal.SIGKILL)
        yield

    @contextmanager
    def stopped(self, host: str) -> Iterator[None]:
        self._signal(host, signal.SIGTERM)
        yield

    @contextmanager
    def cut(self, host: str) -> Iterator[None]:
        link = ["ip", "-n", self.layout.switch_namespace, "link", "set", "dev", host]
        subprocess.run([*link, "down"], check=True)
        try:
            yield
        finally:
            subprocess.run([*link, "up"], check=True)

    def _signal(self, host: str, number: int) -> None:
        pid = hosts.processes(self.layout.host(host)).manager
        assert pid is not None
        os.kill(pid, number)


def trial(managers: Managers, lose: Callable[[str], AbstractContextManager[None]]) -> float:
    leader = managers.settled()
    other = next(host.name for host in managers.layout.managers if host.name != leader)
    managers.write(other)  # the connection between the two is there, as it is in a swarm that is used
    with lose(leader):
        start = time.monotonic()
        managers.write(other)
        return time.monotonic() - start


def report(what: str, seconds: list[float]) -> str:
    return (
        f"{what:32} {len(seconds):3d} trials: median {statistics.median(seconds):.2f} s, worst {max(seconds):.2f} s"
        f"   ({', '.join(f'{value:.2f}' for value in sorted(seconds))})"
    )


def main(trials: int) -> None:
    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    name = f"f{os.getpid()}"
    try:
        managers = Managers(asyncio.run(labs.up(name, 3, 0, say)))
        found: dict[str, list[float]] = {}
        for number in range(trials):
            ways = {
                "leader's link cut": managers.cut,
                "leader stopped": managers.stopped,
                "leader killed": managers.killed,
            }
            for what, lose in ways.items():
                seconds = trial(managers, lose)
                found.setdefault(f"{what} → next write", []).append(seconds)
                say(f"trial {number + 1}: {what}: {seconds:.2f} s")
    finally:
        asyncio.run(labs.down(name, say))
    for what, measured in found.items():
        print(report(what, measured))
    print(f"wanted for a lost leader: {WANTED}")
