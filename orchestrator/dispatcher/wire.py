"""Assignments as bytes that many sessions share.

A change of an endpoint goes to every node on its network, so the object is serialized once and the bytes are shared: a
*fragment* is one field of an `Assignments` message as it stands on the wire (an object that changed, or the key of one that
went). A message to one node is its header followed by its fragments, wrapped as `ManagerMessage.assignments`. Sets over
3 MiB are cut into several messages, `more` being set on all but the last. What is written here parses with the generated
classes; the tests hold the two against each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from swarm.v1 import dispatcher_pb2 as dispatcher

CHUNK_BYTES = 3 << 20  # below the 4 MiB limit of a message, with room for the header

_CHANGE_TAG = b"\x2a"  # Assignments.changes = 5, length-delimited
_REMOVAL_TAG = b"\x32"  # Assignments.removals = 6, length-delimited
_ASSIGNMENTS_TAG = b"\x12"  # ManagerMessage.assignments = 2, length-delimited


class Key(NamedTuple):
    """What a mirrored object is called on the node: its kind and its id (`NETWORK/TASK` for endpoints)."""

    kind: int
    key: str


Fragments = dict[Key, bytes]


def task_key(task_id: str) -> Key:
    return Key(dispatcher.ASSIGNED_KIND_TASK, task_id)


def revision_key(revision_id: str) -> Key:
    return Key(dispatcher.ASSIGNED_KIND_REVISION, revision_id)


def network_key(network_id: str) -> Key:
    return Key(dispatcher.ASSIGNED_KIND_NETWORK, network_id)


def endpoint_key(network_id: str, task_id: str) -> Key:
    return Key(dispatcher.ASSIGNED_KIND_ENDPOINT, f"{network_id}/{task_id}")


def service_key(network_id: str, service_id: str) -> Key:
    return Key(dispatcher.ASSIGNED_KIND_SERVICE, f"{network_id}/{service_id}")


def peer_key(node_id: str) -> Key:
    return Key(dispatcher.ASSIGNED_KIND_PEER, node_id)


def changed(object_: dispatcher.AssignedObject) -> bytes:
    """The fragment of an object that is new or different."""
    body = object_.SerializeToString()
    return _CHANGE_TAG + _varint(len(body)) + body


def removed(key: Key) -> bytes:
    """The fragment of an object that the node must forget."""
    body = dispatcher.AssignedKey(kind=dispatcher.AssignedKind.ValueType(key.kind), key=key.key).SerializeToString()
    return _REMOVAL_TAG + _varint(len(body)) + body


def messages(
    fragments: Iterable[bytes], *, epoch: int, index: int, complete: bool, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[bytes]:
    """The serialized `ManagerMessage`s that carry `fragments`; at least one, even where there are none."""
    chunk: list[bytes] = []
    size = 0
    for fragment in fragments:
        if chunk and size + len(fragment) > chunk_bytes:
            yield _message(chunk, epoch, index, complete, more=True)
            chunk, size = [], 0
        chunk.append(fragment)
        size += len(fragment)
    yield _message(chunk, epoch, index, complete, more=False)


def _message(fragments: list[bytes], epoch: int, index: int, complete: bool, *, more: bool) -> bytes:
    header = dispatcher.Assignments(epoch=epoch, index=index, complete=complete, more=more).SerializeToString()
    body = b"".join((header, *fragments))
    return _ASSIGNMENTS_TAG + _varint(len(body)) + body


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
