"""Statuses on their way into the store: coalesced, bounded, acknowledged once they are committed.

Agents report often; only the newest state of a task matters. `StatusQueue` keeps the newest status of each task, and for
each reporter (a session, or on the leader a follower's relay) the sequence numbers that a commit will acknowledge. The
queue outlives a change of leadership: what was taken but not confirmed returns to it. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from swarm.errors import ResourceExhausted
from swarm.v1 import dispatcher_pb2 as dispatcher
from swarm.v1 import types_pb2 as types

from orchestrator.dispatcher.reports import bounded
from orchestrator.store import SetTaskStatus, Snapshot, states

MAXIMUM_PENDING = 100_000  # tasks with a status waiting: about 30 MB
MAXIMUM_BATCH = 4_000  # statuses that travel together: about 1 MB
MAXIMUM_BATCH_BYTES = 2 << 20  # where they are unusually long: a message holds 4 MiB
_AGENTS_STATES = frozenset(  # those before and after are the managers' to say, and a number that is none says nothing
    state for state in types.TaskState.values() if types.TASK_STATE_ACCEPTED <= state <= types.TASK_STATE_REJECTED
)


@dataclass
class StatusBatch:
    """Statuses that travel together, and whom to tell afterwards (reporter → sequence)."""

    number: int
    statuses: dict[str, tuple[str, types.TaskStatus]] = field(default_factory=dict)  # task → (reporting node, status)
    sequences: dict[str, int] = field(default_factory=dict)

    def by_node(self) -> list[dispatcher.NodeStatuses]:
        """As a relay carries it."""
        nodes: dict[str, dispatcher.NodeStatuses] = {}
        for task_id, (node_id, status) in self.statuses.items():
            part = nodes.setdefault(node_id, dispatcher.NodeStatuses(node_id=node_id))
            part.updates.add(task_id=task_id, status=status)
        return list(nodes.values())


@dataclass
class StatusQueue:
    _pending: dict[str, tuple[str, types.TaskStatus]] = field(default_factory=dict)
    _sequences: dict[str, int] = field(default_factory=dict)
    _numbers: int = 0

    def __len__(self) -> int:
        return len(self._pending)

    def __bool__(self) -> bool:
        return bool(self._pending or self._sequences)

    def offer(self, reporter: str, sequence: int, node_id: str, updates: Iterable[dispatcher.TaskStatusUpdate]) -> None:
        """Takes a report in. Raises ResourceExhausted where the queue is full; the reporter repeats it later.
        Raises InvalidArgument where a status is larger than any can be."""
        if len(self._pending) >= MAXIMUM_PENDING:
            raise ResourceExhausted(
                f"{len(self._pending)} task statuses wait to be committed; this manager takes more when they are"
            )
        for update in updates:
            self._merge(update.task_id, node_id, bounded(update.status))
        self._sequences[reporter] = max(sequence, self._sequences.get(reporter, 0))

    def _merge(self, task_id: str, node_id: str, status: types.TaskStatus) -> None:
        known = self._pending.get(task_id)
        if known is None or known[0] != node_id or known[1].state <= status.state:
            self._pending[task_id] = (node_id, status)

    def take(self) -> StatusBatch:
        """The next batch. Reporters are acknowledged by the batch that empties the queue of what they reported."""
        self._numbers += 1
        fitting = self._fitting()
        if fitting == len(self._pending):
            batch = StatusBatch(self._numbers, self._pending, self._sequences)
            self._pending, self._sequences = {}, {}
            return batch
        chosen = list(islice(self._pending, fitting))
        return StatusBatch(self._numbers, {task_id: self._pending.pop(task_id) for task_id in chosen})

    def _fitting(self) -> int:
        """How many of the oldest fit into a batch; at least one."""
        size = number = 0
        for _, status in islice(self._pending.values(), MAXIMUM_BATCH):
            size += status.ByteSize()
            if number and size > MAXIMUM_BATCH_BYTES:
                break
            number += 1
        return number

    def give_back(self, batch: StatusBatch) -> None:
        """The batch was not confirmed: it waits again, newer reports winning."""
        newer, self._pending = self._pending, batch.statuses
        for task_id, (node_id, status) in newer.items():
            self._merge(task_id, node_id, status)
        for reporter, sequence in batch.sequences.items():
            self._sequences[reporter] = max(sequence, self._sequences.get(reporter, 0))

    def forget(self, reporter: str) -> None:
        """The reporter went away: nobody to acknowledge to. What it reported still counts."""
        self._sequences.pop(reporter, None)


def status_changes(snapshot: Snapshot, batch: StatusBatch) -> list[SetTaskStatus]:
    """What of a batch says something new: of tasks of the reporting node, forward only."""
    changes = []
    for task_id, (node_id, status) in batch.statuses.items():
        task = snapshot.tasks.get(task_id)
        if task is None or task.node_id != node_id or status.state not in _AGENTS_STATES:
            continue
        if task.status.state == types.TASK_STATE_ORPHANED:
            news = not task.status.stopped  # its agent came back and says what became of it
        else:
            news = status.state >= task.status.state and not states.is_ended(task) and _differs(task.status, status)
        if news:
            changes.append(SetTaskStatus(task_id, status))
    return changes


def _differs(stored: types.TaskStatus, reported: types.TaskStatus) -> bool:
    """Whether an agent reports something else than what is stored, leaving aside what the store adds."""
    bare = types.TaskStatus()
    bare.CopyFrom(stored)
    bare.ClearField("recorded_at")
    bare.ClearField("stopped")
    return bare != reported
