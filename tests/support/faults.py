"""What can happen to a manager of a lab, each as a block: the fault is there inside, and gone after it, whatever happened.

Besides what `TestLab` offers (a cable pulled, a process stopped, a plug pulled): traffic dropped in one direction, a
certificate that nobody accepts any more, a disk that is full, another address.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from swarm.identity import TlsFiles
from swarm.keys import new_key_and_request
from swarm.v1 import types_pb2

from orchestrator.identity.authority import RootAuthority
from orchestrator.lab import hosts
from orchestrator.raft import recovery
from orchestrator.store.persistence import load
from tests.support.lab import TestLab, eventually, fill

_TABLE = "inet swarm-test-fault"


@contextmanager
def one_way(lab: TestLab, host: str, direction: str) -> Iterator[None]:
    """Of what goes through the host's cable, one direction is lost: "input" (it hears nobody) or "output" (nobody hears it)."""
    enter = ["ip", "netns", "exec", lab.host(host).namespace, "nft"]
    interface = "iifname" if direction == "input" else "oifname"
    rules = f"table {_TABLE} {{ chain lost {{ type filter hook {direction} priority -300; {interface} eth0 drop; }}; }}"
    subprocess.run([*enter, "-f", "-"], input=rules, text=True, check=True, timeout=20)
    try:
        yield
    finally:
        subprocess.run([*enter, "delete", "table", *_TABLE.split()], check=True, timeout=20)


@contextmanager
def unplugged(lab: TestLab, host: str) -> Iterator[None]:
    lab.cut(host)
    try:
        yield
    finally:
        lab.heal(host)


@contextmanager
def killed(lab: TestLab, *names: str) -> Iterator[None]:
    """kill -9 of managers, of all at one moment. Inside the block their daemons start them again."""
    pids = {name: manager(lab, name) for name in names}
    hosts.kill(pids.values(), signal.SIGKILL)
    yield
    eventually(lambda: all(hosts.processes(lab.host(name)).manager not in (None, pids[name]) for name in names))


def manager(lab: TestLab, host: str) -> int:
    """The manager's process id, once there is one."""
    return eventually(lambda: hosts.processes(lab.host(host)).manager or 0)


@contextmanager
def full_disk(state: Path) -> Iterator[None]:
    """`state` is what `TestLab.small_disk` yields."""
    filler = fill(state)
    try:
        yield
    finally:
        filler.unlink()


class Certificates:
    """Makes certificates in the name of the lab's authority, whose key a snapshot holds."""

    def __init__(self, lab: TestLab, directory: Path) -> None:
        file = directory / "authority"
        lab.swarmctl("swarm", "snapshot", "save", str(file))
        cluster = load(recovery.inspect(file).index, recovery.state_of(file))[0].cluster
        assert cluster is not None
        self._lab = lab
        self._authority = RootAuthority.from_cluster(cluster)
        self._foreign = RootAuthority.create(cluster.id, time.time())

    @contextmanager
    def expired(self, host: str) -> Iterator[None]:
        """The manager comes up with a certificate that has just expired."""
        with self._replaced(host, self._authority, -1.0):
            yield

    @contextmanager
    def foreign(self, host: str) -> Iterator[None]:
        """The manager comes up with a certificate of another authority."""
        with self._replaced(host, self._foreign, 3600.0):
            yield

    @contextmanager
    def _replaced(self, host: str, authority: RootAuthority, validity: float) -> Iterator[None]:
        files = TlsFiles(self._lab.host(host).state_directory / "certificates")
        good = files.read()
        keys = new_key_and_request(host)
        issued = authority.issue_node(
            keys.csr_pem, good.peer.name, types_pb2.NODE_ROLE_MANAGER, now=time.time(), validity=validity
        )
        files.write(keys.key_pem, issued, authority.certificate_pem)
        try:
            with killed(self._lab, host):  # only a new connection shows a certificate
                yield
        finally:
            files.write(good.key, good.certificate, good.ca)
            self._lab.kill_manager(host)


@contextmanager
def moved(lab: TestLab, host: str, address: str) -> Iterator[None]:
    """The host has another address, and its manager too."""
    place = lab.host(host)

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", "-n", place.namespace, *arguments], check=True, timeout=20)

    ip("addr", "add", f"{address}/24", "dev", "eth0")
    pid = hosts.processes(place).daemon
    assert pid is not None
    hosts.kill([pid])
    eventually(lambda: hosts.processes(place).daemon is None)
    asyncio.run(hosts.start_daemon(place, "--advertise-addr", address))
    eventually(lambda: lab.nodes()[host]["manager"]["address"].startswith(f"{address}:"), timeout=60)
    ip("addr", "flush", "dev", "eth0")  # both: the new one is only the old one's second
    ip("addr", "add", f"{address}/24", "dev", "eth0")
    ip("route", "replace", "default", "via", lab.layout.gateway)
    yield
