"""Members with real certificates, servers and disks, in this process, on ports that the kernel chose."""

from __future__ import annotations

import asyncio
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from swarm.identity import TlsMaterial
from swarm.servers import RpcServer
from swarm.v1.types_pb2 import NODE_ROLE_MANAGER, NodeRole

from orchestrator.consensus import Member
from orchestrator.identity.authority import RootAuthority
from orchestrator.raft import RaftConfig, RaftNode
from orchestrator.raft.admission import join_cluster
from orchestrator.raft.config import CompactionPolicy


class Log:
    """A state machine that remembers its commands."""

    def __init__(self) -> None:
        self.commands: list[bytes] = []

    def apply(self, index: int, command: bytes) -> bytes:
        self.commands.append(command)
        return b"%d" % len(self.commands)

    def capture(self) -> Callable[[], Iterable[bytes]]:
        copy = list(self.commands)

        def produce() -> Iterator[bytes]:
            for command in copy:
                yield command + b"\n"

        return produce

    def restore(self, index: int, chunks: Iterable[bytes]) -> None:
        self.commands = b"".join(chunks).splitlines()


class Manager:
    """One member with its server."""

    def __init__(self, lab: Lab, name: str, *, founder: bool = False, address: str = "") -> None:
        self.lab, self.name = lab, name
        self.address = address or f"127.0.0.1:{free_port()}"
        self.member = Member(name, self.address)
        self.tls = lab.certificate(name)
        self.machine = Log()
        self.node = RaftNode(
            RaftConfig(
                lab.directory / name,
                self.member,
                lambda: self.tls,
                initial_members=(self.member,) if founder else (),
                compaction=lab.compaction,
            ),
            self.machine,
        )
        self.server = RpcServer()
        self.node.register(self.server)
        self.server.listen_tls(self.address, lambda: self.tls)

    async def start(self) -> None:
        await self.server.start()
        await self.node.start()

    async def stop(self, *, transfer: bool = False) -> None:
        await self.node.stop(transfer=transfer)
        await self.server.stop(0)

    async def join(self, *others: Manager) -> None:
        await join_cluster([other.address for other in others], self.tls, self.member, 20.0)


class Lab:
    """A cluster's authority and its managers."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.compaction = CompactionPolicy()
        self.authority = RootAuthority.create("cluster", time.time())
        self.managers: list[Manager] = []

    def certificate(self, name: str, role: NodeRole.ValueType = NODE_ROLE_MANAGER) -> TlsMaterial:
        key = ec.generate_private_key(ec.SECP256R1())
        request = (
            x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
        ).public_bytes(serialization.Encoding.PEM)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        issued = self.authority.issue_node(request, name, role, now=time.time())
        return TlsMaterial(private, issued, self.authority.certificate_pem)

    async def grow(self, count: int) -> list[Manager]:
        """A cluster of so many managers; the first leads."""
        for number in range(count):
            manager = Manager(self, f"{uuid.uuid4().hex[:8]}{number}", founder=number == 0)
            await manager.start()
            if number == 0:
                await until(lambda leader=manager: leader.node.leadership().ready)  # type: ignore[misc]
            else:
                await manager.join(*self.managers)
            self.managers.append(manager)
        core = self.managers[0].node._running()
        await until(
            lambda: core.history.current_index <= core.commit_index
        )  # the last change is not under way any more
        return list(self.managers)

    async def restarted(self, manager: Manager) -> Manager:
        """The same manager, from its directory."""
        again = Manager(self, manager.name, address=manager.address)
        self.managers[self.managers.index(manager)] = again
        await again.start()
        return again

    def leader(self) -> Manager | None:
        return next((m for m in self.managers if m.node.leadership().ready), None)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 20.0) -> None:
    """Polls; for the end of things that give no event."""
    async with asyncio.timeout(seconds):
        while True:
            found = condition()
            if await found if isinstance(found, Awaitable) else found:
                return
            await asyncio.sleep(0.005)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    made = Lab(tmp_path)
    async with AsyncExitStack() as stack:

        async def stop() -> None:
            for manager in made.managers:
                await manager.stop()

        stack.push_async_callback(stop)
        yield made
