"""How a membership ends, whatever else happens meanwhile."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import shutil
import signal
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from swarm.errors import DeadlineExceeded, FailedPrecondition, NodeRemoved, ResourceExhausted, Unauthenticated
from swarm.identity import Role, TlsFiles
from swarm.retry import Backoff

from agent.node import manager_process
from agent.node.manager_process import ManagerProcess, RunningProcess
from agent.node.member import Member, NodeParts
from agent.node.membership import Membership
from agent.node.options import Options
from agent.node.record import NodeFile, NodeRecord
from agent.runtime.interface import ContainerState
from tests.unit.agent.fakes import FakeHost, make_revision, make_task, mirror_of
from tests.unit.agent.manager_program import LOCKED_MANAGER


class Node:
    """A worker whose session ends when `removed` is set: the managers say that they removed it."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host = FakeHost(tmp_path)
        self.in_session, self.removed = asyncio.Event(), asyncio.Event()
        monkeypatch.setattr(Member, "role", property(lambda _: Role.WORKER))
        self.options = Options(state=tmp_path / "state", run=tmp_path / "run")
        self.options.run.mkdir()
        parts = NodeParts(
            self.options,
            self.host.runtime,
            self.host.images,
            lambda: self.host.data_plane,
            self.host.clock,
            random.Random(1),
            use_registry=lambda _: None,
        )
        self.membership = Membership(parts, lambda _: None)

    def begin(self) -> Member:
        member = self.membership._begin(NodeRecord("n1", "c1", "127.0.0.1"))

        async def session() -> None:
            self.in_session.set()
            await self.removed.wait()
            raise NodeRemoved("node n1 was removed from the swarm")

        member.session.run = session  # type: ignore[method-assign]
        return member

    async def running(self, *task_ids: str) -> Member:
        """The member, once these tasks run."""
        member = self.begin()
        async with asyncio.timeout(10):
            await self.in_session.wait()
            member.tasks.apply(mirror_of(make_revision(), *(make_task(task_id) for task_id in task_ids)))
            while member.tasks.by_state()["running"] < len(task_ids):  # noqa: ASYNC110 – bounded; nothing tells
                await asyncio.sleep(0.01)
        return member


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    node = Node(tmp_path, monkeypatch)
    yield node
    await node.membership.close()


async def test_a_node_that_is_removed_while_it_leaves_has_left(node: Node) -> None:
    """`swarmctl swarm leave` on a worker, and `swarmctl node rm` of it meanwhile (it is down as soon as it leaves): the command
    hung for two minutes, and then said that tasks have not ended, which nobody was ending any more."""
    node.host.runtime.obeys = False
    await node.running("t1")
    leaving = asyncio.create_task(node.membership.leave(False))
    try:
        await asyncio.sleep(0.1)
        assert not leaving.done()
        node.removed.set()
        async with asyncio.timeout(5):
            state = await leaving
    finally:
        leaving.cancel()
    assert (state.state, state.node_id) == ("inactive", "")
    assert not node.host.runtime.held


async def test_a_container_that_cannot_be_removed_does_not_keep_the_others(node: Node) -> None:
    """`swarmctl node rm --force` of a node on which one container's process hung in the kernel: all the containers after it ran
    on for ever, and no daemon knew of them."""
    await node.running("t1", "t2", "t3")
    node.host.runtime.delete_errors = [DeadlineExceeded("a process hangs in the kernel")]
    node.removed.set()
    async with asyncio.timeout(5):
        while node.membership.member is not None:  # noqa: ASYNC110 – bounded; nothing tells
            await asyncio.sleep(0.01)
    assert list(node.host.runtime.held) == ["t1"]


async def test_a_node_that_is_removed_while_nothing_can_be_opened_is_tidied_up_afterwards(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """swarmd had no descriptor left when the managers removed the node: its containers and its manager went on, and the node
    said that it is removed, until somebody made it leave."""
    failures = [OSError(errno.EMFILE, os.strerror(errno.EMFILE))]
    containers = node.host.runtime.containers

    async def refused() -> list[ContainerState]:
        if failures:
            raise failures.pop()
        return await containers()

    await node.running("t1")
    monkeypatch.setattr("agent.node.membership._BACKOFF", Backoff(first=0.001, maximum=0.001))
    monkeypatch.setattr(node.host.runtime, "containers", refused)
    node.removed.set()
    async with asyncio.timeout(5):
        while node.membership.member is not None:  # noqa: ASYNC110 – bounded; nothing tells
            await asyncio.sleep(0.01)
    assert not failures and not node.host.runtime.held
    assert node.membership.local_state().message == "node n1 was removed from the swarm"


async def test_a_command_that_is_interrupted_does_not_leave_a_node_half_way(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C at `swarmctl swarm leave`, once the tasks had ended: the node stayed a member that was down and took no tasks, a
    manager without its manager process, until somebody made it leave again."""
    ending, go_on = asyncio.Event(), asyncio.Event()

    async def stop(**_: object) -> None:
        ending.set()
        await go_on.wait()

    monkeypatch.setattr(node.host.data_plane, "stop", stop)
    await node.running("t1")
    leaving = asyncio.create_task(node.membership.leave(False))
    async with asyncio.timeout(5):
        await ending.wait()
        leaving.cancel()
        await asyncio.sleep(0.01)
        go_on.set()
        await asyncio.gather(leaving, return_exceptions=True)
    assert leaving.cancelled()
    assert node.membership.member is None and not (node.options.state / "node.json").exists()


@pytest.fixture
async def manager(node: Node) -> AsyncIterator[RunningProcess]:
    """The manager of this node, which an earlier daemon started."""
    program = (sys.executable, "-c", LOCKED_MANAGER, str(node.options.run / manager_process.PID_FILE))
    earlier = ManagerProcess(node.options, lambda: [], random.Random(1), program=program)
    running = asyncio.create_task(earlier.run())
    async with asyncio.timeout(30):
        await earlier.ready.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    process = RunningProcess.of(earlier.pid)
    assert process is not None
    yield process
    process.signal(signal.SIGKILL)
    await process.ended()


async def test_a_manager_that_its_daemon_has_not_taken_up_yet_is_not_left_behind(
    node: Node, manager: RunningProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """swarmd had been restarted on a full disk, where it waits for room. `swarmctl swarm leave` did not ask whether the swarm
    can go on without this manager, removed what the last one held, and the process went on with the ports: the next membership
    of the host took it for its own."""

    def full(*_: object) -> None:
        raise ResourceExhausted("node.json cannot be written")

    monkeypatch.setattr(Member, "role", property(lambda _: Role.MANAGER))
    monkeypatch.setattr(NodeFile, "write", full)
    member = node.begin()
    async with asyncio.timeout(10):
        while not member.problem:  # noqa: ASYNC110 – bounded; nothing tells
            await asyncio.sleep(0.01)
        with pytest.raises(FailedPrecondition, match="has not taken its manager up yet"):
            await node.membership.leave(False)
        assert manager.runs() and node.membership.member is member
        await node.membership.leave(True)
    assert not manager.runs() and node.membership.member is None


async def test_a_node_that_has_lost_its_certificate_leaves_by_force(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`swarmctl swarm leave --force` said that the certificate cannot be read, and `swarm join` that the node must leave
    first."""

    def lost(_: Member) -> Role:
        raise FailedPrecondition("the certificate cannot be read")

    monkeypatch.setattr(Member, "role", property(lost))
    node.begin()
    await node.in_session.wait()
    with pytest.raises(FailedPrecondition, match="cannot be read"):
        await node.membership.leave(False)
    assert (await node.membership.leave(True)).state == "inactive"


async def test_a_node_with_a_damaged_certificate_goes_on_until_it_leaves_by_force(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system had lost the end of the certificate: the node stopped working in the swarm, containers and all, and could
    not leave it."""
    monkeypatch.undo()  # its role is what the certificate says
    TlsFiles(node.options.certificates).write(b"", b"-----BEGIN CERT", b"")
    node.begin()
    await asyncio.wait({asyncio.create_task(node.in_session.wait())}, timeout=5)
    await asyncio.sleep(0.05)
    assert node.membership.state != "error"
    with pytest.raises(Unauthenticated):
        await node.membership.leave(False)
    assert (await node.membership.leave(True)).state == "inactive"


async def test_a_daemon_that_is_killed_while_it_forgets_a_swarm_is_no_member_of_it(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host lost power while it left: swarmd went on as a member without certificate, which could neither work nor leave."""

    def killed(*_: object) -> None:
        raise RuntimeError("killed")

    file = NodeFile(node.options.state)
    file.write(NodeRecord("n1", "c1", "127.0.0.1"))
    (node.options.state / "manager").mkdir()
    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(RuntimeError, match="killed"):
        await node.membership.wipe()
    assert file.load() is None


async def test_a_record_that_is_just_written_does_not_come_back_after_the_membership(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`swarmctl swarm leave --force` right after swarmd's start, on a slow disk: once swarmd was started again it was a member
    of the swarm that it had left, without a certificate."""
    write, writing, written = NodeFile.write, asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow(file: NodeFile, record: NodeRecord) -> None:
        loop.call_soon_threadsafe(writing.set)
        written.wait(10)
        write(file, record)

    monkeypatch.setattr(NodeFile, "write", slow)
    node.begin()
    await writing.wait()
    leaving = asyncio.create_task(node.membership.leave(True))
    await asyncio.wait({leaving}, timeout=0.5)
    written.set()
    await leaving
    await loop.shutdown_default_executor()
    assert not (node.options.state / "node.json").exists()


async def test_a_node_that_leaves_by_force_does_not_come_back_for_a_moment(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task did not end: while the manager of that host was being stopped, up to ten seconds, the node said that it stays
    after all, and was given new tasks, which ended with it unnoticed."""
    monkeypatch.setattr("agent.node.member.LEAVE_TIMEOUT", 0.05)
    node.host.runtime.obeys = False
    member = await node.running("t1")
    said: list[bool] = []
    monkeypatch.setattr(member.session, "leave", lambda leaving=True: said.append(leaving))
    with pytest.raises(DeadlineExceeded, match="have not ended"):
        await node.membership.leave(False)
    assert said == [True, False]
    await node.membership.leave(True)
    assert said == [True, False, True] and not node.host.runtime.held
