"""Statuses on their way to a manager: the newest of each task, a few batches under way, resent until acknowledged. Pure.

While these wait for their acknowledgements the next collects, so that a busy leader is sent fewer, larger batches. A status
that nobody waits for ("preparing") may be overtaken by its successor before it is sent at all: it waits a moment.
"""

from __future__ import annotations

from swarm.v1 import dispatcher_pb2 as dispatcher
from swarm.v1 import types_pb2 as types

MAX_BATCH = 500  # statuses in one message: well below 4 MiB
MAX_FLIGHTS = 3  # batches that are not acknowledged
PATIENCE = 1.0  # seconds that a status which nobody waits for may be held back


class Outbox:
    def __init__(self) -> None:
        self._waiting: dict[str, types.TaskStatus] = {}
        self._due: dict[str, float] = {}
        self._under_way: dict[int, dict[str, types.TaskStatus]] = {}  # by the batch's sequence number, in order
        self._sequence = 0

    def __len__(self) -> int:
        """Statuses that are not acknowledged yet."""
        return len(self._waiting.keys() | {task_id for batch in self._under_way.values() for task_id in batch})

    def put(self, task_id: str, status: types.TaskStatus, now: float, *, urgent: bool) -> None:
        """Replaces what waits for the task."""
        self._waiting[task_id] = status
        self._due[task_id] = min(self._due.get(task_id, now + PATIENCE), now if urgent else now + PATIENCE)

    def drop(self, task_id: str) -> None:
        """The managers no longer know the task."""
        self._waiting.pop(task_id, None)
        self._due.pop(task_id, None)

    def due_at(self) -> float | None:
        """When `take` has something to send; None while nothing waits or too much is under way."""
        if len(self._under_way) >= MAX_FLIGHTS or not self._due:
            return None
        return min(self._due.values())

    def take(self, now: float) -> dispatcher.StatusBatch | None:
        """The next batch, where one is due: everything that waits goes along."""
        due = self.due_at()
        if due is None or due > now:
            return None
        self._sequence += 1
        batch = dispatcher.StatusBatch(sequence=self._sequence)
        flight = self._under_way[self._sequence] = {}
        for task_id in sorted(self._waiting, key=lambda each: self._due[each])[:MAX_BATCH]:
            status = self._waiting.pop(task_id)
            del self._due[task_id]
            flight[task_id] = status
            batch.updates.append(dispatcher.TaskStatusUpdate(task_id=task_id, status=status))
        return batch

    def acknowledged(self, sequence: int) -> None:
        """Of this batch and of those before it."""
        for settled in [number for number in self._under_way if number <= sequence]:
            del self._under_way[settled]

    def session_lost(self, now: float) -> None:
        """What was under way goes again with the next session, unless something newer waits."""
        newest = {task_id: status for batch in self._under_way.values() for task_id, status in batch.items()}
        for task_id, status in newest.items():
            if task_id not in self._waiting:
                self._waiting[task_id] = status
                self._due[task_id] = now
        self._under_way.clear()
