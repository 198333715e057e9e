"""The functional core as one: what events touch is decided anew, and the decisions of one round are one transaction.

A round runs controllers → allocator → scheduler, each upon what the one before would have written
(`Snapshot.with_changes`), so that a service's first tasks are written allocated and assigned, in the entry that creates
them. The core remembers which services and nodes events have touched and when each of them wants to be looked at again. It
does no I/O and reads no clock; a simulation drives it as the leader's loop does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from swarm.v1.types_pb2 import Cluster, ClusterSpec, Node, Service, ServiceRevision, Task

from orchestrator import allocator, scheduler
from orchestrator.controllers.losses import ReplacementBudget
from orchestrator.controllers.nodes import orphan_tasks
from orchestrator.controllers.reaper import reap_service
from orchestrator.controllers.services import reconcile_service
from orchestrator.store import (
    Change,
    Create,
    Decision,
    Kind,
    ObjectChange,
    Snapshot,
    Update,
    earliest,
    merge_changes,
)


@dataclass
class ControlCore:
    """What the leader remembers between two rounds. A new leader makes a new one and calls `touch_all`."""

    new_id: Callable[[], str]
    rotation: allocator.Rotation = field(default_factory=allocator.Rotation)
    budget: ReplacementBudget = field(default_factory=ReplacementBudget)
    _services: set[str] = field(default_factory=set)  # to be looked at in the next round
    _nodes: set[str] = field(default_factory=set)
    _networks: bool = True
    _waiting: set[str] = field(default_factory=set)  # services that lack a port or a virtual IP
    _service_wakes: dict[str, float] = field(default_factory=dict)
    _node_wakes: dict[str, float] = field(default_factory=dict)
    _undecided: tuple[set[str], set[str], bool] = field(default_factory=lambda: (set(), set(), False))

    def touch_all(self, snapshot: Snapshot) -> None:
        """Everything is to be looked at: a new leader, or a watch that had to resync."""
        self._services.update(snapshot.services.ids())
        self._services.update(snapshot.tasks.service_ids())
        self._nodes.update(snapshot.nodes.ids())
        self._nodes.update(snapshot.tasks.node_ids())
        self._networks = True

    def touch(self, snapshot: Snapshot, changes: Iterable[ObjectChange]) -> None:
        """Takes in what changed."""
        nodes: set[str] = set()
        for change in changes:
            for obj in (change.old, change.new):
                match obj:
                    case Task() | ServiceRevision():
                        self._services.add(obj.service_id)
                    case Service():
                        self._services.add(obj.id)
            if change.kind is Kind.NETWORK:
                self._networks = True
            elif change.kind is Kind.NODE and _matters(change):
                nodes.add(change.id)
            elif change.kind is Kind.CLUSTER and _settings(change.old) != _settings(change.new):
                self.touch_all(snapshot)
        if nodes:
            self._touch_nodes(snapshot, nodes)

    def _touch_nodes(self, snapshot: Snapshot, node_ids: set[str]) -> None:
        """All at once: when a thousand are lost, the services are looked through one time."""
        self._nodes |= node_ids
        self._services.update(task.service_id for node_id in node_ids for task in snapshot.tasks.on_node(node_id))
        self._services.update(
            service.id for service in snapshot.services if service.spec.mode.WhichOneof("mode") == "global"
        )

    def decide(self, snapshot: Snapshot, now: float) -> Decision:
        """One round. The changes belong into one transaction (or, where it would be too large, into several in this order);
        `again` takes the round back when it could not be written. `now`: wall clock."""
        services = self._services | _due(self._service_wakes, now)
        nodes = self._nodes | _due(self._node_wakes, now)
        networks = self._networks
        self._undecided = (services | self._waiting, nodes, networks)
        self._services, self._nodes, self._networks = set(), set(), False

        changes = self._control(snapshot, services, nodes, now)
        provisional = snapshot.with_changes(changes) if changes else snapshot
        if services or networks or self._waiting or provisional.tasks.unplaced_count():
            looked_at = set(provisional.services.ids()) if networks else services | self._waiting
            allocated = allocator.step(provisional, looked_at, now, self.rotation).changes
            changes += allocated
            provisional = provisional.with_changes(allocated) if allocated else provisional
            self._waiting = {service_id for service_id in looked_at if allocator.waits(provisional, service_id)}
        if provisional.tasks.unplaced_count():
            changes += scheduler.step(provisional, now).changes
        # What frees a name or an address goes before what takes it: a later step may have given it away already.
        merged = sorted(merge_changes(changes), key=lambda change: isinstance(change, Create | Update))
        return Decision(tuple(merged), self.wake_at())

    def again(self) -> None:
        """The last round was not written: what it looked at is to be looked at again."""
        services, nodes, networks = self._undecided
        self._services |= services
        self._nodes |= nodes
        self._networks |= networks

    def wake_at(self) -> float | None:
        """The wall-clock time at which the next round is due though nothing happens."""
        return earliest([*self._service_wakes.values(), *self._node_wakes.values()])

    def _control(self, snapshot: Snapshot, services: set[str], nodes: set[str], now: float) -> list[Change]:
        self.budget.observe(snapshot, now)
        changes: list[Change] = []
        for node_id in sorted(nodes):
            decision = orphan_tasks(snapshot, (node_id,), now)
            changes += decision.changes
            _remember(self._node_wakes, node_id, decision.wake_at)
        for service_id in sorted(services):
            decision = reconcile_service(snapshot, service_id, now, new_id=self.new_id, budget=self.budget)
            changes += decision.changes
            changes += reap_service(snapshot, service_id).changes
            _remember(self._service_wakes, service_id, decision.wake_at)
        return changes


def _due(wakes: dict[str, float], now: float) -> set[str]:
    return {key for key, at in wakes.items() if at <= now}


def _remember(wakes: dict[str, float], key: str, at: float | None) -> None:
    if at is None:
        wakes.pop(key, None)
    else:
        wakes[key] = at


def _matters(change: ObjectChange) -> bool:
    """Whether a change of a node can change a decision: its state, availability, role, labels or platform moved."""
    return _traits(change.old) != _traits(change.new)


def _settings(obj: object) -> ClusterSpec | None:
    """What the cluster's users chose: how much history is kept, the pools of subnets."""
    return obj.spec if isinstance(obj, Cluster) else None


def _traits(obj: object) -> Sequence[object] | None:
    if not isinstance(obj, Node):
        return None
    description = obj.description
    return (
        obj.status.state,
        obj.spec.availability,
        obj.role,
        dict(obj.spec.labels),
        dict(description.engine_labels),
        description.os,
        description.architecture,
        description.hostname,
    )
