"""The manager as a process of its own: it serves, it hands over, and it says why where it cannot."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from swarm.channels import open_channel, open_local
from swarm.enrolment import join
from swarm.errors import HistoryCut
from swarm.identity import TlsFiles
from swarm.names import MANAGER_TLS_NAME
from swarm.v1 import control_pb2, types_pb2
from swarm.v1.control_pb2_grpc import ControlStub

from orchestrator.manager.__main__ import EXIT_DAMAGED
from orchestrator.manager.pidfile import running

DEADLINE = 60.0
MODULE = [sys.executable, "-m", "orchestrator.manager"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Host:
    """A host of its own, as far as a manager can tell: directories and ports."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self.state, self.run = directory / name / "s", directory / name / "r"
        self.cluster, self.enrolment = free_port(), free_port()
        self.process: asyncio.subprocess.Process | None = None
        self.stderr = directory / f"{name}.log"

    @property
    def common(self) -> list[str]:
        return [
            "--state-dir", str(self.state), "--run-dir", str(self.run), "--advertise", "127.0.0.1",
            "--cluster-port", str(self.cluster),
        ]  # fmt: skip

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.cluster}"

    def init(self) -> dict[str, str]:
        done = subprocess.run(
            [*MODULE, "init", *self.common, "--hostname", self.name], check=True, capture_output=True, timeout=DEADLINE
        )
        made: dict[str, str] = json.loads(done.stdout)
        return made

    async def start(self, joins: str = "", *, abandoned: bool = False) -> bytes:
        """Returns what it wrote to its ready descriptor; `abandoned`: whoever started it is gone before it is ready."""
        reader, writer = os.pipe()
        with self.stderr.open("ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                *MODULE, "run", *self.common, "--listen", "127.0.0.1", "--enrolment-port", str(self.enrolment),
                "--metrics", "", "--join", joins, "--ready-fd", str(writer),
                pass_fds=(writer,), stderr=output, stdout=output, start_new_session=True,
            )  # fmt: skip
        os.close(writer)
        try:
            if abandoned:
                return b""
            async with asyncio.timeout(DEADLINE):
                return await asyncio.to_thread(os.read, reader, 64)
        finally:
            os.close(reader)

    async def ended(self) -> int:
        assert self.process is not None
        async with asyncio.timeout(DEADLINE):
            return await self.process.wait()

    async def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return await self.ended()

    @asynccontextmanager
    async def control(self) -> AsyncIterator[ControlStub]:
        async with open_local(self.run / "control.sock") as channel:
            yield ControlStub(channel)

    async def info(self) -> control_pb2.GetInfoResponse:
        async with self.control() as stub:
            return await stub.GetInfo(control_pb2.GetInfoRequest(), timeout=DEADLINE)

    async def until(self, condition: Callable[[control_pb2.GetInfoResponse], bool]) -> control_pb2.GetInfoResponse:
        async with asyncio.timeout(DEADLINE):
            while not condition(info := await self.info()):  # noqa: ASYNC110 – another process's state
                await asyncio.sleep(0.05)
        return info

    async def join(self, other: Host) -> str:
        """Joins as a manager and starts; returns the node id."""
        async with other.control() as stub:
            token = (await stub.GetJoinTokens(control_pb2.GetJoinTokensRequest(), timeout=DEADLINE)).manager
        joined = await join(
            token,
            [f"127.0.0.1:{other.enrolment}"],
            files=TlsFiles(self.state / "certificates"),
            hostname=self.name,
            advertise_address=self.address,
            request_id=self.name,
        )
        assert await self.start(",".join(joined.managers)) == b"ready\n"
        return joined.node_id


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[Callable[[str], Host]]:
    made: list[Host] = []

    def make(name: str) -> Host:
        made.append(Host(tmp_path, name))
        return made[-1]

    yield make
    for host in made:
        if host.process is not None and host.process.returncode is None:
            host.process.kill()
            await host.process.wait()


async def test_a_manager_serves_although_its_agent_was_killed_while_it_started(tmp_path: Path) -> None:
    host = Host(tmp_path, "m1")
    host.init()
    await host.start(abandoned=True)
    try:
        async with asyncio.timeout(DEADLINE):
            while "has gone meanwhile" not in host.stderr.read_text():  # noqa: ASYNC110 – nothing else tells
                await asyncio.sleep(0.05)
        assert host.process is not None and host.process.returncode is None
    finally:
        assert await host.stop() == 0


async def test_a_first_manager_serves_and_keeps_its_state(hosts: Callable[[str], Host]) -> None:
    host = hosts("h1")
    made = host.init()
    assert await host.start() == b"ready\n"
    assert host.process is not None
    assert running(host.run / "manager.pid") == host.process.pid
    info = await host.until(lambda info: info.leader_id == made["node_id"])
    assert (info.cluster_id, info.managers) == (made["cluster_id"], 1)
    tls = TlsFiles(host.state / "certificates").read()
    async with open_channel(host.address, tls, MANAGER_TLS_NAME) as channel:
        over_tls = await ControlStub(channel).GetInfo(control_pb2.GetInfoRequest(), timeout=DEADLINE)
    assert over_tls.cluster_id == made["cluster_id"]

    assert await host.stop() == 0
    assert running(host.run / "manager.pid") is None
    assert not (host.run / "control.sock").exists()
    assert await host.start() == b"ready\n"
    again = await host.until(lambda info: info.leader_id == made["node_id"])
    assert again.cluster_id == made["cluster_id"]
    assert await host.stop() == 0


async def create_network(host: Host, name: str) -> None:
    async with host.control() as stub:
        spec = types_pb2.NetworkSpec(name=name, driver="overlay")
        await stub.CreateNetwork(control_pb2.CreateNetworkRequest(spec=spec, request_id=name), timeout=DEADLINE)


async def test_three_managers_outlive_their_leader_and_let_one_go(hosts: Callable[[str], Host]) -> None:
    first, second, third = hosts("h1"), hosts("h2"), hosts("h3")
    made = first.init()
    await first.start()
    second_id, third_id = await second.join(first), await third.join(first)
    await third.until(lambda info: len(info.raft.members) == 3)
    # A member without a vote is no majority: both have theirs, and a write after that commits it.
    async with asyncio.timeout(DEADLINE):
        while first.stderr.read_text().count("gets its vote") < 2:  # noqa: ASYNC110 – another process's log
            await asyncio.sleep(0.05)
    await create_network(first, "before")
    await first.stop(signal.SIGKILL)
    await second.until(lambda info: info.leader_id in (second_id, third_id))
    await create_network(second, "later")

    assert await first.start(f"{second.address},{third.address}") == b"ready\n"
    await first.until(lambda info: bool(info.leader_id))
    async with first.control() as stub:
        assert (await stub.GetNetwork(control_pb2.GetRequest(reference="later"), timeout=DEADLINE)).network.id
        node = (await stub.GetNode(control_pb2.GetRequest(reference=made["node_id"]), timeout=DEADLINE)).node
    async with second.control() as stub:
        node.spec.desired_role = types_pb2.NODE_ROLE_WORKER
        update = control_pb2.UpdateNodeRequest(
            reference=node.id, spec=node.spec, version=node.meta.version, request_id="demote"
        )
        await stub.UpdateNode(update, timeout=DEADLINE)
        await second.until(lambda info: {m.node_id for m in info.raft.members} == {second_id, third_id})
        async with asyncio.timeout(DEADLINE):
            while True:
                demoted = (await stub.GetNode(control_pb2.GetRequest(reference=node.id), timeout=DEADLINE)).node
                if demoted.role == types_pb2.NODE_ROLE_WORKER:
                    break
                await asyncio.sleep(0.05)
        assert not demoted.HasField("manager")
        # Nobody ends its process here. It hears of no leader and asks to be let in again, which is refused.
        async with asyncio.timeout(DEADLINE):
            while "none was found by asking" not in first.stderr.read_text():  # noqa: ASYNC110 – another process's log
                await asyncio.sleep(0.2)
        assert {m.node_id for m in (await second.info()).raft.members} == {second_id, third_id}


async def test_a_second_manager_on_a_host_is_refused(hosts: Callable[[str], Host]) -> None:
    host = hosts("h1")
    host.init()
    await host.start()
    first = host.process
    assert await host.start() == b""
    assert await host.ended() == 4
    assert "runs on this host already" in host.stderr.read_text()
    host.process = first


async def test_a_manager_without_a_beginning_says_so(hosts: Callable[[str], Host]) -> None:
    host = hosts("h1")
    assert await host.start() == b""
    assert await host.ended() == 10
    last = host.stderr.read_text().splitlines()[-1]
    assert last.startswith("error: ")
    assert "certificate" in last


async def test_a_taken_port_is_named(hosts: Callable[[str], Host]) -> None:
    host = hosts("h1")
    host.init()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", host.cluster))
        taken.listen()
        assert await host.start() == b""
        assert await host.ended() == 1
    assert f"127.0.0.1:{host.cluster}" in host.stderr.read_text().splitlines()[-1]


async def test_a_manager_that_history_went_on_without_does_not_start_again(hosts: Callable[[str], Host]) -> None:
    host = hosts("h1")
    host.init()
    (host.state / "manager" / "superseded").write_text("the swarm was recovered without this manager\n")
    assert await host.start() == b""
    assert await host.ended() == HistoryCut.exit_code
    assert host.stderr.read_text().splitlines()[-1] == "error: the swarm was recovered without this manager"


async def test_a_damaged_journal_is_one_sentence_and_its_own_exit_code(hosts: Callable[[str], Host]) -> None:
    host = hosts("h1")
    host.init()
    await host.start()
    await host.until(lambda info: bool(info.leader_id))
    assert await host.stop() == 0
    (segment,) = [path for path in (host.state / "manager" / "raft").iterdir() if path.stat().st_size > 1000]
    content = bytearray(segment.read_bytes())
    content[200] ^= 0xFF
    segment.write_bytes(content)
    assert await host.start() == b""
    assert await host.ended() == EXIT_DAMAGED
    last = host.stderr.read_text().splitlines()[-1]
    assert last.startswith("error: ")
    assert segment.name in last
