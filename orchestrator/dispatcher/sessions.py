"""The sessions of the agents with this manager.

An agent opens a stream, says hello, and is admitted: its certificate is the node's, the cluster is ours, this manager is
connected to a leader, and its replica is at least as new as what the agent has seen. Then the agent gets its settings and
its complete mirror, and after that what changes. What it reports goes to the `Uplink`: on the leader that is the leader's
side of the dispatcher, on a follower the relay. This module knows neither.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
from swarm.cancellation import cancelled
from swarm.errors import InvalidArgument, ResourceExhausted, Unauthenticated
from swarm.servers import current_peer
from swarm.v1 import dispatcher_pb2 as dispatcher

from orchestrator.dispatcher.dispatcher import Dispatcher
from orchestrator.dispatcher.reports import check_hello
from orchestrator.dispatcher.session import NO_MANAGER, Session

log = logging.getLogger(__name__)

HELLO_TIMEOUT = 10.0  # seconds for an agent to say who it is
LEADER_TIMEOUT = 2.0  # seconds that an agent waits here for a leader to be known
CATCH_UP_TIMEOUT = 1.5  # seconds that an agent waits for our replica to reach what it has seen
MAXIMUM_SESSIONS = 2_000
STATUS_BATCH_LIMIT = 10_000  # updates in one message of an agent


@dataclass(frozen=True)
class Refusal:
    """Why an agent must try elsewhere, or not at all."""

    reason: dispatcher.SessionEndReason.ValueType
    message: str


class SessionServicer:
    """The gRPC service `Dispatcher`. Answers are bytes already: `add_to` registers it so."""

    def __init__(self, hub: Dispatcher) -> None:
        self._hub = hub

    def add_to(self, server: grpc.aio.Server) -> None:
        handler = grpc.stream_stream_rpc_method_handler(
            self.session,
            request_deserializer=dispatcher.AgentMessage.FromString,
            response_serializer=bytes,
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("swarm.v1.Dispatcher", {"Session": handler}),)
        )

    async def session(
        self, requests: AsyncIterator[dispatcher.AgentMessage], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        node_id = current_peer().name
        hello = await self._hello(requests)
        refusal = await self._refusal(node_id, hello)
        if refusal is not None:
            end = dispatcher.SessionEnd(reason=refusal.reason, message=refusal.message)
            yield dispatcher.ManagerMessage(end=end).SerializeToString()
            return
        session = self._hub.begin(node_id, hello)
        reader = asyncio.create_task(self._read(session, requests))
        try:
            while messages := await session.outbox.next():
                for message in messages:
                    yield message
        finally:
            self._hub.finish(session)
            await cancelled(reader)

    @staticmethod
    async def _hello(requests: AsyncIterator[dispatcher.AgentMessage]) -> dispatcher.SessionHello:
        try:
            async with asyncio.timeout(HELLO_TIMEOUT):
                first = await anext(requests)
        except (TimeoutError, StopAsyncIteration) as error:
            raise InvalidArgument("the session began without a hello") from error
        if first.WhichOneof("message") != "hello":
            raise InvalidArgument("a session begins with a hello that names the agent's boot")
        check_hello(first.hello)
        return first.hello

    async def _refusal(self, node_id: str, hello: dispatcher.SessionHello) -> Refusal | None:
        hub = self._hub
        if hub.dismissed:
            return Refusal(dispatcher.SESSION_END_REASON_NO_LEADER, NO_MANAGER)
        if not await hub.pulse.wait_until(lambda: hub.has_leader, LEADER_TIMEOUT):
            return Refusal(dispatcher.SESSION_END_REASON_NO_LEADER, "this manager knows no leader; try another one")
        cluster = hub.snapshot.cluster
        if cluster is not None and hello.cluster_id and hello.cluster_id != cluster.id:
            raise Unauthenticated(f"node {node_id} belongs to cluster {hello.cluster_id}, this is cluster {cluster.id}")
        if hub.session_count >= MAXIMUM_SESSIONS:
            raise ResourceExhausted(f"this manager holds {MAXIMUM_SESSIONS} sessions; try another one")
        seen = (hello.seen_epoch, hello.seen_index)
        if not await hub.pulse.wait_until(lambda: hub.position >= seen, CATCH_UP_TIMEOUT):
            return Refusal(
                dispatcher.SESSION_END_REASON_STALE,
                f"this manager is at {hub.position}, the node has seen {seen}; try another one",
            )
        if await hub.pulse.wait_until(lambda: hub.snapshot.nodes.get(node_id) is not None, CATCH_UP_TIMEOUT):
            return None
        if hub.was_removed(node_id):
            return Refusal(dispatcher.SESSION_END_REASON_REMOVED, f"node {node_id} was removed from the swarm")
        return Refusal(
            dispatcher.SESSION_END_REASON_STALE, f"this manager does not know node {node_id} yet; try another one"
        )

    async def _read(self, session: Session, requests: AsyncIterator[dispatcher.AgentMessage]) -> None:
        """Everything that the agent says, until it stops; then its session ends, for whatever reason."""
        outbox = session.outbox
        try:
            async for message in requests:
                self._hub.alive(session)
                self._take(session, message)
        except ResourceExhausted as error:
            outbox.end(dispatcher.SESSION_END_REASON_OVERLOADED, str(error))
        except InvalidArgument as error:
            log.warning("the session of node %s ends: %s", session.node_id, error)
            outbox.end(dispatcher.SESSION_END_REASON_UNSPECIFIED, str(error))
        except Exception:
            log.exception("what node %s said could not be taken in", session.node_id)
            raise
        finally:
            outbox.end(dispatcher.SESSION_END_REASON_UNSPECIFIED, "the agent's stream ended")

    def _take(self, session: Session, message: dispatcher.AgentMessage) -> None:
        match message.WhichOneof("message"):
            case "statuses":
                if len(message.statuses.updates) > STATUS_BATCH_LIMIT:
                    raise InvalidArgument(f"a batch of statuses holds at most {STATUS_BATCH_LIMIT}")
                self._hub.report(session, message.statuses)
            case "network_ack":
                self._hub.programmed(session, message.network_ack.index)
            case "leaving":
                self._hub.leaving(session)
            case "hello":
                raise InvalidArgument("an agent says hello once in a session")
            case _:
                pass  # a heartbeat, or something that a newer agent says
