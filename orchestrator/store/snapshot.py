"""The whole state at one index, and how changes lead from one state to the next.

`Snapshot` never changes; taking one is free. `apply_changes` is the only way from one to another, and is used twice: by the
store, for committed entries (with a `Stamp`: the entry's index and its proposer's time), and by `Snapshot.with_changes`, for
decisions that are taken one upon the other before anything is committed. It is all or nothing, and deterministic.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from google.protobuf.timestamp_pb2 import Timestamp
from swarm.errors import AlreadyExists, Conflict
from swarm.v1.types_pb2 import TASK_STATE_ORPHANED, TASK_STATE_REJECTED, Cluster, Meta, Task

from orchestrator.store import rules
from orchestrator.store.changes import Change, Create, Remove, SetDesiredState, SetTaskStatus, Update
from orchestrator.store.objects import Key, Kind, StoreObject, copy_of, key_of, kind_of
from orchestrator.store.states import is_final
from orchestrator.store.tables import (
    Editor,
    NetworkTable,
    NodeTable,
    RevisionTable,
    ServiceTable,
    Table,
    TaskTable,
)

_TABLES = {
    Kind.NODE: "nodes",
    Kind.SERVICE: "services",
    Kind.REVISION: "revisions",
    Kind.TASK: "tasks",
    Kind.NETWORK: "networks",
}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state after the entry `index`. `cluster` is None until the first transaction of a new cluster."""

    index: int = 0
    cluster: Cluster | None = None
    nodes: NodeTable = field(default_factory=NodeTable)
    services: ServiceTable = field(default_factory=ServiceTable)
    revisions: RevisionTable = field(default_factory=RevisionTable)
    tasks: TaskTable = field(default_factory=TaskTable)
    networks: NetworkTable = field(default_factory=NetworkTable)

    def get(self, kind: Kind, id_: str) -> StoreObject | None:
        """The object of that kind and id."""
        if kind is Kind.CLUSTER:
            return self.cluster if self.cluster is not None and self.cluster.id == id_ else None
        return cast("StoreObject | None", self.table(kind).get(id_))

    def table(self, kind: Kind) -> Table[Any]:
        """The table of a kind other than CLUSTER."""
        name = _TABLES.get(kind)
        if name is None:
            raise ValueError(f"there is no table of kind {kind.value}")
        table: Table[Any] = getattr(self, name)
        return table

    def size(self) -> int:
        """How many objects there are, without the cluster itself."""
        return len(self.nodes) + len(self.services) + len(self.revisions) + len(self.tasks) + len(self.networks)

    def objects(self) -> Iterable[StoreObject]:
        """Every object, of every kind."""
        if self.cluster is not None:
            yield self.cluster
        for kind in Kind:
            if kind is not Kind.CLUSTER:
                yield from self.table(kind)

    def with_changes(self, changes: Iterable[Change]) -> Snapshot:
        """The state as it would be. Versions and times are left as they are, so that changes of the result can be merged
        with `changes` (`merge_changes`) into one transaction upon this snapshot. Raises as `apply_changes`."""
        return apply_changes(self, changes, None)[0]


@dataclass(frozen=True, slots=True)
class ObjectChange:
    """One object before (None: created) and after (None: removed)."""

    kind: Kind
    id: str
    old: StoreObject | None
    new: StoreObject | None


@dataclass(frozen=True)
class Stamp:
    """What a committed entry adds to the objects that it writes."""

    index: int
    at: Timestamp


def apply_changes(
    snapshot: Snapshot, changes: Iterable[Change], stamp: Stamp | None
) -> tuple[Snapshot, Sequence[ObjectChange]]:
    """The next snapshot, and what changed in order. Raises Conflict where a version moved, AlreadyExists where an id, a name,
    a port or an address is taken; the snapshot that was handed in stays valid in any case."""
    draft = _Draft(snapshot, stamp)
    for change in changes:
        draft.apply(change)
    return draft.finish(), draft.effects


class _Draft:
    def __init__(self, base: Snapshot, stamp: Stamp | None) -> None:
        self.base = base
        self.stamp = stamp
        self.cluster = base.cluster
        self.editors: dict[Kind, Editor[Any]] = {}
        self.effects: list[ObjectChange] = []
        self.meta = Meta()  # of what the entry creates; made once, entries may hold thousands of objects
        if stamp is not None:
            self.meta = Meta(version=stamp.index, updated_at=stamp.at, created_index=stamp.index, created_at=stamp.at)

    def editor(self, kind: Kind) -> Editor[Any]:
        found = self.editors.get(kind)
        if found is None:
            found = self.editors[kind] = self.base.table(kind).edit()
        return found

    def get(self, key: Key) -> StoreObject | None:
        kind, id_ = key
        if kind is Kind.CLUSTER:
            return self.cluster if self.cluster is not None and self.cluster.id == id_ else None
        return cast("StoreObject | None", self.editor(kind).get(id_))

    def apply(self, change: Change) -> None:
        match change:
            case Create(obj):
                self._create(obj)
            case Update(obj):
                self._update(obj)
            case Remove(kind, id_, version):
                self._remove((kind, id_), version)
            case SetTaskStatus(task_id, status):
                task = self.editor(Kind.TASK).get(task_id)
                if task is not None:
                    self._set_status(task, status)
            case SetDesiredState(task_id, state):
                task = self.editor(Kind.TASK).get(task_id)
                if task is not None and task.desired_state < state:
                    wanted = copy_of(task)
                    wanted.desired_state = state
                    self._put(task, wanted)

    def _create(self, obj: StoreObject) -> None:
        key = key_of(obj)
        if self.get(key) is not None or (key[0] is Kind.CLUSTER and self.cluster is not None):
            raise AlreadyExists(f"{key[0].value} {obj.id} exists already")
        self._put(None, copy_of(obj) if self.stamp is not None else obj)

    def _update(self, obj: StoreObject) -> None:
        key = key_of(obj)
        old = self.get(key)
        if old is None:
            raise Conflict(f"{key[0].value} {obj.id} was removed in the meantime")
        if old.meta.version != obj.meta.version:
            raise Conflict(
                f"{key[0].value} {obj.id} changed in the meantime (version {old.meta.version}, not {obj.meta.version}); "
                "read it again and repeat"
            )
        self._put(old, copy_of(obj) if self.stamp is not None else obj)

    def _remove(self, key: Key, version: int) -> None:
        old = self.get(key)
        if old is None:
            return
        if version and old.meta.version != version:
            raise Conflict(f"{key[0].value} {key[1]} changed in the meantime; read it again and repeat")
        if key[0] is Kind.CLUSTER:
            self.cluster = None
        else:
            self.editor(key[0]).delete(key[1])
        self.effects.append(ObjectChange(key[0], key[1], old, None))

    def _set_status(self, task: Task, status: Any) -> None:
        stored = task.status.state
        if stored == TASK_STATE_ORPHANED and is_final(status.state) and status.state <= TASK_STATE_REJECTED:
            # The node is back: its agent says that the orphan does not run. The state stays; the addresses get free.
            if task.status.stopped:
                return
            confirmed = copy_of(task)
            confirmed.status.stopped = True
            self._put(task, confirmed)
            return
        if status.state < stored or (is_final(stored) and status.state != TASK_STATE_ORPHANED):
            return
        moved = copy_of(task)
        moved.status.CopyFrom(status)
        moved.status.recorded_at.CopyFrom(task.status.recorded_at)
        moved.status.stopped = task.status.stopped
        if moved.status != task.status:
            self._put(task, moved)

    def _put(self, old: StoreObject | None, new: StoreObject) -> None:
        """Stamps and stores `new`, which is ours to change where there is a stamp."""
        kind = kind_of(new)
        if self.stamp is not None:
            self._stamp(new, old, self.stamp)
        if isinstance(new, Cluster):
            self.cluster = new
        else:
            rules.check(self.editor, old, new)
            self.editor(kind).put(new)
        self.effects.append(ObjectChange(kind, new.id, old, new))

    def finish(self) -> Snapshot:
        base = self.base
        edited: dict[Kind, Any] = {kind: editor.finish() for kind, editor in self.editors.items()}
        return Snapshot(
            index=base.index if self.stamp is None else self.stamp.index,
            cluster=self.cluster,
            nodes=edited.get(Kind.NODE, base.nodes),
            services=edited.get(Kind.SERVICE, base.services),
            revisions=edited.get(Kind.REVISION, base.revisions),
            tasks=edited.get(Kind.TASK, base.tasks),
            networks=edited.get(Kind.NETWORK, base.networks),
        )

    def _stamp(self, new: StoreObject, old: StoreObject | None, stamp: Stamp) -> None:
        meta = new.meta
        meta.CopyFrom(self.meta)
        if old is not None:
            meta.created_index = old.meta.created_index
            meta.created_at.CopyFrom(old.meta.created_at)
        if isinstance(new, Task):
            before = old.status.state if isinstance(old, Task) else None
            if before != new.status.state:
                new.status.recorded_at.CopyFrom(stamp.at)
