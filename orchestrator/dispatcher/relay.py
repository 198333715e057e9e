"""Between a follower's dispatcher and the leader's.

`RelayClient` is a follower's `Uplink`: it keeps one stream to the leader open and carries over it which sessions began and
ended, who was heard (four times a heartbeat period, also when nobody was: that is the follower's own sign of life), what
agents have programmed, and statuses in batches, a few at a time. The leader answers with acknowledgements, the watermark,
sessions to be ended, and its own signs of life. When the stream breaks everything is announced again on the next one.
`RelayServicer` is the leader's end.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from swarm.cancellation import cancelled, raise_if_cancelled
from swarm.clock import duration, seconds_of, timestamp
from swarm.errors import (
    InvalidArgument,
    NodeRemoved,
    NotLeader,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    from_rpc,
)
from swarm.retry import Backoff
from swarm.servers import current_peer
from swarm.v1 import dispatcher_pb2 as dispatcher
from swarm.v1.dispatcher_pb2_grpc import DispatcherRelayServicer, DispatcherRelayStub

from orchestrator.dispatcher.assignments import MirrorDiff
from orchestrator.dispatcher.dispatcher import Dispatcher
from orchestrator.dispatcher.leader import LeaderSide, relay_reporter
from orchestrator.dispatcher.liveness import judge_tick
from orchestrator.dispatcher.session import Session
from orchestrator.dispatcher.statuses import StatusBatch

log = logging.getLogger(__name__)

GATHER = 0.002  # seconds in which a follower gathers statuses; the leader gathers again
GATHER_ACKS = 0.02  # seconds between two messages of what agents have programmed
MAX_FLIGHTS = 3  # batches of statuses on their way to the leader
SILENT_TICKS = 4  # of missing signs of life, after which a follower or a leader counts as silent
UNHEARD_TIMEOUT = 3.0  # seconds without a word of the leader, after which the stream is opened anew
MAXIMUM_QUEUE = 10_000  # messages waiting for a slow peer
_BACKOFF = Backoff(first=0.05, maximum=1.0)


class RelayClient:
    """`open_channel` opens a channel to the leader."""

    def __init__(self, hub: Dispatcher, open_channel: Callable[[], grpc.aio.Channel], *, rng: random.Random) -> None:
        self._hub = hub
        self._open_channel = open_channel
        self._rng = rng
        self._queue: asyncio.Queue[dispatcher.RelayUp] | None = None
        self._heard: set[str] = set()
        self._programmed: dict[str, int] = {}
        self._programmed_waiting = asyncio.Event()
        self._statuses_waiting = asyncio.Event()
        self._batches: list[StatusBatch] = []  # under way, in order
        self._batch_done = asyncio.Event()

    # ----------------------------------------------------------------------------------------------------- the sessions

    def began(self, session: Session, *, resumed: bool) -> None:
        if not resumed:  # what began before is announced with the hello
            self._send(self._session_message(session, resumed=False))

    def ended(self, session: Session) -> None:
        self._heard.discard(session.node_id)
        relayed = dispatcher.RelaySession(node_id=session.node_id, session_id=session.session_id, ended=True)
        self._send(dispatcher.RelayUp(session=relayed))

    def leaving(self, session: Session) -> None:
        self._send(self._session_message(session, resumed=True))

    def alive(self, node_id: str) -> None:
        self._heard.add(node_id)

    def programmed(self, node_id: str, index: int) -> None:
        self._programmed[node_id] = index
        self._programmed_waiting.set()

    def moved(self, diff: MirrorDiff | None) -> None:
        pass  # the leader has its own mirrors

    def reported(self) -> None:
        self._statuses_waiting.set()

    def _send(self, message: dispatcher.RelayUp) -> None:
        if self._queue is None:
            return
        if self._queue.qsize() >= MAXIMUM_QUEUE:
            self._queue = None  # the stream is of no use any more: opened anew, and everything announced again
            return
        self._queue.put_nowait(message)

    @staticmethod
    def _session_message(session: Session, *, resumed: bool) -> dispatcher.RelayUp:
        return dispatcher.RelayUp(
            session=dispatcher.RelaySession(
                node_id=session.node_id,
                session_id=session.session_id,
                hello=session.hello,
                resumed=resumed,
                leaving=session.leaving,
            )
        )

    # ------------------------------------------------------------------------------------------------------- the stream

    async def run(self) -> None:
        """Until cancelled: keeps a stream to the leader."""
        delays = _BACKOFF.delays(self._rng)
        while True:
            began = self._hub.clock.monotonic()
            try:
                await self._relay()
            except Unavailable as error:
                raise_if_cancelled()
                log.info("the relay to the leader broke and is opened again: %s", error)
            if self._hub.clock.monotonic() - began > UNHEARD_TIMEOUT:
                delays = _BACKOFF.delays(self._rng)
            await asyncio.sleep(next(delays))

    async def _relay(self) -> None:
        """One stream, from its beginning to its end. Raises Unavailable."""
        queue: asyncio.Queue[dispatcher.RelayUp] = asyncio.Queue()
        self._queue = queue
        self._send(dispatcher.RelayUp(hello=dispatcher.RelayHello(manager_id=self._hub.node_id)))
        for session in self._hub.sessions():
            self._send(self._session_message(session, resumed=True))
            self._programmed[session.node_id] = session.programmed(self._hub.mirrors.index)
            self._heard.add(session.node_id)
        self._programmed_waiting.set()
        try:
            async with self._open_channel() as channel:
                call = DispatcherRelayStub(channel).Relay(_from_queue(queue))
                await self._while_it_lasts(call)
        finally:
            self._queue = None
            for batch in reversed(self._batches):  # of two statuses of a task that is back the newer one stays
                self._hub.statuses.give_back(batch)
            self._batches.clear()

    async def _while_it_lasts(self, call: Any) -> None:
        """Raises Unavailable when the stream is over."""
        try:
            async with asyncio.TaskGroup() as group:
                senders = [
                    group.create_task(coroutine)
                    for coroutine in (self._send_alive(), self._send_programmed(), self._send_statuses())
                ]
                reason = await self._receive(call)
                for sender in senders:
                    sender.cancel()
        finally:
            call.cancel()
        raise Unavailable(reason)

    async def _receive(self, call: Any) -> str:
        """Everything that the leader says; returns why it stopped."""
        try:
            while self._queue is not None:
                async with asyncio.timeout(UNHEARD_TIMEOUT):
                    answer = await call.read()
                if answer is grpc.aio.EOF:
                    return "the leader ended the relay"
                self._take(answer)
        except TimeoutError:
            return f"the leader was silent for {UNHEARD_TIMEOUT:g} s"
        except grpc.aio.AioRpcError as error:
            refusal = from_rpc(error, "leader")
            if isinstance(refusal, PermissionDenied | NodeRemoved):
                self._hub.dismiss()
            return str(refusal)
        return "the leader took nothing in for too long"

    def _take(self, answer: dispatcher.RelayDown) -> None:
        match answer.WhichOneof("message"):
            case "status_ack":
                while self._batches and self._batches[0].number <= answer.status_ack.sequence:
                    self._hub.acknowledge(self._batches.pop(0).sequences)
                self._batch_done.set()
            case "watermark":
                self._hub.announce_watermark(answer.watermark.index)
            case "supersede":
                self._hub.end_session(answer.supersede.session_id, answer.supersede.end)
            case "heartbeat_period":
                self._hub.leader_alive(seconds_of(answer.heartbeat_period))
            case "leader_alive":
                self._hub.leader_alive()
            case _:
                pass  # something that a newer leader says

    async def _send_alive(self) -> None:
        while True:
            self._send(dispatcher.RelayUp(alive=dispatcher.RelayAlive(node_ids=sorted(self._heard))))
            self._heard.clear()
            await asyncio.sleep(judge_tick(self._hub.period))
            index = self._hub.catch_up()
            for session in self._hub.sessions():  # what concerns nobody here advances these nodes too
                if session.acknowledged:
                    self._programmed.setdefault(session.node_id, session.programmed(index))

    async def _send_programmed(self) -> None:
        while True:
            await self._programmed_waiting.wait()
            self._programmed_waiting.clear()
            acks = [dispatcher.RelayAcks.Ack(node_id=id_, index=index) for id_, index in self._programmed.items()]
            self._programmed.clear()
            if acks:
                self._send(dispatcher.RelayUp(acks=dispatcher.RelayAcks(acks=acks)))
                await asyncio.sleep(GATHER_ACKS)

    async def _send_statuses(self) -> None:
        self._statuses_waiting.set()
        while True:
            await self._statuses_waiting.wait()
            self._statuses_waiting.clear()
            while self._hub.statuses:
                await asyncio.sleep(GATHER)
                batch = self._hub.statuses.take()
                self._batches.append(batch)
                self._batch_done.clear()
                relayed = dispatcher.RelayStatuses(sequence=batch.number, nodes=batch.by_node())
                self._send(dispatcher.RelayUp(statuses=relayed))
                while len(self._batches) >= MAX_FLIGHTS:
                    await self._batch_done.wait()
                    self._batch_done.clear()


async def _from_queue(queue: asyncio.Queue[dispatcher.RelayUp]) -> AsyncIterator[dispatcher.RelayUp]:
    while True:
        yield await queue.get()


class RelayConnection:
    """The leader's end of one follower's stream; `number` tells it from all others of this process. Of watermarks only the
    newest matters."""

    def __init__(self, manager_id: str, number: int) -> None:
        self.manager_id = manager_id
        self.number = number
        self.queue: asyncio.Queue[dispatcher.RelayDown | None] = asyncio.Queue()
        self._period = 0.0

    def acknowledge(self, sequence: int) -> None:
        self._put(dispatcher.RelayDown(status_ack=dispatcher.StatusAck(sequence=sequence)))

    def watermark(self, index: int) -> None:
        self._put(dispatcher.RelayDown(watermark=dispatcher.Watermark(index=index)))

    def supersede(self, node_id: str, session_id: str, end: dispatcher.SessionEnd) -> None:
        superseded = dispatcher.RelaySupersede(node_id=node_id, session_id=session_id, end=end)
        self._put(dispatcher.RelayDown(supersede=superseded))

    def alive(self, period: float, now: float) -> None:
        if period != self._period:
            self._period = period
            self._put(dispatcher.RelayDown(heartbeat_period=duration(period)))
        else:
            self._put(dispatcher.RelayDown(leader_alive=timestamp(now)))

    def _put(self, message: dispatcher.RelayDown) -> None:
        if self.queue.qsize() < MAXIMUM_QUEUE:
            self.queue.put_nowait(message)
        else:
            self.close()  # the follower opens another stream, and hears what matters then

    def close(self) -> None:
        self.queue.put_nowait(None)


class RelayServicer(DispatcherRelayServicer):
    """The gRPC service `DispatcherRelay`. `leader` gives the leader's side, None where this manager does not lead."""

    def __init__(self, hub: Dispatcher, leader: Callable[[], LeaderSide | None]) -> None:
        self._hub = hub
        self._leader = leader
        self._numbers = itertools.count(1)

    async def Relay(
        self, requests: AsyncIterator[dispatcher.RelayUp], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[dispatcher.RelayDown]:
        leader = self._leader()
        if leader is None:
            raise NotLeader("this manager does not lead; relay to the leader")
        try:
            async with asyncio.timeout(UNHEARD_TIMEOUT):
                first = await anext(requests)
        except (TimeoutError, StopAsyncIteration) as error:
            raise InvalidArgument("the relay began without a hello") from error
        manager_id = current_peer().name
        if first.WhichOneof("message") != "hello":
            raise InvalidArgument("a relay begins with a hello")
        if first.hello.manager_id != manager_id:
            raise PermissionDenied(f"manager {manager_id} may not relay as {first.hello.manager_id}")
        connection = RelayConnection(manager_id, next(self._numbers))
        leader.relay_opened(connection)
        reader = asyncio.create_task(self._read(leader, connection, requests))
        try:
            while (message := await connection.queue.get()) is not None and self._leader() is leader:
                yield message
            raise NotLeader("this relay ended; open another one")
        finally:
            leader.relay_closed(connection)
            await cancelled(reader)

    async def _read(
        self, leader: LeaderSide, connection: RelayConnection, requests: AsyncIterator[dispatcher.RelayUp]
    ) -> None:
        silent = SILENT_TICKS * judge_tick(leader.period)
        messages = aiter(requests)
        try:
            while True:
                following = asyncio.ensure_future(anext(messages))
                try:
                    while not (await asyncio.wait({following}, timeout=silent))[0]:
                        leader.relay_silent(connection.manager_id)
                    message = following.result()
                finally:
                    following.cancel()
                self._take(leader, connection, message)
        except StopAsyncIteration:
            pass
        except ResourceExhausted as error:
            log.warning("the relay of manager %s ends: %s", connection.manager_id, error)
        except Exception:
            log.exception("what manager %s relayed could not be taken in", connection.manager_id)
            raise
        finally:
            connection.close()

    def _take(self, leader: LeaderSide, connection: RelayConnection, message: dispatcher.RelayUp) -> None:
        manager_id = connection.manager_id
        match message.WhichOneof("message"):
            case "session" if message.session.ended:
                leader.over(message.session.node_id, message.session.session_id)
            case "session":
                relayed = message.session
                leader.announced(
                    relayed.node_id, relayed.session_id, relayed.hello, via=manager_id, resumed=relayed.resumed
                )
                if relayed.leaving:
                    leader.left(relayed.node_id, relayed.session_id)
            case "alive":
                for node_id in message.alive.node_ids:
                    leader.heard(node_id, manager_id)
            case "acks":
                for ack in message.acks.acks:
                    leader.programmed(ack.node_id, ack.index)
            case "statuses":
                reporter = relay_reporter(connection)
                for part in message.statuses.nodes:
                    self._hub.statuses.offer(reporter, message.statuses.sequence, part.node_id, part.updates)
                if not message.statuses.nodes:
                    self._hub.statuses.offer(reporter, message.statuses.sequence, "", ())
                leader.reported()
            case _:
                pass  # something that a newer follower says
