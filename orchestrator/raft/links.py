"""What the core needs of a network, whichever it is (gRPC in `transport`, a simulated one in the tests).

Guarantees of an implementation: per direction first in, first out; each message at most once; a loss shows as
`link_down`. Everything is delivered on the tick thread: other threads only `post`.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any, Protocol

from pysyncobj.transport import Transport
from swarm.v1 import raft_pb2 as pb

from orchestrator.raft.engine import MemberNode
from orchestrator.raft.snapshots import Snapshot

_MAX_EVENTS_PER_WAIT = 256  # then the tick goes on: a flood of messages must not delay heartbeats


class Receiver(Protocol):
    """The core, as its links see it. All of it on the tick thread."""

    def message_received(self, node_id: str, message: pb.RaftMessage) -> None: ...

    def link_up(self, node_id: str) -> None: ...

    def link_down(self, node_id: str) -> None: ...

    def peer_gone(self, node_id: str) -> None: ...

    def peer_alive(self, node_id: str) -> None: ...

    def peer_reading(self, node_id: str) -> None: ...

    def snapshot_received(self, node_id: str, offer: pb.RaftSnapshotOffer, name: str) -> None: ...

    def snapshot_transfer_ended(self, node_id: str, term: int, index: int, delivered: bool) -> None: ...

    def send_message(self, node_id: str, message: pb.RaftMessage) -> bool: ...


class Links(Transport):  # type: ignore[misc]
    """Base of the transports. The library knows it as its own transport, and uses it for one message only: the request
    for votes, which is translated here."""

    def __init__(self) -> None:
        super().__init__(None, None, [])
        self._inbox: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]] = queue.SimpleQueue()
        self.receiver: Receiver | None = None

    # ---- the library's side

    def send(self, node: MemberNode, message: dict[str, Any]) -> bool:
        """The library asks for votes."""
        assert self.receiver is not None and message["type"] == "request_vote", message
        request = pb.RequestVote(
            term=message["term"], last_log_index=message["last_log_index"], last_log_term=message["last_log_term"]
        )
        return self.receiver.send_message(node.id, pb.RaftMessage(request_vote=request))

    # ---- the core's side

    def connect(self, node: MemberNode) -> None:
        """Keeps a link to `node` from now on."""
        raise NotImplementedError

    def disconnect(self, node_id: str) -> None:
        """Gives the link up."""
        raise NotImplementedError

    def transmit(self, node_id: str, message: pb.RaftMessage) -> bool:
        """Hands a message to the link; False where there is none."""
        raise NotImplementedError

    def transmit_snapshot(self, node_id: str, snapshot: Snapshot, term: int) -> bool:
        """Begins to send a snapshot beside the messages; `snapshot_transfer_ended` tells how it went."""
        raise NotImplementedError

    def is_receiving(self) -> bool:
        """Whether this process could receive a message now. Silence proves nothing otherwise."""
        return True

    # ---- to the tick thread

    def post(self, action: Callable[..., None], *arguments: Any) -> None:
        """Runs `action` on the tick thread, soon. From any thread."""
        self._inbox.put((action, arguments))

    def deliver(self, timeout: float) -> None:
        """Waits for the first event and handles what has come. On the tick thread."""
        try:
            action, arguments = self._inbox.get(timeout=timeout) if timeout > 0 else self._inbox.get_nowait()
            action(*arguments)
            for _ in range(_MAX_EVENTS_PER_WAIT):
                action, arguments = self._inbox.get_nowait()
                action(*arguments)
        except queue.Empty:
            return
