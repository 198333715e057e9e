"""The session with a manager, against real gRPC on a Unix socket and a manager that follows a script."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from swarm.channels import open_local
from swarm.clock import SystemClock, duration
from swarm.errors import NodeRemoved, Unavailable, to_status
from swarm.identity import TlsMaterial
from swarm.v1 import dispatcher_pb2 as dispatcher
from swarm.v1 import types_pb2 as types
from swarm.v1.dispatcher_pb2_grpc import DispatcherServicer, add_DispatcherServicer_to_server

from agent.session import client
from agent.session.client import SessionClient
from agent.session.mirror import StaleAssignments
from tests.unit.agent.fakes import assignments, make_task

Script = Callable[["Conversation"], Awaitable[None]]


class Conversation:
    """One session as a manager sees it."""

    def __init__(self, context: Any) -> None:
        self._context = context

    async def read(self, kind: str) -> Any:
        """The next message of a kind; others are passed over."""
        async with asyncio.timeout(10):
            while True:
                message = await self._context.read()
                assert message is not grpc.aio.EOF, f"the agent ended the session before it said {kind}"
                if message.WhichOneof("message") == kind:
                    return getattr(message, kind)

    async def start(self, period: float = 1.0, **settings: Any) -> None:
        chosen = dispatcher.SessionSettings(heartbeat_period=duration(period), **settings)
        await self.send(start=dispatcher.SessionStart(session_id="s", settings=chosen))

    async def send(self, **message: Any) -> None:
        await self._context.write(dispatcher.ManagerMessage(**message))


class Manager(DispatcherServicer):
    """Plays its scripts, one for each session."""

    def __init__(self, path: Path, *scripts: Script) -> None:
        self.path = path
        self.scripts = list(scripts)
        self.server = grpc.aio.server()
        add_DispatcherServicer_to_server(self, self.server)
        self.server.add_insecure_port(f"unix:{path}")
        self.done: asyncio.Queue[None] = asyncio.Queue()

    async def Session(self, request_iterator: Any, context: Any) -> None:
        await self.scripts.pop(0)(Conversation(context))
        self.done.put_nowait(None)


class Handler:
    def __init__(self) -> None:
        self.received: list[dispatcher.Assignments] = []
        self.watermarks: list[int] = []
        self.stale = False
        self.news = asyncio.Event()

    def hello(self) -> dispatcher.SessionHello:
        return dispatcher.SessionHello(boot_id="boot", boot_counter=4, seen_epoch=1, seen_index=9)

    def settings(self, settings: dispatcher.SessionSettings) -> None:
        self.last_settings = settings

    async def assignments(self, message: dispatcher.Assignments) -> None:
        if self.stale:
            raise StaleAssignments("older")
        self.received.append(message)
        self.news.set()

    def watermark(self, index: int) -> None:
        self.watermarks.append(index)
        self.news.set()

    def session_over(self) -> None:
        pass


@contextlib.asynccontextmanager
async def session(
    tmp_path: Path, *managers: list[Script]
) -> AsyncIterator[tuple[SessionClient, Handler, list[Manager]]]:
    running = [Manager(tmp_path / f"m{number}", *scripts) for number, scripts in enumerate(managers)]
    for manager in running:
        await manager.server.start()
    handler = Handler()
    connected = SessionClient(
        handler,
        lambda: [str(manager.path) for manager in running],
        lambda: TlsMaterial(b"", b"", b""),
        clock=SystemClock(),
        rng=random.Random(3),
        connect=lambda address, tls, name: open_local(Path(address)),
    )
    task = asyncio.create_task(connected.run())
    handler.task = task  # type: ignore[attr-defined]
    try:
        yield connected, handler, running
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for manager in running:
            await manager.server.stop(None)


async def finished(manager: Manager) -> None:
    async with asyncio.timeout(10):
        await manager.done.get()


async def test_hello_names_the_boot_and_what_was_seen(tmp_path: Path) -> None:
    async def script(talk: Conversation) -> None:
        hello = await talk.read("hello")
        assert (hello.boot_id, hello.boot_counter, hello.seen_epoch, hello.seen_index) == ("boot", 4, 1, 9)
        await talk.start()

    async with session(tmp_path, [script]) as (_, _, (manager,)):
        await finished(manager)


async def test_a_session_is_opened_once_the_host_has_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session ended while swarmd had no descriptor left to look up what it says of its host: the node daemon failed
    unexpectedly, and the node was down until swarmd was restarted."""
    failures = [OSError(errno.EMFILE, os.strerror(errno.EMFILE))]
    hello = Handler.hello

    def refused(handler: Handler) -> dispatcher.SessionHello:
        if failures:
            raise failures.pop()
        return hello(handler)

    async def script(talk: Conversation) -> None:
        await talk.start()
        await talk.read("heartbeat")

    monkeypatch.setattr(Handler, "hello", refused)
    async with session(tmp_path, [script, script]) as (connected, handler, _):
        while connected.started == 0 and not handler.task.done():  # type: ignore[attr-defined]  # noqa: ASYNC110 – one of both
            await asyncio.sleep(0.01)
        assert connected.started == 1 and not failures


async def test_heartbeats_come_at_the_assigned_period(tmp_path: Path) -> None:
    async def script(talk: Conversation) -> None:
        await talk.start(period=0.01)
        for _ in range(3):
            await talk.read("heartbeat")

    async with session(tmp_path, [script]) as (_, _, (manager,)):
        await finished(manager)


async def test_assignments_and_watermarks_arrive(tmp_path: Path) -> None:
    async def script(talk: Conversation) -> None:
        await talk.start()
        await talk.send(assignments=assignments(10, make_task(), complete=True))
        await talk.send(watermark=dispatcher.Watermark(index=10))
        await talk.read("network_ack")

    async with session(tmp_path, [script]) as (connected, handler, (manager,)):
        async with asyncio.timeout(10):
            while not handler.watermarks:
                handler.news.clear()
                await handler.news.wait()
        assert [message.index for message in handler.received] == [10]
        connected.networks_applied(10)
        await finished(manager)


async def test_statuses_are_sent_again_with_the_next_session_until_acknowledged(tmp_path: Path) -> None:
    async def lost(talk: Conversation) -> None:
        await talk.start()
        assert (await talk.read("statuses")).updates[0].task_id == "t1"

    async def confirmed(talk: Conversation) -> None:
        await talk.start()
        batch = await talk.read("statuses")
        assert batch.updates[0].task_id == "t1"
        await talk.send(status_ack=dispatcher.StatusAck(sequence=batch.sequence))
        await talk.read("heartbeat")

    async with session(tmp_path, [lost, confirmed]) as (connected, _, (manager,)):
        connected.status("t1", types.TaskStatus(state=types.TASK_STATE_RUNNING), urgent=True)
        await finished(manager)
        await finished(manager)
        assert connected.unacknowledged == 0


async def test_the_applied_index_is_told_to_each_new_manager(tmp_path: Path) -> None:
    async def script(talk: Conversation) -> None:
        await talk.start()
        assert (await talk.read("network_ack")).index == 7

    async with session(tmp_path, [script, script]) as (connected, _, (manager,)):
        connected.networks_applied(7)
        await finished(manager)
        await finished(manager)


async def test_a_manager_without_leader_leads_to_another_one(tmp_path: Path) -> None:
    async def refuse(talk: Conversation) -> None:
        end = dispatcher.SessionEnd(reason=dispatcher.SESSION_END_REASON_NO_LEADER, message="no leader")
        await talk.send(end=end)

    async def accept(talk: Conversation) -> None:
        await talk.start()
        await talk.read("heartbeat")

    async with session(tmp_path, [refuse] * 50, [accept]) as (_, _, managers):
        await finished(managers[1])


async def test_a_manager_that_lags_behind_is_left(tmp_path: Path) -> None:
    async def behind(talk: Conversation) -> None:
        await talk.start()
        await talk.send(assignments=assignments(1, complete=True))
        with contextlib.suppress(AssertionError):
            await talk.read("hello2")

    async with session(tmp_path, [behind] * 50) as (connected, handler, _):
        handler.stale = True
        async with asyncio.timeout(10):
            while connected.started < 2:  # noqa: ASYNC110 – bounded; nothing tells
                await asyncio.sleep(0.01)
        assert connected.problem == "" or "older" in connected.problem


async def test_a_removed_node_stops_asking(tmp_path: Path) -> None:
    async def removed(talk: Conversation) -> None:
        end = dispatcher.SessionEnd(reason=dispatcher.SESSION_END_REASON_REMOVED, message="node n1 was removed")
        await talk.send(end=end)

    async with session(tmp_path, [removed]) as (_, handler, _):
        with pytest.raises(NodeRemoved, match="n1 was removed"):
            async with asyncio.timeout(10):
                await handler.task  # type: ignore[attr-defined]


async def test_a_node_id_that_somebody_else_uses_is_reported_and_not_fought_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "CONFLICT_PAUSE", 3600.0)

    async def cloned(talk: Conversation) -> None:
        await talk.start()
        end = dispatcher.SessionEnd(reason=dispatcher.SESSION_END_REASON_CLONED, message="two hosts have this identity")
        await talk.send(end=end)

    async with session(tmp_path, [cloned]) as (connected, _, (manager,)):
        await finished(manager)
        async with asyncio.timeout(10):
            while not connected.problem:  # noqa: ASYNC110 – bounded; nothing tells
                await asyncio.sleep(0.01)
        assert connected.problem == "two hosts have this identity"
        assert connected.connected_to == ""


def stranger(talk: Conversation) -> Awaitable[None]:
    """What `servers` answers a caller that the manager does not know."""
    status, details, metadata = to_status(NodeRemoved("'n1' is not, or no longer, a member of this swarm"))
    aborted: Awaitable[None] = talk._context.abort(status, details, metadata)
    return aborted


async def test_one_manager_that_does_not_know_the_node_may_just_lag_behind(tmp_path: Path) -> None:
    async def accept(talk: Conversation) -> None:
        await talk.start()
        await talk.read("heartbeat")

    async with session(tmp_path, [stranger] * 50, [accept], [accept]) as (connected, handler, managers):
        async with asyncio.timeout(10):
            while managers[1].done.empty() and managers[2].done.empty():  # noqa: ASYNC110 – bounded; nothing tells
                await asyncio.sleep(0.01)
        assert connected.started
        assert not handler.task.done()  # type: ignore[attr-defined]


async def test_a_node_that_a_majority_does_not_know_was_removed(tmp_path: Path) -> None:
    async def refuse(talk: Conversation) -> None:
        end = dispatcher.SessionEnd(reason=dispatcher.SESSION_END_REASON_NO_LEADER, message="no leader")
        await talk.send(end=end)

    async with session(tmp_path, [stranger] * 50, [stranger] * 50, [refuse] * 50) as (_, handler, _managers):
        with pytest.raises(NodeRemoved, match="no longer, a member"):
            async with asyncio.timeout(10):
                await handler.task  # type: ignore[attr-defined]


async def test_a_cancellation_that_meets_a_failure_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by a hanging test: the task group swallowed it, and the session went on for ever."""
    async with session(tmp_path, []) as (connected, handler, _):
        task = handler.task  # type: ignore[attr-defined]

        async def fails(address: str) -> None:
            task.cancel()
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                raise Unavailable("the stream broke at the same moment") from None

        monkeypatch.setattr(connected, "_session", fails)
        async with asyncio.timeout(10):
            await asyncio.wait({task})
        assert task.cancelled()


async def test_a_node_that_leaves_says_so_in_each_session_until_it_stays_after_all(tmp_path: Path) -> None:
    stayed = asyncio.Event()

    async def first(talk: Conversation) -> None:
        await talk.start()
        connected.leave()
        await talk.read("leaving")

    async def second(talk: Conversation) -> None:
        await talk.start()
        await talk.read("leaving")
        connected.leave(False)
        await asyncio.Event().wait()  # the agent ends this session: the next shall not be that of a node that leaves

    async def third(talk: Conversation) -> None:
        await talk.start(period=0.01)
        await talk.read("heartbeat")
        stayed.set()

    async with session(tmp_path, [first, second, third]) as (connected, _, _):
        await asyncio.wait_for(stayed.wait(), 10)
