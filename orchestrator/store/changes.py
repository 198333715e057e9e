"""What a decision returns and a transaction commits: a list of changes.

`Create`, `Update`, `Remove` speak of whole objects. `SetTaskStatus` and `SetDesiredState` speak of the two halves of a task
that different owners move: both only ever move forward, so they merge instead of conflicting – the agents' statuses that
stream in never make a controller's transaction fail, and neither overwrites the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from swarm.v1 import store_pb2
from swarm.v1.types_pb2 import Task, TaskState, TaskStatus

from orchestrator.store.features import NewerVersion
from orchestrator.store.objects import Key, Kind, StoreObject, copy_of, key_of, unwrap_key, wrap, wrap_key, wrapped


@dataclass(frozen=True)
class Create:
    """Adds `object`; fails where its id, or a name that must be unique, exists."""

    object: StoreObject


@dataclass(frozen=True)
class Update:
    """Replaces the object of that id; fails where the stored version is not `object.meta.version`, the one read."""

    object: StoreObject


@dataclass(frozen=True)
class Remove:
    """Removes an object; ignored where it is gone. Fails where `version` is given and the stored version is another."""

    kind: Kind
    id: str
    version: int = 0


@dataclass(frozen=True)
class SetTaskStatus:
    """Sets what was observed of a task. Never moves it back; ignored where the task is gone or has ended."""

    task_id: str
    status: TaskStatus


@dataclass(frozen=True)
class SetDesiredState:
    """Sets what is wanted of a task: only forward (READY → RUNNING → SHUTDOWN → REMOVE); ignored where it is gone."""

    task_id: str
    state: TaskState.ValueType


Change = Create | Update | Remove | SetTaskStatus | SetDesiredState


def key_of_change(change: Change) -> Key:
    match change:
        case Create(obj) | Update(obj):
            return key_of(obj)
        case Remove(kind, id_):
            return kind, id_
        case SetTaskStatus(task_id) | SetDesiredState(task_id):
            return Kind.TASK, task_id


def to_action(change: Change) -> store_pb2.Action:
    match change:
        case Create(obj):
            return store_pb2.Action(create=wrap(obj))
        case Update(obj):
            return store_pb2.Action(update=wrap(obj))
        case Remove(kind, id_, version):
            return store_pb2.Action(remove=store_pb2.RemoveObject(key=wrap_key((kind, id_)), version=version))
        case SetTaskStatus(task_id, status):
            return store_pb2.Action(set_status=store_pb2.SetTaskStatus(task_id=task_id, status=status))
        case SetDesiredState(task_id, state):
            return store_pb2.Action(set_desired=store_pb2.SetDesiredState(task_id=task_id, desired_state=state))


def from_action(action: store_pb2.Action) -> Change:
    """The change, whose objects are parts of `action`: whoever keeps one copies it, as `apply_changes` does for committed
    entries. Raises NewerVersion where the action is of a kind that this version does not know."""
    match action.WhichOneof("action"):
        case "create":
            return Create(wrapped(action.create))
        case "update":
            return Update(wrapped(action.update))
        case "remove":
            kind, id_ = unwrap_key(action.remove.key)
            return Remove(kind, id_, action.remove.version)
        case "set_status":
            return SetTaskStatus(action.set_status.task_id, action.set_status.status)
        case "set_desired":
            return SetDesiredState(action.set_desired.task_id, action.set_desired.desired_state)
    raise NewerVersion("the log holds a change of a kind that this version does not know; update this manager")


def merge_changes(changes: Iterable[Change]) -> list[Change]:
    """The same effect with at most one change of each object (a status beside a desired state stay two).

    For decisions that were taken one upon the other on a provisional snapshot (`Snapshot.with_changes`): a task that was
    created, allocated and assigned becomes one `Create`. The order of first mention is kept.
    """
    merged: dict[Key, list[Change]] = {}
    for change in changes:
        key = key_of_change(change)
        merged[key] = _merge_one(merged[key], change) if key in merged else [change]
    return [change for group in merged.values() for change in group]


def _merge_one(earlier: list[Change], change: Change) -> list[Change]:
    first = earlier[0] if earlier else None  # None: created and removed again, so the change starts anew
    match change:
        case Remove() if isinstance(first, Create):
            return []
        case Remove(kind, id_) if isinstance(first, Update):
            return [Remove(kind, id_, first.object.meta.version)]
        case Update(obj):  # read from the provisional snapshot, so it holds whatever was set before
            return [Create(obj) if isinstance(first, Create) else Update(obj)]
        case SetTaskStatus() | SetDesiredState() if isinstance(first, Create | Update) and isinstance(
            first.object, Task
        ):
            task = copy_of(first.object)
            if isinstance(change, SetTaskStatus):
                task.status.CopyFrom(change.status)
            else:
                task.desired_state = max(task.desired_state, change.state)
            return [type(first)(task)]
        case SetTaskStatus() | SetDesiredState():  # the other half stays
            return [other for other in earlier if type(other) is not type(change)] + [change]
    return [change]


def split_changes(changes: Sequence[Change], limit_bytes: int) -> Iterator[list[Change]]:
    """`changes` in order, in groups whose entries stay below `limit_bytes`. Each group is a transaction of its own: only for
    decisions that a later step completes when the rest is lost."""
    group: list[Change] = []
    size = 0
    for change in changes:
        cost = to_action(change).ByteSize() + 8
        if group and size + cost > limit_bytes:
            yield group
            group, size = [], 0
        group.append(change)
        size += cost
    if group:
        yield group
