"""The state as bytes: the stream of a snapshot, written in chunks and read back.

A stream is a row of frames, each 4 bytes of length (big endian) and a `SnapshotFrame`; the last one says how many objects
there were. Frames stay below the chunk size that `consensus.StateMachine.capture` promises; a reader may cut the stream
into other chunks. The same state gives the same bytes on every member: objects are ordered by id.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from swarm.errors import InternalError
from swarm.v1.store_pb2 import RequestRecord, SnapshotFrame
from swarm.v1.types_pb2 import Cluster

from orchestrator.store import features
from orchestrator.store.objects import Key, Kind, StoreObject, kind_of, unwrap, unwrap_key, wrap, wrap_key
from orchestrator.store.snapshot import Snapshot
from orchestrator.store.tables import Editor

# Objects of a frame; one object may be larger, up to the entry limit of 1 MiB. Small, so that who writes a snapshot beside the
# manager's work can let that go on between any two frames.
FRAME_BYTES = 64 * 1024
_LENGTH = struct.Struct(">I")
_LONGEST_FRAME = 64 * 1024 * 1024  # a length beyond it means damage, not data


@dataclass(frozen=True)
class Request:
    """A request that was applied: where, and which objects it wrote."""

    request_id: str
    index: int
    written: tuple[Key, ...]


def dump(snapshot: Snapshot, requests: Sequence[Request]) -> Iterator[bytes]:
    """The stream of a snapshot."""
    level = features.level_of(snapshot.cluster)  # also managers that do not know more install it
    frame, size, objects = SnapshotFrame(schema=level), 0, 0
    for obj in _ordered(snapshot):
        stored = wrap(obj)
        if size and size + stored.ByteSize() > FRAME_BYTES:
            yield _frame_bytes(frame)
            frame, size = SnapshotFrame(schema=level), 0
        frame.objects.append(stored)
        size += stored.ByteSize()
        objects += 1
    for request in requests:
        record = RequestRecord(request_id=request.request_id, index=request.index)
        record.written.extend(wrap_key(key) for key in request.written)
        if size and size + record.ByteSize() > FRAME_BYTES:
            yield _frame_bytes(frame)
            frame, size = SnapshotFrame(schema=level), 0
        frame.requests.append(record)
        size += record.ByteSize()
    frame.end.index, frame.end.objects, frame.end.requests = snapshot.index, objects, len(requests)
    yield _frame_bytes(frame)


def load(index: int, chunks: Iterable[bytes]) -> tuple[Snapshot, list[Request]]:
    """The state that `dump` wrote. Raises InternalError where the stream is damaged, cut, or of a newer schema."""
    objects: list[StoreObject] = []
    requests: list[Request] = []
    for frame in _frames(chunks):
        features.check_readable(frame.schema, "the snapshot")
        objects += [unwrap(stored) for stored in frame.objects]
        requests += [
            Request(record.request_id, record.index, tuple(unwrap_key(key) for key in record.written))
            for record in frame.requests
        ]
        if frame.HasField("end"):
            if (frame.end.objects, frame.end.requests) != (len(objects), len(requests)):
                raise InternalError(
                    f"the snapshot at index {index} is damaged: {len(objects)} objects of {frame.end.objects}"
                )
            snapshot = _build(index, objects)
            features.check_cluster(snapshot.cluster)
            return snapshot, requests
    raise InternalError(f"the snapshot at index {index} is damaged: it ends early")


def _ordered(snapshot: Snapshot) -> Iterator[StoreObject]:
    if snapshot.cluster is not None:
        yield snapshot.cluster
    for kind in Kind:
        if kind is not Kind.CLUSTER:
            table = snapshot.table(kind)
            yield from (table[id_] for id_ in _sorted(table.ids()))


def _sorted(ids: Iterable[str]) -> Iterator[str]:
    """As `sorted`, piece by piece: sorting a hundred thousand at a time would hold up every other thread."""
    pieces: dict[str, list[str]] = {}
    for id_ in ids:
        pieces.setdefault(id_[:2], []).append(id_)
    for start in sorted(pieces):
        yield from sorted(pieces[start])


def _frame_bytes(frame: SnapshotFrame) -> bytes:
    data = frame.SerializeToString()
    return _LENGTH.pack(len(data)) + data


def _frames(chunks: Iterable[bytes]) -> Iterator[SnapshotFrame]:
    buffer = bytearray()
    for chunk in chunks:
        buffer += chunk
        while len(buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer)
            if length > _LONGEST_FRAME:
                raise InternalError(f"the snapshot is damaged: a frame of {length} bytes")
            end = _LENGTH.size + length
            if len(buffer) < end:
                break
            data = bytes(buffer[_LENGTH.size : end])
            del buffer[:end]
            try:
                yield SnapshotFrame.FromString(data)
            except DecodeError as error:
                raise InternalError("the snapshot is damaged: a frame cannot be read") from error


def _build(index: int, objects: Sequence[StoreObject]) -> Snapshot:
    empty = Snapshot()
    editors: dict[Kind, Editor[Any]] = {kind: empty.table(kind).edit() for kind in Kind if kind is not Kind.CLUSTER}
    cluster: Cluster | None = None
    # Slots list their tasks oldest first: by creation, as the entries brought them.
    for obj in sorted(objects, key=lambda obj: (obj.meta.created_index, obj.id)):
        if isinstance(obj, Cluster):
            cluster = obj
        else:
            editors[kind_of(obj)].put(obj)

    def table(kind: Kind) -> Any:
        return editors[kind].finish()

    return Snapshot(
        index,
        cluster,
        table(Kind.NODE),
        table(Kind.SERVICE),
        table(Kind.REVISION),
        table(Kind.TASK),
        table(Kind.NETWORK),
    )
