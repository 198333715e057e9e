"""The node's session with a manager: opened to any of them, kept while it works, opened to another when it ends.

Managers are tried in random order, so that sessions spread; one that works is kept. When all were tried, the retry policy
waits. What is received goes to a `SessionHandler`; what is to be sent – statuses, the index of the networks in force – waits
here until there is a session, and heartbeats go at the period that the manager assigns.

Whether this node was removed is known when a manager ends its session for that reason, or when more than half of them do not
know it: the node's joining was committed by a majority, so a majority without it has committed its removal. One alone may
just lag behind.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import grpc
from swarm.cancellation import raise_if_cancelled
from swarm.channels import open_channel
from swarm.clock import Clock, seconds_of
from swarm.errors import NodeRemoved, SwarmError, Unavailable, first_error, from_rpc
from swarm.identity import TlsMaterial
from swarm.names import MANAGER_TLS_NAME
from swarm.retry import Backoff
from swarm.v1 import dispatcher_pb2 as dispatcher
from swarm.v1 import types_pb2 as types
from swarm.v1.dispatcher_pb2_grpc import DispatcherStub

from agent.session.mirror import StaleAssignments
from agent.session.outbox import Outbox

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 3.0  # seconds for TCP and TLS to one manager
START_TIMEOUT = 8.0  # seconds for its first message: it may wait for a leader and catch up meanwhile
DEFAULT_HEARTBEAT = 1.0
ACK_PAUSE = 0.03  # seconds between two acknowledgements of networks: in a burst each change would make one
CONFLICT_PAUSE = 10.0  # seconds before a node id that somebody else uses is tried again
BACKOFF = Backoff(first=0.1, maximum=3.0)

_CONFLICTS = (dispatcher.SESSION_END_REASON_SUPERSEDED, dispatcher.SESSION_END_REASON_CLONED)


class SessionHandler(Protocol):
    """What happens with what a manager says. Calls come one at a time."""

    def hello(self) -> dispatcher.SessionHello: ...

    def settings(self, settings: dispatcher.SessionSettings) -> None: ...

    async def assignments(self, message: dispatcher.Assignments) -> None:
        """Raises StaleAssignments where the manager lags behind what was seen."""
        ...

    def watermark(self, index: int) -> None: ...

    def session_over(self) -> None: ...


class SessionEnded(SwarmError):
    """A manager ended the session."""

    def __init__(self, reason: dispatcher.SessionEndReason.ValueType, message: str) -> None:
        super().__init__(message or dispatcher.SessionEndReason.Name(reason))
        self.reason = reason


class SessionClient:
    """`run` until cancelled, or until the managers say that this node was removed (raises NodeRemoved)."""

    def __init__(
        self,
        handler: SessionHandler,
        managers: Callable[[], Sequence[str]],
        tls: Callable[[], TlsMaterial],
        *,
        clock: Clock,
        rng: random.Random,
        connect: Callable[[str, TlsMaterial, str], grpc.aio.Channel] = open_channel,
    ) -> None:
        self._handler = handler
        self._managers = managers
        self._tls = tls
        self._clock = clock
        self._rng = rng
        self._connect = connect
        self._outbox = Outbox()
        self._wake = asyncio.Event()
        self._applied_index = 0
        self._heartbeat = DEFAULT_HEARTBEAT
        self._leaving = False
        self._strangers: set[str] = set()  # managers that do not know this node, since the last session
        self.connected_to = ""
        self.problem = ""  # why there is no session
        self.started = 0  # sessions that began
        self.heartbeats = 0

    # ------------------------------------------------------------------------------------------- what is to be said

    def status(self, task_id: str, status: types.TaskStatus, *, urgent: bool) -> None:
        self._outbox.put(task_id, status, self._clock.monotonic(), urgent=urgent)
        self._wake.set()

    def forgotten(self, task_id: str) -> None:
        self._outbox.drop(task_id)

    def networks_applied(self, index: int) -> None:
        self._applied_index = index
        self._wake.set()

    def leave(self, leaving: bool = True) -> None:
        """Tells the managers that this node leaves: they replace its tasks. With `leaving` False it stays after all, which a
        new session tells them."""
        self._leaving = leaving
        self._wake.set()

    @property
    def unacknowledged(self) -> int:
        return len(self._outbox)

    # ------------------------------------------------------------------------------------------------------ sessions

    async def run(self) -> None:
        delays = BACKOFF.delays(self._rng)
        last = ""
        while True:
            began = self.started
            for address in self._candidates(last):
                last = address
                pause = await self._attempt(address)
                if pause:
                    await asyncio.sleep(pause)
                if self.started != began:
                    break  # it worked for a while: try all again at once
            if self.started != began:
                delays = BACKOFF.delays(self._rng)
            await asyncio.sleep(next(delays))

    def _candidates(self, last: str) -> list[str]:
        """All managers in random order; the one whose session ended last comes last."""
        addresses = list(dict.fromkeys(self._managers()))
        self._rng.shuffle(addresses)
        return sorted(addresses, key=lambda address: address == last)

    async def _attempt(self, address: str) -> float:
        """One session from its beginning to its end. Returns how long to wait before the next."""
        try:
            await self._session(address)
        except NodeRemoved as error:
            self.problem = str(error)
            self._strangers.add(address)
            known = set(self._managers())
            if 2 * len(self._strangers & known) > len(known):
                raise
            log.info("manager %s does not know this node: %s", address, error)
        except SessionEnded as ended:
            if ended.reason == dispatcher.SESSION_END_REASON_REMOVED:
                raise NodeRemoved(str(ended)) from ended
            self.problem = str(ended)
            if ended.reason in _CONFLICTS:
                log.error("manager %s ended the session: %s", address, ended)
                return CONFLICT_PAUSE
            log.info("manager %s ended the session: %s", address, ended)
        except (SwarmError, OSError) as error:  # an OSError: this host lacks descriptors or memory for a moment
            self.problem = str(error)
            log.info("no session with manager %s: %s", address, error)
        finally:
            self.connected_to = ""
            self._outbox.session_lost(self._clock.monotonic())
            self._handler.session_over()
        raise_if_cancelled()
        return 0.0

    async def _session(self, address: str) -> None:
        """Raises SwarmError when it is over, always."""
        tls = await asyncio.to_thread(self._tls)
        async with self._connect(address, tls, MANAGER_TLS_NAME) as channel:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    await channel.channel_ready()
            except TimeoutError as error:
                raise Unavailable(f"manager {address} is not reachable within {CONNECT_TIMEOUT:g} s") from error
            call: Any = DispatcherStub(channel).Session()
            try:
                await call.write(dispatcher.AgentMessage(hello=self._handler.hello()))
                await self._begin(call, address)
                async with asyncio.TaskGroup() as group:
                    sender = group.create_task(self._send(call))
                    try:
                        await self._receive(call)
                    finally:
                        sender.cancel()
            except grpc.aio.AioRpcError as error:
                raise from_rpc(error, f"manager {address}") from error
            except asyncio.InvalidStateError as error:  # written to a stream that had ended
                raise Unavailable(f"manager {address} ended the session") from error
            except BaseExceptionGroup as errors:
                raise _only(errors, address) from errors
            finally:
                call.cancel()

    async def _begin(self, call: Any, address: str) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT):
                first = await call.read()
        except TimeoutError as error:
            raise Unavailable(f"manager {address} did not start the session within {START_TIMEOUT:g} s") from error
        if first is grpc.aio.EOF:
            # The status says why; a call that ended well without a word is a defect of the manager.
            raise await _reason(call, address)
        if first.WhichOneof("message") == "end":
            raise SessionEnded(first.end.reason, first.end.message)
        if first.WhichOneof("message") != "start":
            raise Unavailable(f"manager {address} did not begin with the start of a session")
        self._take_settings(first.start.settings)
        self.connected_to, self.problem = address, ""
        self._strangers.clear()
        self.started += 1
        log.info("session %s with manager %s", first.start.session_id, address)

    async def _receive(self, call: Any) -> None:
        while True:
            message = await call.read()
            if message is grpc.aio.EOF:
                raise await _reason(call, self.connected_to)
            match message.WhichOneof("message"):
                case "assignments":
                    try:
                        await self._handler.assignments(message.assignments)
                    except StaleAssignments as error:
                        raise Unavailable(str(error)) from error
                case "status_ack":
                    self._outbox.acknowledged(message.status_ack.sequence)
                    self._wake.set()
                case "watermark":
                    self._handler.watermark(message.watermark.index)
                case "settings":
                    self._take_settings(message.settings)
                case "end":
                    raise SessionEnded(message.end.reason, message.end.message)

    def _take_settings(self, settings: dispatcher.SessionSettings) -> None:
        self._heartbeat = seconds_of(settings.heartbeat_period) or DEFAULT_HEARTBEAT
        self._handler.settings(settings)

    async def _send(self, call: Any) -> None:
        """Everything that there is to say, as it comes up; a heartbeat at least every period."""
        acknowledged = 0
        ack_at = 0.0
        said_leaving = False
        beat_at = self._clock.monotonic() + self._heartbeat
        while True:
            self._wake.clear()
            if said_leaving and not self._leaving:
                raise Unavailable("this node does not leave the swarm after all")
            if self._leaving and not said_leaving:
                await call.write(dispatcher.AgentMessage(leaving=dispatcher.Leaving()))
                said_leaving = True
            if self._applied_index > acknowledged and self._clock.monotonic() >= ack_at:
                acknowledged = self._applied_index
                ack_at = self._clock.monotonic() + ACK_PAUSE
                ack = dispatcher.NetworkAck(index=acknowledged)
                await call.write(dispatcher.AgentMessage(network_ack=ack))
            batch = self._outbox.take(self._clock.monotonic())
            if batch is not None:
                await call.write(dispatcher.AgentMessage(statuses=batch))
            now = self._clock.monotonic()
            if now >= beat_at:
                await call.write(dispatcher.AgentMessage(heartbeat=dispatcher.Heartbeat()))
                self.heartbeats += 1
                beat_at = now + self._heartbeat
            due = self._outbox.due_at()
            until = min(beat_at, now + self._heartbeat) if due is None else min(beat_at, due)
            if self._applied_index > acknowledged:
                until = min(until, ack_at)
            try:
                async with asyncio.timeout(max(0.0, until - now)):
                    await self._wake.wait()
            except TimeoutError:
                continue


async def _reason(call: Any, address: str) -> SwarmError:
    """Why a stream ended."""
    code, details = await call.code(), await call.details()
    if code is grpc.StatusCode.OK:
        return Unavailable(f"manager {address} ended the session")
    metadata = await call.trailing_metadata()
    return from_rpc(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details), f"manager {address}")


def _only(errors: BaseExceptionGroup, address: str) -> BaseException:
    """Sender and receiver fail together when a stream breaks: the SwarmError says the most."""
    expected, _ = errors.split(SwarmError)
    if expected is not None:
        return first_error(expected)
    broken, rest = errors.split((grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError))
    if rest is not None:
        return rest.exceptions[0]
    assert broken is not None
    first = first_error(broken)
    if isinstance(first, grpc.aio.AioRpcError):
        return from_rpc(first, f"manager {address}")
    return Unavailable(f"manager {address} ended the session")
