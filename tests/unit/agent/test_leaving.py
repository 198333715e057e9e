"""A node that leaves the swarm while its managers still send."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from swarm.clock import ManualClock
from swarm.identity import Peer, Role
from swarm.v1 import dispatcher_pb2 as dispatcher
from swarm.v1 import types_pb2 as types

from agent.node.leaving import CALL_TIMEOUT, DEMOTION_TIMEOUT
from agent.node.manager_process import READY_TIMEOUT, STOP_TIMEOUT, ManagerProcess
from agent.node.member import DRAIN_TIMEOUT, LEAVE_TIMEOUT, REPORT_TIMEOUT, Member, NodeParts
from agent.node.options import parse
from agent.node.record import NodeFile, NodeRecord
from agent.session.client import SessionClient
from agent.session.mirror import Mirror
from agent.session.mirror_file import MirrorFile
from orchestrator.cli.commands import swarm as commands
from tests.unit.agent.fakes import FakeHost, assignments, make_revision, make_task, mirror_of


def member_of(host: FakeHost, tmp_path: Path) -> Member:
    parts = NodeParts(
        parse(["--state-dir", str(tmp_path / "state"), "--run-dir", str(tmp_path / "run")]),
        host.runtime,
        host.images,
        lambda: host.data_plane,
        host.clock,
        random.Random(1),
        use_registry=lambda _: None,
    )
    return Member(parts, NodeFile(tmp_path / "state"), NodeRecord("n1", "c1", "127.0.0.1"), lambda _: None)


async def test_assignments_that_are_written_down_while_the_node_leaves_bring_no_new_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were put in force after all tasks had been told to end: the node waited two minutes for those that they brought."""
    member = member_of(FakeHost(tmp_path), tmp_path)
    writing, written = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow(*_: object) -> None:
        loop.call_soon_threadsafe(writing.set)
        written.wait(10)

    monkeypatch.setattr(member._mirror_file, "append", slow)
    finished = make_task("t1", types.TASK_STATE_SHUTDOWN)
    finished.status.state = types.TASK_STATE_SHUTDOWN
    receiving = asyncio.create_task(
        member.assignments(assignments(1, make_revision(), finished, make_task("t2"), complete=True))
    )
    try:
        await writing.wait()
        leaving = asyncio.create_task(member.stop_tasks())
        while not member._leaving:  # noqa: ASYNC110 – at once
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        written.set()
        await receiving
        assert member.tasks.task_ids() == set()
        async with asyncio.timeout(10):
            await leaving
    finally:
        written.set()
        await member.tasks.close()


async def test_tasks_drain_also_while_the_session_goes_to_another_manager() -> None:
    """The manager that a leaving node had its session with was restarted: what the node's tasks were answering was cut off."""

    class Tasks:
        stopping = 1
        left = 3

        def __len__(self) -> int:
            self.left -= 1
            return self.left

    tasks = Tasks()
    member: Any = SimpleNamespace(
        _parts=SimpleNamespace(clock=ManualClock()), tasks=tasks, session=SimpleNamespace(connected_to="", started=1)
    )
    async with asyncio.timeout(5):
        await Member._drain_tasks(member)
    assert tasks.left == 0


async def test_sets_of_assignments_are_written_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow disk the assignments of a swarm that the node had left came back as a file when it had joined another one,
    whose managers all seemed to lag behind then: the node got no session. And a session wrote while that before still did."""
    member = member_of(FakeHost(tmp_path), tmp_path)
    write, writing, go_on = member._mirror_file.append, asyncio.Event(), threading.Event()
    loop, begun = asyncio.get_running_loop(), []

    def slow(parts: Iterable[dispatcher.Assignments], mirror: Mirror) -> None:
        begun.append(mirror.index)
        loop.call_soon_threadsafe(writing.set)
        go_on.wait(10)
        write(parts, mirror)

    monkeypatch.setattr(member._mirror_file, "append", slow)
    receiving = asyncio.create_task(member.assignments(assignments(1, make_revision(), complete=True)))
    try:
        await writing.wait()
        receiving.cancel()  # its session is over
        async with asyncio.timeout(5):
            await asyncio.gather(receiving, return_exceptions=True)
        receiving = asyncio.create_task(member.assignments(assignments(2, make_revision(), complete=True)))
        ending = asyncio.create_task(member._written())
        await asyncio.wait({receiving, ending}, timeout=0.1)
        assert begun == [1] and not ending.done()
        go_on.set()
        await asyncio.gather(receiving, ending)
    finally:
        go_on.set()
    assert begun == [1, 2]
    loaded = MirrorFile(tmp_path / "state" / "assignments").load()
    assert loaded is not None and loaded.index == 2


async def test_assignments_that_are_read_from_the_disk_while_the_node_leaves_bring_no_new_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """swarmd had just been restarted: a task that was assigned and had not begun was started when all had been told to end, and
    the node waited two minutes for it."""
    member = member_of(FakeHost(tmp_path), tmp_path)
    reading, read = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow() -> Mirror:
        loop.call_soon_threadsafe(reading.set)
        read.wait(10)
        return mirror_of(make_revision(), make_task("t1"))

    monkeypatch.setattr(member._mirror_file, "load", slow)
    taking_up = asyncio.create_task(member._take_up())
    try:
        await reading.wait()
        leaving = asyncio.create_task(member.stop_tasks())
        while not member._leaving:  # noqa: ASYNC110 – at once
            await asyncio.sleep(0)
        read.set()
        await taking_up
        assert member.tasks.task_ids() == set() and member.mirror.index
        await leaving
    finally:
        read.set()
        await member.tasks.close()


async def test_a_node_that_stays_after_all_takes_tasks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at `swarmctl swarm leave` while the managers had not confirmed how the tasks ended: the node stayed, and was down
    and deaf to what it was assigned until swarmd was restarted."""
    member = member_of(FakeHost(tmp_path), tmp_path)
    monkeypatch.setattr(SessionClient, "unacknowledged", 1)
    member.session.connected_to = "10.0.0.1:2378"
    leaving = asyncio.create_task(member.stop_tasks())
    await asyncio.wait({leaving}, timeout=0.1)
    assert member._leaving
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert not member._leaving and not member.session._leaving


async def test_a_node_that_leaves_becomes_no_manager_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`swarmctl node promote` and then `swarm leave` on that node, or the other way round: while its tasks drained it became
    the second manager, and when it had left, the swarm had no quorum any more."""
    roles, begun = [Role.WORKER], asyncio.Event()

    async def run(_: ManagerProcess) -> None:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(ManagerProcess, "run", run)
    monkeypatch.setattr(Member, "role", property(lambda _: roles[-1]))
    monkeypatch.setattr(SessionClient, "unacknowledged", 1)
    member = member_of(FakeHost(tmp_path), tmp_path)
    member.session.connected_to = "10.0.0.1:2378"
    keeping = asyncio.create_task(member._keep_manager())
    leaving = asyncio.create_task(member.stop_tasks())
    await asyncio.wait({leaving}, timeout=0.1)
    node = types.Node(id="n1", role=types.NODE_ROLE_WORKER)
    node.spec.desired_role = types.NODE_ROLE_MANAGER
    member.settings(dispatcher.SessionSettings(node=node))
    assert not member.renewal._now.is_set(), "it asks for no manager's certificate"
    roles.append(Role.MANAGER)  # which was asked for before
    await member._renewed(Peer("n1", Role.MANAGER, "c1"))
    await asyncio.wait({asyncio.create_task(begun.wait())}, timeout=0.1)
    assert not begun.is_set() and member.manager is None
    leaving.cancel()  # it stays after all
    async with asyncio.timeout(5):
        await begun.wait()
    keeping.cancel()
    await asyncio.gather(keeping, leaving, return_exceptions=True)


def test_whoever_asks_a_node_to_leave_waits_until_it_has_or_says_why_not() -> None:
    """`swarmctl swarm leave --force` with a task that does not end (its grace period is five minutes) gave up a moment before
    swarmd would have left without waiting any more; that undid it, however often it was tried."""
    demotion = 3 * CALL_TIMEOUT + DEMOTION_TIMEOUT
    tasks = DRAIN_TIMEOUT + LEAVE_TIMEOUT + REPORT_TIMEOUT
    assert demotion + tasks + READY_TIMEOUT + STOP_TIMEOUT < commands.LEAVE_TIMEOUT
