"""What the store holds: the kinds of objects, and how an object is told apart, wrapped and unwrapped.

An object is one of the protobuf messages of `types.proto`. It is identified by its kind and id. Whatever is in a snapshot
is shared by every reader and is never changed in place: `copy_of` gives the copy that may be changed.
"""

from __future__ import annotations

import enum
from typing import Any, TypeVar, cast

from swarm.errors import InternalError
from swarm.v1 import store_pb2, types_pb2

StoreObject = (
    types_pb2.Cluster
    | types_pb2.Node
    | types_pb2.Service
    | types_pb2.ServiceRevision
    | types_pb2.Task
    | types_pb2.Network
)

ObjectT = TypeVar("ObjectT", bound=StoreObject)


class Kind(enum.Enum):
    """The kinds of objects; the value is the field of `StoredObject` and the word for people."""

    CLUSTER = "cluster"
    NODE = "node"
    SERVICE = "service"
    REVISION = "revision"
    TASK = "task"
    NETWORK = "network"

    # Kinds are part of every key; an enumeration's own hash is a Python function.
    __hash__ = object.__hash__


Key = tuple[Kind, str]

_KIND_OF_TYPE: dict[type, Kind] = {
    types_pb2.Cluster: Kind.CLUSTER,
    types_pb2.Node: Kind.NODE,
    types_pb2.Service: Kind.SERVICE,
    types_pb2.ServiceRevision: Kind.REVISION,
    types_pb2.Task: Kind.TASK,
    types_pb2.Network: Kind.NETWORK,
}


def kind_of(obj: StoreObject) -> Kind:
    return _KIND_OF_TYPE[type(obj)]


def key_of(obj: StoreObject) -> Key:
    return _KIND_OF_TYPE[type(obj)], obj.id


def copy_of(obj: ObjectT) -> ObjectT:
    """A copy that may be changed. Objects of a snapshot may not."""
    copy = type(obj)()
    cast("Any", copy).CopyFrom(obj)
    return copy


def wrap(obj: StoreObject) -> store_pb2.StoredObject:
    """The object as it is written to the log and to snapshots."""
    stored = store_pb2.StoredObject()
    getattr(stored, kind_of(obj).value).CopyFrom(obj)
    return stored


def wrapped(stored: store_pb2.StoredObject) -> StoreObject:
    """The object itself, a part of the message that it came in. It keeps the memory of the whole message alive, so that one
    task would pin its batch: whoever keeps it copies it. Raises InternalError where the kind is unknown."""
    field = stored.WhichOneof("object")
    if field is None:
        raise InternalError("the log holds an object of a kind that this version does not know; update this manager")
    obj: StoreObject = getattr(stored, field)
    return obj


def unwrap(stored: store_pb2.StoredObject) -> StoreObject:
    """A copy of the wrapped object. Raises InternalError where the kind is unknown."""
    return copy_of(wrapped(stored))


def wrap_key(key: Key) -> store_pb2.ObjectKey:
    return store_pb2.ObjectKey(kind=key[0].value, id=key[1])


def unwrap_key(key: store_pb2.ObjectKey) -> Key:
    return Kind(key.kind), key.id
