"""What other members call: the served side of the transport, on the manager's event loop.

A caller is who the certificate of its connection says, and a manager that was not removed. Its requests go to the tick thread;
the answers go back on the same stream, of which a member has one: the newest.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import grpc
from swarm.cancellation import cancelled, raise_if_cancelled
from swarm.errors import InvalidArgument, PermissionDenied, Unavailable
from swarm.identity import Role, peer_from_auth_context
from swarm.v1 import raft_pb2 as pb
from swarm.v1 import raft_pb2_grpc as rpc

from orchestrator.raft.framing import ANSWERS, Reassembly, frames
from orchestrator.raft.sessions import Session
from orchestrator.raft.snapshots import file_name
from orchestrator.raft.transport import GrpcLinks

T = TypeVar("T")


class RaftService(rpc.RaftServicer):
    """What other members call, on the manager's server."""

    def __init__(self, links: GrpcLinks) -> None:
        self._links = links

    async def Exchange(
        self, request_iterator: AsyncIterator[pb.RaftFrame], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.RaftFrame]:
        """The requests of one member, and our answers."""
        node_id = self._caller(context)
        session = Session(asyncio.get_running_loop())
        self._links.open_session(node_id, session)
        reading = asyncio.create_task(self._read(node_id, request_iterator, session))
        try:
            yield pb.RaftFrame()
            while not session.replaced and not reading.done():
                await session.news.wait()
                for frame in frames(taken) if (taken := session.take()) else ():
                    # Not by `yield`: what the server has around its streams takes as long as the answer itself.
                    await context.write(frame)
            if reading.done():
                reading.result()
        finally:
            await cancelled(reading)
            self._links.close_session(node_id, session)

    async def _read(self, node_id: str, requests: AsyncIterator[pb.RaftFrame], session: Session) -> None:
        reassembly = Reassembly()
        try:
            async for frame in requests:
                if frame.more:
                    self._links.post_alive(node_id)
                for message in reassembly.add(frame):
                    if message.WhichOneof("kind") in ANSWERS:
                        raise InvalidArgument("an answer came as a request")
                    self._links.post_message(node_id, message)
        finally:
            session.news.set()

    async def InstallSnapshot(
        self, request_iterator: AsyncIterator[pb.RaftSnapshotPart], context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.RaftSnapshotReceipt:
        """A snapshot from the leader; gRPC's flow control paces it by how fast our disk writes."""
        node_id = self._caller(context)
        store = self._links.snapshots
        assert store is not None
        offer, received = pb.RaftSnapshotOffer(), 0
        with contextlib.ExitStack() as stack:
            incoming = None
            async for part in request_iterator:
                if incoming is None:
                    offer.CopyFrom(part.offer)
                    name = file_name(offer.index, offer.index_term)
                    incoming = stack.enter_context(await _in_thread(store.receive, name))
                received += len(part.data)
                if received > offer.size:
                    raise InvalidArgument("the snapshot is longer than it was announced")
                await _in_thread(incoming.add, part.data)
                raise_if_cancelled()
            if incoming is None or received != offer.size:
                raise InvalidArgument("the snapshot is shorter than it was announced")
            await _in_thread(incoming.finish)
            raise_if_cancelled()
        self._links.post_snapshot(node_id, offer, file_name(offer.index, offer.index_term))
        return pb.RaftSnapshotReceipt()

    def _caller(self, context: grpc.aio.ServicerContext[Any, Any]) -> str:
        """The member that calls: by the certificate of this very connection, never by what a message says."""
        peer = peer_from_auth_context(context.auth_context())
        if peer.role is not Role.MANAGER:
            raise PermissionDenied(f"{peer.name!r} is not a manager")
        if peer.name in self._links.removed:
            raise PermissionDenied(f"manager {peer.name} was removed from the swarm")
        if self._links.receiver is None:
            raise Unavailable("this manager is starting or stopping; repeat later")
        return peer.name


async def _in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """What `work` returns, once its thread has ended: also where the call is cancelled meanwhile, which `raise_if_cancelled`
    then tells. The caller would close the file that the thread writes to, and its number may be another file's at once."""
    running = asyncio.get_running_loop().run_in_executor(None, work, *arguments)
    while not running.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({running})
    return running.result()
