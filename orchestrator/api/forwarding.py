"""How any manager answers any call: the one mechanism by which calls reach the leader.

`Forwarder.register` takes a servicer and serves each of its methods through `_serve_unary` or `_serve_stream`: on the
leader the servicer answers; elsewhere the request's bytes go to the leader as they are, with the name of the caller beside
them (`swarm.servers.forwarded_peer_metadata`). A forwarded call is never forwarded again.

A call meets a leader that is just being elected, or that dies under it. Where nothing was written for certain (no leader
known, connection refused, `NotLeader`) it is tried again. Where something may have been written it is tried again only if
repeating is safe: the request carries a request id, or its method writes nothing. Else the caller learns that the outcome is
unknown. Searching for a leader ends after ELECTION_TIMEOUT with the numbers that say why there is none.
"""

from __future__ import annotations

import asyncio
import enum
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

import grpc
from swarm.cancellation import cancelled, raise_if_cancelled
from swarm.errors import (
    KIND_METADATA_KEY,
    ManagerDemoted,
    NotFound,
    NotLeader,
    OutcomeUnknown,
    SwarmError,
    Unavailable,
    from_rpc,
)
from swarm.retry import Backoff
from swarm.servers import RpcServer, current_peer, forwarded_peer_metadata, is_forwarded
from swarm.streams import Pumped

from orchestrator.consensus import Consensus, Leadership, Member

ELECTION_TIMEOUT = 3.0  # seconds to find a leader that answers: several elections
CALL_TIMEOUT = 60.0  # seconds of a unary call whose caller set no deadline
CONNECT_TIMEOUT = 2.0  # seconds to the leader; after that, ask again who it is
_BACKOFF = Backoff(first=0.02, maximum=0.25)
_Context = grpc.aio.ServicerContext[Any, Any]


class Place(enum.Enum):
    """Where a method is answered."""

    LEADER = "leader"
    LEADER_RESUMED = "leader, resumed"  # a stream that begins anew with another leader without the caller noticing
    ANYWHERE = "anywhere"
    ANYWHERE_IF_FOUND = "anywhere if found"  # NotFound of a follower is not the last word: it may be behind


class _Lost(Exception):
    """The call did not reach a leader, or the leader went. `written`: it may have been served."""

    def __init__(self, error: SwarmError, *, written: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.written = written


@dataclass(frozen=True)
class _Method:
    path: str  # /swarm.v1.Control/CreateService
    handler: Any
    place: Place


class _Recorder:
    """Takes the place of a server while a generated function adds a servicer to it."""

    def __init__(self) -> None:
        self.services: dict[str, Mapping[str, Any]] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """The same handlers come once more, by name."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        self.services[service] = handlers


class Forwarder:
    """Brings calls to the leader. `channel_to` opens (or has) the connection to another manager."""

    def __init__(
        self, consensus: Consensus, channel_to: Callable[[Member], grpc.aio.Channel], *, rng: random.Random
    ) -> None:
        self._consensus = consensus
        self._channel_to = channel_to
        self._rng = rng
        self._changed = asyncio.Event()
        consensus.on_leadership(self._leadership_changed)

    def _leadership_changed(self, _: Leadership) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def register(
        self,
        server: RpcServer,
        add_to_server: Callable[[Any, Any], None],
        servicer: object,
        places: Mapping[str, Place] | None = None,
    ) -> None:
        """Serves `servicer` on `server`; `add_to_server` is the generated `add_…Servicer_to_server`. `places` names the
        methods that are not answered by the leader alone."""
        recorder = _Recorder()
        add_to_server(servicer, recorder)
        for service, handlers in recorder.services.items():
            wrapped = {
                name: self._wrap(_Method(f"/{service}/{name}", handler, (places or {}).get(name, Place.LEADER)))
                for name, handler in handlers.items()
            }
            server.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, wrapped),))

    def _wrap(self, method: _Method) -> Any:
        if method.handler.request_streaming:
            raise ValueError(f"{method.path}: streams of requests are not forwarded")
        if method.handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(lambda data, context: self._serve_stream(method, data, context))

        async def serve(data: bytes, context: _Context) -> bytes:
            return await self._serve_unary(method, data, context)

        return grpc.unary_unary_rpc_method_handler(serve)

    # --------------------------------------------------------------------------------------------------- one answer

    async def _serve_unary(self, method: _Method, data: bytes, context: _Context) -> bytes:
        if method.place in (Place.ANYWHERE, Place.ANYWHERE_IF_FOUND):
            return await self._answer(method, data, context)
        request = method.handler.request_deserializer(data)
        if is_stale(request):
            return await self._answer(method, data, context)
        search, written = _Search(self), False
        while True:
            try:
                leader = await search.leader()
                if leader is None:
                    return await self._answer_while_leading(method, request, context)
                return await self._forward(method, data, leader, context, repeatable=is_repeatable(request))
            except _Lost as lost:
                written |= lost.written and may_write(request)
                if written and not is_repeatable(request):
                    raise OutcomeUnknown(
                        f"the leader was lost while it served this call ({lost.error}); look whether it took effect"
                    ) from lost
                await self._search_again(search, lost, written=written)
            except Unavailable as error:
                raise self._in_the_end(error, written=written) from error

    async def _search_again(self, search: _Search, lost: _Lost, *, written: bool) -> None:
        try:
            await search.again(lost)
        except SwarmError as error:
            raise self._in_the_end(error, written=written) from lost

    @staticmethod
    def _in_the_end(error: SwarmError, *, written: bool) -> SwarmError:
        """No leader was found. `written`: the one of an earlier attempt may have begun; only a leader that is ready knows."""
        if not written or not isinstance(error, Unavailable):
            return error
        return OutcomeUnknown(
            f"the leader was lost while it served this call, and no other one was found ({error}); it may have taken effect "
            "or not. Repeat it with the same request id"
        )

    async def _answer(self, method: _Method, data: bytes, context: _Context) -> bytes:
        answer = await method.handler.unary_unary(method.handler.request_deserializer(data), context)
        return bytes(method.handler.response_serializer(answer))

    async def _answer_while_leading(self, method: _Method, request: Any, context: _Context) -> bytes:
        term = self._consensus.leadership().term
        try:
            return bytes(method.handler.response_serializer(await method.handler.unary_unary(request, context)))
        except OutcomeUnknown as error:
            raise _Lost(error, written=True) from error
        except NotLeader as error:  # which this side of the log may be about to learn
            raise _Lost(error, written=False) from error
        except Unavailable as error:
            if self._leads(term):
                raise  # it speaks of something else, as an agent
            raise _Lost(error, written=False) from error

    async def _forward(
        self, method: _Method, data: bytes, leader: Member, context: _Context, *, repeatable: bool
    ) -> bytes:
        channel = await self._connected(leader)
        left = context.time_remaining()
        call_method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method.path)
        call = _begun(call_method, leader, data, CALL_TIMEOUT if left is None else left)
        try:
            if repeatable:  # no need to wait for a dead connection to be noticed: the next leader may be there already
                await self._done_or_deposed(call, leader)
            return bytes(await call)
        except grpc.aio.AioRpcError as error:
            raise _lost(error, leader) from error
        except asyncio.CancelledError:
            raise_if_cancelled()
            raise _Lost(_replaced(leader), written=True) from None
        finally:
            call.cancel()

    async def _done_or_deposed(self, call: Any, leader: Member) -> None:
        finished = asyncio.ensure_future(call.code())
        try:
            while not finished.done():
                deposed = asyncio.ensure_future(self._changed.wait())
                try:
                    if self._other_leads(leader):
                        raise _Lost(NotLeader(f"manager {leader.node_id} does not lead any more"), written=True)
                    await asyncio.wait((finished, deposed), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    deposed.cancel()
        finally:
            finished.cancel()

    def _other_leads(self, leader: Member) -> bool:
        known = self._consensus.leadership().leader_id
        return bool(known) and known != leader.node_id

    # --------------------------------------------------------------------------------------------- a stream of answers

    async def _serve_stream(self, method: _Method, data: bytes, context: _Context) -> AsyncIterator[bytes]:
        begun = False
        if method.place in (Place.ANYWHERE, Place.ANYWHERE_IF_FOUND):
            try:
                async with aclosing(self._answers(method, data, context)) as answers:
                    async for answer in answers:
                        begun = True
                        yield answer
                return
            except NotFound:
                if begun or method.place is Place.ANYWHERE or self._settled_here():
                    raise
        search = _Search(self)
        while True:
            leader = await search.leader()
            stream = self._answers_while_leading if leader is None else self._forwarded_stream
            try:
                async with aclosing(stream(method, data, leader, context)) as answers:
                    async for answer in answers:
                        begun = True
                        search.restart()
                        yield answer
                return
            except _Lost as lost:
                if begun and method.place is not Place.LEADER_RESUMED:
                    raise Unavailable(f"the leader was lost: {lost.error}; repeat to go on") from lost
                await search.again(lost)

    def _settled_here(self) -> bool:
        """Nobody knows better than this member: it leads, or another member asks it already, or nobody leads."""
        leadership = self._consensus.leadership()
        return leadership.is_leader or is_forwarded() or not leadership.leader_id

    async def _answers(self, method: _Method, data: bytes, context: _Context) -> AsyncGenerator[bytes, None]:
        request = method.handler.request_deserializer(data)
        async with aclosing(method.handler.unary_stream(request, context)) as answers:
            async for answer in answers:
                yield bytes(method.handler.response_serializer(answer))

    async def _answers_while_leading(
        self, method: _Method, data: bytes, _: Member | None, context: _Context
    ) -> AsyncGenerator[bytes, None]:
        """This member's answers, for as long as it leads: a deposed leader would show the past for ever."""
        term = self._consensus.leadership().term
        async with Pumped(self._answers(method, data, context)) as answers:
            while True:
                waiting = asyncio.ensure_future(_next(answers))
                try:
                    await self._while_leading(term, waiting)
                    answer = await waiting
                except StopAsyncIteration:
                    return
                except (Unavailable, OutcomeUnknown) as error:
                    if self._leads(term):
                        raise
                    raise _Lost(error, written=False) from error
                finally:
                    await cancelled(waiting)
                yield answer

    async def _while_leading(self, term: int, waiting: asyncio.Future[bytes]) -> None:
        while not waiting.done():
            deposed = asyncio.ensure_future(self._changed.wait())
            try:
                if not self._leads(term):
                    raise _Lost(NotLeader("this manager does not lead any more"), written=False)
                await asyncio.wait((waiting, deposed), return_when=asyncio.FIRST_COMPLETED)
            finally:
                deposed.cancel()

    async def _forwarded_stream(
        self, method: _Method, data: bytes, leader: Member | None, context: _Context
    ) -> AsyncGenerator[bytes, None]:
        assert leader is not None
        channel = await self._connected(leader)
        call_method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(method.path)
        call = _begun(call_method, leader, data, context.time_remaining())
        watch = asyncio.ensure_future(self._cancel_when_deposed(call, leader))
        try:
            async for answer in call:
                yield bytes(answer)
        except grpc.aio.AioRpcError as error:
            raise_if_cancelled()
            raise _lost(error, leader) from error
        except asyncio.CancelledError:
            raise_if_cancelled()
            if watch.done() and not watch.cancelled():
                raise _Lost(NotLeader(f"manager {leader.node_id} does not lead any more"), written=False) from None
            raise _Lost(_replaced(leader), written=False) from None
        finally:
            call.cancel()
            await cancelled(watch)

    async def _cancel_when_deposed(self, call: Any, leader: Member) -> None:
        while not self._other_leads(leader):
            await self._changed.wait()
        call.cancel()

    # ------------------------------------------------------------------------------------------------ finding the leader

    def _leads(self, term: int) -> bool:
        leadership = self._consensus.leadership()
        return leadership.is_leader and leadership.term == term

    async def _connected(self, leader: Member) -> grpc.aio.Channel:
        """A connection that is up, so that what fails on it was sent, and what did not come up was not."""
        channel = self._channel_to(leader)
        ready = asyncio.ensure_future(channel.channel_ready())
        deposed = asyncio.ensure_future(self._until_deposed(leader))
        try:
            await asyncio.wait((ready, deposed), timeout=CONNECT_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                raise _Lost(
                    Unavailable(f"the leader {leader.node_id} at {leader.address} is not reachable"), written=False
                )
        finally:
            await cancelled(deposed)
            await cancelled(ready)
        return channel

    async def _until_deposed(self, leader: Member) -> None:
        """Until this member knows of another leader, or of none any more."""
        while self._consensus.leadership().leader_id == leader.node_id:
            await self._changed.wait()

    def no_leader(self) -> Unavailable:
        """Why nothing can be done now, with the numbers."""
        members = self._consensus.status().members
        if not members:
            return Unavailable(
                "this manager is not a member of the cluster yet; ask another one, or repeat in a moment"
            )
        reachable = sum(member.reachable for member in members)
        voters = sum(not member.learner for member in members) or len(members)
        return Unavailable(
            f"no leader: {reachable} of {len(members)} managers reachable, a quorum needs {voters // 2 + 1}; "
            "bring managers back, or repeat in a moment"
        )


class _Search:
    """The search of one call for a leader, with its deadline and its waits. `leader()` None: this member leads."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder
        self.restart()

    def restart(self) -> None:
        """The call got on: a later loss of the leader has its whole time again."""
        self._deadline = asyncio.get_running_loop().time() + ELECTION_TIMEOUT
        self._delays = _BACKOFF.delays(self._forwarder._rng)

    async def leader(self) -> Member | None:
        consensus = self._forwarder._consensus
        while True:
            changed = self._forwarder._changed
            leadership = consensus.leadership()
            if leadership.is_leader and leadership.ready:
                return None
            if not leadership.is_leader:
                if is_forwarded():
                    raise NotLeader("this manager does not lead")
                for status in consensus.status().members:
                    if leadership.leader_id and status.member.node_id == leadership.leader_id:
                        return status.member
            await self._wait(changed, self._forwarder.no_leader())

    async def again(self, lost: _Lost) -> None:
        """Waits before the next attempt. Raises what was lost after the deadline."""
        error = self._forwarder.no_leader() if isinstance(lost.error, NotLeader) else lost.error
        await self._wait(self._forwarder._changed, error)

    async def _wait(self, changed: asyncio.Event, error: SwarmError) -> None:
        """Until leadership changes, at most a little (a member's address may be learned without that). Raises `error` after
        the deadline."""
        now = asyncio.get_running_loop().time()
        if now >= self._deadline:
            raise error
        with suppress(TimeoutError):
            async with asyncio.timeout_at(min(self._deadline, now + next(self._delays))):
                await changed.wait()


def is_repeatable(request: Any) -> bool:
    """Whether the same request twice has the effect of once: it has a request id, or is of a kind that writes nothing."""
    return not may_write(request) or bool(request.request_id)


def may_write(request: Any) -> bool:
    """Whether the request is of a kind that writes."""
    return "request_id" in request.DESCRIPTOR.fields_by_name


def is_stale(request: Any) -> bool:
    """Whether the caller is content with what any one manager's replica holds."""
    return "stale" in request.DESCRIPTOR.fields_by_name and bool(request.stale)


def _lost(error: grpc.aio.AioRpcError, leader: Member) -> Exception:
    """What became of a forwarded call: `_Lost` where another leader may serve it, else the leader's own refusal."""
    refusal = from_rpc(error, f"leader {leader.node_id}")
    said_by_leader = any(key == KIND_METADATA_KEY for key, _ in error.trailing_metadata() or ())
    if isinstance(refusal, NotLeader):
        return _Lost(refusal, written=False)
    if isinstance(refusal, ManagerDemoted):  # the caller is right, this member is the wrong one to ask
        return Unavailable("this host is no manager any more; ask another one")
    if said_by_leader:
        return _Lost(refusal, written=True) if isinstance(refusal, OutcomeUnknown) else refusal
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return _Lost(refusal, written=True)
    return refusal


def _replaced(leader: Member) -> Unavailable:
    """The connection was closed on our side while it was in use, as some time after a renewal of our certificate."""
    return Unavailable(f"the connection to the leader {leader.node_id} was replaced")


def _begun(method: Callable[..., Any], leader: Member, data: bytes, timeout: float | None) -> Any:
    """The call, or `_Lost` where the connection is being replaced since we got it: such a one takes no more calls."""
    try:
        return method(data, metadata=forwarded_peer_metadata(current_peer()), timeout=timeout)
    except grpc.aio.UsageError as error:
        raise _Lost(_replaced(leader), written=False) from error


async def _next(answers: AsyncIterator[bytes]) -> bytes:
    return await anext(answers)
