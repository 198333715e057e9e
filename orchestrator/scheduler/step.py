"""PENDING → ASSIGNED: which node runs a task, or why none does.

A pure step over a snapshot. Tasks are grouped by revision, so that nodes are filtered once for a group and then chosen from
a heap. A task that replaces another one of its slot and starts only when that one has stopped (desired READY) may take
the other's place where no other node has room.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from swarm.clock import seconds_of, timestamp
from swarm.v1.types_pb2 import (
    TASK_STATE_ASSIGNED,
    TASK_STATE_FAILED,
    TASK_STATE_PENDING,
    TASK_STATE_READY,
    TASK_STATE_REJECTED,
    ServiceRevision,
    Task,
)

from orchestrator.scheduler.constraints import parse_constraint
from orchestrator.scheduler.filters import Demand, Refusals, explain
from orchestrator.scheduler.nodes import NodeTally, tally
from orchestrator.scheduler.spread import SpreadTree
from orchestrator.store import Change, Decision, Snapshot, Update, copy_of
from orchestrator.store.decisions import waiting_because
from orchestrator.store.states import is_ended, is_live
from orchestrator.store.tables import port_key, slot_key

FAILURES_FOR = 300.0  # seconds for which a failure counts against its node


def step(snapshot: Snapshot, now: float) -> Decision:
    """Assigns every task that is PENDING and wanted, where a node is suitable; else says why none is. `now`: wall clock."""
    waiting = [task for task in snapshot.tasks.unplaced() if task.status.state == TASK_STATE_PENDING]
    if not waiting:
        return Decision()
    groups: dict[str, list[Task]] = {}
    for task in sorted(waiting, key=_order):
        groups.setdefault(task.revision_id, []).append(task)
    with_ports = any(task.host_ports for task in waiting)
    tallies = {
        node.id: tally(snapshot, node, with_ports=with_ports)
        for node in sorted(snapshot.nodes, key=lambda node: node.id)
    }
    changes: list[Change] = []
    for revision_id, tasks in groups.items():
        revision = snapshot.revisions.get(revision_id)
        if revision is not None:
            changes += _Group(snapshot, revision, tallies, now).place(tasks)
    return Decision(tuple(changes))


def _order(task: Task) -> tuple[int, str, int, str]:
    """Oldest first; those of this very step (no index yet) last."""
    return task.meta.created_index or 1 << 63, task.service_id, task.slot, task.id


class _Group:
    """The tasks of one revision."""

    def __init__(
        self, snapshot: Snapshot, revision: ServiceRevision, tallies: dict[str, NodeTally], now: float
    ) -> None:
        spec = revision.spec.task
        self.snapshot = snapshot
        self.revision = revision
        self.tallies = tallies
        self.now = now
        self.demand = Demand(
            [parse_constraint(text) for text in spec.placement.constraints],
            spec.reservations,
            spec.placement.max_replicas_per_node,
        )

    def place(self, tasks: Sequence[Task]) -> Iterable[Change]:
        bound = [task for task in tasks if task.node_id]  # of global services: their node is given
        free = [task for task in tasks if not task.node_id]
        yield from (change for task in bound for change in self._place_bound(task))
        if free:
            yield from self._place_free(free)

    def _place_bound(self, task: Task) -> Iterable[Change]:
        refusals = Refusals()
        found = self.tallies.get(task.node_id)
        if found is None:
            yield from waiting_because(self.now, task, "its node is no longer part of the swarm")
            return
        static = self.demand.static_refusal(found.node, refusals)
        reason = static or self.demand.dynamic_refusal(found, task, refusals)
        if reason is None or (not static and self._place_of_predecessor(task, [found]) is not None):
            yield self._assign(task, found)
            return
        refusals.add(reason)
        yield from waiting_because(self.now, task, explain(refusals, self.demand))

    def _place_free(self, tasks: Sequence[Task]) -> Iterable[Change]:
        refusals = Refusals()
        suitable = []
        for found in self.tallies.values():
            reason = self.demand.static_refusal(found.node, refusals)
            if reason is None:
                suitable.append(found)
            else:
                refusals.add(reason)
        preferences = list(self.revision.spec.task.placement.spread)
        tree = SpreadTree(suitable, preferences, self.revision, self._failures(tasks))
        for task in tasks:

            def refuses(candidate: NodeTally, task: Task = task) -> bool:
                reason = self.demand.dynamic_refusal(candidate, task, refusals)
                if reason is not None:
                    refusals.add(reason)
                return reason is not None

            found_node = tree.pop(refuses)
            if found_node is not None:
                yield self._assign(task, found_node)
                tree.push(found_node)
                continue
            successor_of = self._place_of_predecessor(task, suitable)
            if successor_of is not None:
                yield self._assign(task, successor_of)
            else:
                yield from waiting_because(self.now, task, explain(refusals, self.demand))

    def _failures(self, waiting: Sequence[Task]) -> Counter[str]:
        """How often the revision failed of late, by node; looked up only where something waits because of a failure."""
        if not any(task.consecutive_failures for task in waiting):
            return Counter()
        return Counter(
            task.node_id
            for task in self.snapshot.tasks.of_service(self.revision.service_id)
            if task.revision_id == self.revision.id
            and task.status.state in (TASK_STATE_FAILED, TASK_STATE_REJECTED)
            and seconds_of(task.status.recorded_at) > self.now - FAILURES_FOR
        )

    def _place_of_predecessor(self, task: Task, suitable: Sequence[NodeTally]) -> NodeTally | None:
        """A node with room for the task once the task that it waits for has left it."""
        if task.desired_state != TASK_STATE_READY:
            return None
        by_id = {found.node.id: found for found in suitable}
        for other in self.snapshot.tasks.in_slot(task.service_id, slot_key(task)):
            found = by_id.get(other.node_id)
            if other.id == task.id or found is None or is_ended(other):
                continue
            if self._fits_without(task, other, found):
                return found
        return None

    def _fits_without(self, task: Task, other: Task, found: NodeTally) -> bool:
        old = self.snapshot.revisions.get(other.revision_id)
        if old is None:
            return False
        held, wanted = old.spec.task.reservations, self.demand.resources
        if (
            wanted.nano_cpus > found.nano_cpus + held.nano_cpus
            or wanted.memory_bytes > found.memory_bytes + held.memory_bytes
        ):
            return False
        limit = self.demand.max_replicas_per_node
        counted = found.by_service.get(task.service_id, 0) - (1 if is_live(other) else 0)
        if limit and counted >= limit:
            return False
        return all(found.host_ports.get(port_key(port), other.id) == other.id for port in task.host_ports)

    def _assign(self, task: Task, found: NodeTally) -> Change:
        assigned = copy_of(task)
        assigned.node_id = found.node.id
        assigned.status.state = TASK_STATE_ASSIGNED
        assigned.status.message = "assigned to a node"
        assigned.status.at.CopyFrom(timestamp(self.now))
        found.take(task, self.demand.resources)
        return Update(assigned)
