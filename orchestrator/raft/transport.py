"""Raft's messages over the project's gRPC (removes defect P: nothing is unpickled, and a peer is who its certificate says).

Who asks, dials: each member keeps one stream to each other member for its requests, and the answers come back on it. The
dialing side is here and runs on threads of its own, so that a leader's heartbeats go out whatever its event loop is busy
with; the served side (`service`) runs on the manager's event loop, and `is_receiving` says when that loop is too busy for
silence to mean anything. Snapshots go over a channel of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from swarm.channels import open_blocking_channel
from swarm.clock import Clock
from swarm.errors import HistoryCut, SwarmError, from_rpc
from swarm.identity import TlsMaterial
from swarm.retry import Backoff
from swarm.v1 import raft_pb2 as pb
from swarm.v1 import raft_pb2_grpc as rpc

from orchestrator.raft.engine import MemberNode
from orchestrator.raft.framing import ANSWERS, BUNDLE_MESSAGES, Reassembly, frames
from orchestrator.raft.links import Links
from orchestrator.raft.sessions import Session
from orchestrator.raft.snapshots import Snapshot, SnapshotStore

log = logging.getLogger(__name__)

_BUNDLE_BYTES = 1 << 20
_MAX_QUEUED = 4096  # messages to a peer that does not read: the link is given up
_REDIAL = Backoff(first=0.05, maximum=1.0)
_SNAPSHOT_TIMEOUT = 600.0
_STAMP_PERIOD = 0.1  # seconds between proofs that the event loop runs
_STAMP_LATE = 0.1
_STAMP_FORGIVEN = 10.0  # an event loop that stands still for longer is no excuse any more


class _Link:
    """The stream that we keep to one member, on a thread of its own."""

    def __init__(self, node: MemberNode, transport: GrpcLinks) -> None:
        self.node = node
        self._transport = transport
        self._stopping = threading.Event()
        self._outgoing: queue.SimpleQueue[pb.RaftMessage | None] = queue.SimpleQueue()
        self._call: Any = None
        self._channel: grpc.Channel | None = None
        self._tls: TlsMaterial | None = None
        self.up = False
        self._thread = threading.Thread(target=self._run, name=f"raft-link-{node.id[:8]}", daemon=True)
        self._thread.start()

    def send(self, message: pb.RaftMessage) -> bool:
        if not self.up:
            return False
        if self._outgoing.qsize() > _MAX_QUEUED:
            self._hang_up()
            return False
        self._outgoing.put(message)
        return True

    def stop(self) -> None:
        self._stopping.set()
        self._hang_up()

    def _hang_up(self) -> None:
        self._outgoing.put(None)
        call = self._call
        if call is not None:
            call.cancel()

    def _run(self) -> None:
        complained = ""
        waits = _REDIAL.delays(self._transport.rng)
        while not self._stopping.is_set():
            try:
                was_up = self._exchange()
                complaint = ""
            except SwarmError as error:
                was_up, complaint = False, str(error)
            except grpc.RpcError as error:
                was_up, complaint = self.up, _describe(error)
                self._transport.post_refusal(from_rpc(error))
            except Exception as error:  # noqa: BLE001 – no thread or file left: the host has one again later, not so this link
                was_up, complaint = False, repr(error)
            if self.up:
                self.up = False
                self._transport.post_down(self)
            if complaint != complained:
                log.info("the link to manager %s at %s: %s", self.node.id, self.node.address, complaint or "closed")
                complained = complaint
            if was_up:
                waits = _REDIAL.delays(self._transport.rng)
            self._stopping.wait(next(waits))
        self._close_channel()

    def _exchange(self) -> bool:
        """One stream from its opening to its end. True where it was usable."""
        channel = self._channel_with(self._transport.tls())
        outgoing = self._outgoing = queue.SimpleQueue()
        reassembly = Reassembly()
        try:
            self._call = self._open_call(channel, outgoing)
            if self._stopping.is_set():  # `stop` may have come too early to find a call
                self._call.cancel()
            for frame in self._call:
                if not self.up:
                    self.up = True  # the peer's first frame says that it takes part
                    self._transport.post_up(self)
                for message in reassembly.add(frame):
                    self._transport.post_message(self.node.id, message)
            return self.up
        finally:
            outgoing.put(None)
            self._call = None

    def _open_call(self, channel: grpc.Channel, outgoing: queue.SimpleQueue[pb.RaftMessage | None]) -> Any:
        """A channel for which gRPC found no thread is stuck: no call on it ever ends, nor does `close`, nor its finalizer. So a
        thread of ours is tried first; where that was the last one, the channel is set aside for good."""
        threading.Thread(target=_nothing, daemon=True).start()
        try:
            return rpc.RaftStub(channel).Exchange(self._frames(outgoing))
        except RuntimeError:
            self._transport.stuck_channels.append(channel)
            self._channel = None
            raise

    def _channel_with(self, tls: TlsMaterial) -> grpc.Channel:
        """One channel serves all attempts, and gRPC dials again by itself; a renewed certificate needs a new one."""
        if self._channel is None or tls != self._tls:
            self._close_channel()
            self._tls, self._channel = tls, open_blocking_channel(self.node.address, tls, self.node.id)
        return self._channel

    def _close_channel(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _frames(self, outgoing: queue.SimpleQueue[pb.RaftMessage | None]) -> Iterator[pb.RaftFrame]:
        """Bundles what waits. gRPC asks for the next frame when the peer has read enough of the earlier ones."""
        while (message := outgoing.get()) is not None:
            bundle, size, last = [message], message.ByteSize(), False
            with contextlib.suppress(queue.Empty):
                while len(bundle) < BUNDLE_MESSAGES and size < _BUNDLE_BYTES and not last:
                    following = outgoing.get_nowait()
                    last = following is None
                    if following is not None:
                        bundle.append(following)
                        size += following.ByteSize()
            for frame in frames(bundle):
                yield frame
                if frame.more:
                    self._transport.post_reading(self)
            if last:
                return


class GrpcLinks(Links):
    """The links of one member."""

    def __init__(self, own_id: str, tls: Callable[[], TlsMaterial], clock: Clock, rng: random.Random) -> None:
        super().__init__()
        self.own_id = own_id
        self.tls = tls
        self.rng = rng
        self.snapshots: SnapshotStore | None = None
        self.removed: frozenset[str] = frozenset()  # former members
        self.stuck_channels: list[grpc.Channel] = []  # see _Link._open_call
        self._clock = clock
        self._links: dict[str, _Link] = {}
        self._sessions: dict[str, Session] = {}
        self._last_stamp = clock.monotonic()
        self._late_until = 0.0
        self._stamping: asyncio.TimerHandle | None = None

    # ---- life

    def started(self, loop: asyncio.AbstractEventLoop) -> None:
        self._last_stamp = self._clock.monotonic()
        self._stamp(loop)

    def stopped(self) -> None:
        """On the event loop, after the tick thread has ended."""
        if self._stamping is not None:
            self._stamping.cancel()
        self.receiver = None
        for link in self._links.values():
            link.stop()
        for session in self._sessions.values():
            session.replaced = True
            session.news.set()

    def _stamp(self, loop: asyncio.AbstractEventLoop) -> None:
        now = self._clock.monotonic()
        if now - self._last_stamp > _STAMP_PERIOD + _STAMP_LATE:
            self._late_until = now + _STAMP_LATE  # what waited meanwhile is read now
        self._last_stamp = now
        self._stamping = loop.call_later(_STAMP_PERIOD, self._stamp, loop)

    def is_receiving(self) -> bool:
        now = self._clock.monotonic()
        silence = now - self._last_stamp
        return (silence < _STAMP_PERIOD + _STAMP_LATE and now >= self._late_until) or silence > _STAMP_FORGIVEN

    # ---- the core's side, on the tick thread

    def connect(self, node: MemberNode) -> None:
        self._links[node.id] = _Link(node, self)

    def disconnect(self, node_id: str) -> None:
        link = self._links.pop(node_id, None)
        if link is not None:
            link.stop()

    def transmit(self, node_id: str, message: pb.RaftMessage) -> bool:
        if message.WhichOneof("kind") in ANSWERS:
            session = self._sessions.get(node_id)
            return session is not None and session.send(message)
        link = self._links.get(node_id)
        return link is not None and link.send(message)

    def transmit_snapshot(self, node_id: str, snapshot: Snapshot, term: int) -> bool:
        link = self._links.get(node_id)
        if link is None or self.snapshots is None:
            return False
        name = f"raft-snapshot-{node_id[:8]}"
        sending = threading.Thread(target=self._send_snapshot, args=(link.node, snapshot, term), name=name, daemon=True)
        try:
            sending.start()
        except RuntimeError as error:  # no thread left
            log.warning("the snapshot for manager %s is sent later: %s", node_id, error)
            return False
        return True

    def _send_snapshot(self, node: MemberNode, snapshot: Snapshot, term: int) -> None:
        delivered = False
        try:
            assert self.snapshots is not None
            size, parts = self.snapshots.parts(snapshot)
            offer = pb.RaftSnapshotOffer(term=term, index=snapshot.index, index_term=snapshot.term, size=size)
            channel = open_blocking_channel(node.address, self.tls(), node.id)
            try:
                rpc.RaftStub(channel).InstallSnapshot(_snapshot_parts(offer, parts), timeout=_SNAPSHOT_TIMEOUT)
                delivered = True
            finally:
                channel.close()
        except grpc.RpcError as error:
            log.warning("the snapshot for manager %s was not delivered: %s", node.id, _describe(error))
        except (OSError, SwarmError) as error:
            log.warning("the snapshot for manager %s could not be sent: %s", node.id, error)
        finally:  # whatever it was: as long as this one is under way, the leader begins no other
            self.post(self._transfer_ended, node.id, term, snapshot.index, delivered)

    def _transfer_ended(self, node_id: str, term: int, index: int, delivered: bool) -> None:
        if self.receiver is not None:
            self.receiver.snapshot_transfer_ended(node_id, term, index, delivered)

    # ---- from the links' threads and the event loop

    def post_up(self, link: _Link) -> None:
        self.post(self._if_linked, "link_up", link)

    def post_down(self, link: _Link) -> None:
        self.post(self._if_linked, "link_down", link)

    def post_refusal(self, refusal: SwarmError) -> None:
        """A member of our own configuration that says that history was cut is right: only a recovered or restored one does, and
        agents follow it. This member stops."""
        if isinstance(refusal, HistoryCut):
            self.post(_stop_with, refusal)

    def _if_linked(self, event: str, link: _Link) -> None:
        """A link that was given up says nothing of the one to the same member that took its place."""
        if self.receiver is not None and self._links.get(link.node.id) is link:
            getattr(self.receiver, event)(link.node.id)

    def post_message(self, node_id: str, message: pb.RaftMessage) -> None:
        self.post(self._message, node_id, message)

    def _message(self, node_id: str, message: pb.RaftMessage) -> None:
        if self.receiver is not None:
            self.receiver.message_received(node_id, message)

    def post_alive(self, node_id: str) -> None:
        self.post(self._alive, node_id)

    def _alive(self, node_id: str) -> None:
        if self.receiver is not None:
            self.receiver.peer_alive(node_id)

    def post_reading(self, link: _Link) -> None:
        self.post(self._if_linked, "peer_reading", link)

    def post_snapshot(self, node_id: str, offer: pb.RaftSnapshotOffer, name: str) -> None:
        self.post(self._snapshot, node_id, offer, name)

    def _snapshot(self, node_id: str, offer: pb.RaftSnapshotOffer, name: str) -> None:
        if self.receiver is not None:
            self.receiver.snapshot_received(node_id, offer, name)

    def open_session(self, node_id: str, session: Session) -> None:
        """The newest stream of a member counts."""
        before = self._sessions.get(node_id)
        self._sessions[node_id] = session
        if before is not None:
            before.replaced = True
            before.news.set()

    def close_session(self, node_id: str, session: Session) -> None:
        if self._sessions.get(node_id) is session:
            del self._sessions[node_id]
            self.post(self._gone, node_id)

    def _gone(self, node_id: str) -> None:
        if self.receiver is not None:
            self.receiver.peer_gone(node_id)


def _snapshot_parts(offer: pb.RaftSnapshotOffer, parts: Iterator[bytes]) -> Iterator[pb.RaftSnapshotPart]:
    first = True
    for data in parts:
        yield pb.RaftSnapshotPart(offer=offer if first else None, data=data)
        first = False


def _nothing() -> None:
    """All that a thread is started for that shows whether one can be."""


def _stop_with(refusal: HistoryCut) -> None:
    """On the tick thread, whose failures are final."""
    raise refusal


def _describe(error: grpc.RpcError) -> str:
    details = getattr(error, "details", None)
    return str(details() if callable(details) else error) or type(error).__name__
