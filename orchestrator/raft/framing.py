"""Raft's messages, bundled and cut into frames far below gRPC's limit, and put together again. Nothing is unpickled."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.message import DecodeError
from swarm.errors import InvalidArgument
from swarm.v1 import raft_pb2 as pb

FRAME_BYTES = 1 << 20
BUNDLE_MESSAGES = 64
ANSWERS = ("vote", "append_response")  # kinds of messages that go back on the stream of who asked
_MAX_BATCH_BYTES = 64 << 20  # of one message or bundle; a larger one is refused as nonsense


def frames(messages: list[pb.RaftMessage]) -> Iterator[pb.RaftFrame]:
    """A bundle of messages as frames."""
    data = pb.RaftBatch(messages=messages).SerializeToString()
    for start in range(0, len(data), FRAME_BYTES):
        end = start + FRAME_BYTES
        yield pb.RaftFrame(fragment=data[start:end], more=end < len(data))


class Reassembly:
    """Frames back into messages."""

    def __init__(self) -> None:
        self._fragments: list[bytes] = []
        self._size = 0

    def add(self, frame: pb.RaftFrame) -> list[pb.RaftMessage]:
        """The messages that this frame completes. Raises InvalidArgument for an endless one, and for one that is none."""
        self._fragments.append(frame.fragment)
        self._size += len(frame.fragment)
        if self._size > _MAX_BATCH_BYTES:
            raise InvalidArgument(f"a Raft message exceeds {_MAX_BATCH_BYTES} bytes")
        if frame.more:
            return []
        data = self._fragments[0] if len(self._fragments) == 1 else b"".join(self._fragments)
        self._fragments, self._size = [], 0
        try:
            return list(pb.RaftBatch.FromString(data).messages)
        except DecodeError as error:
            raise InvalidArgument(f"what arrived is no Raft message: {error}") from error
