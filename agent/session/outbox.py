"""Statuses on their way to a manager: the newest of each task, one batch under way, resent until acknowledged. Pure.

While a batch waits for its acknowledgement the next collects, so that a busy leader is sent fewer, larger batches. A status
that nobody waits for ("preparing") may be overtaken by its successor before it is sent at all: it waits a moment.
"""

from __future__ import annotations

from swarm.v1 import dispatcher_pb2 as dispatcher
from swarm.v1 import types_pb2 as types

MAX_BATCH = 500  # statuses in one message: well below 4 MiB
PATIENCE = 0.2  # seconds that a status which nobody waits for may be held back


class Outbox:
    def __init__(self) -> None:
        self._waiting: dict[str, types.TaskStatus] = {}
        self._due: dict[str, float] = {}
        self._under_way: dict[str, types.TaskStatus] = {}
        self._sequence = 0

    def __len__(self) -> int:
        """Statuses that are not acknowledged yet."""
        return len(self._waiting.keys() | self._under_way.keys())

    def put(self, task_id: str, status: types.TaskStatus, now: float, *, urgent: bool) -> None:
        """Replaces what waits for the task."""
        self._waiting[task_id] = status
        self._due[task_id] = min(self._due.get(task_id, now + PATIENCE), now if urgent else now + PATIENCE)

    def drop(self, task_id: str) -> None:
        """The managers no longer know the task."""
        self._waiting.pop(task_id, None)
        self._due.pop(task_id, None)

    def due_at(self) -> float | None:
        """When `take` has something to send; None while nothing waits or a batch is under way."""
        if self._under_way or not self._due:
            return None
        return min(self._due.values())

    def take(self, now: float) -> dispatcher.StatusBatch | None:
        """The next batch, where one is due: everything that waits goes along."""
        due = self.due_at()
        if due is None or due > now:
            return None
        self._sequence += 1
        batch = dispatcher.StatusBatch(sequence=self._sequence)
        for task_id in sorted(self._waiting, key=lambda each: self._due[each])[:MAX_BATCH]:
            status = self._waiting.pop(task_id)
            del self._due[task_id]
            self._under_way[task_id] = status
            batch.updates.append(dispatcher.TaskStatusUpdate(task_id=task_id, status=status))
        return batch

    def acknowledged(self, sequence: int) -> None:
        if sequence == self._sequence:
            self._under_way.clear()

    def session_lost(self, now: float) -> None:
        """What was under way goes again with the next session, unless something newer waits."""
        for task_id, status in self._under_way.items():
            if task_id not in self._waiting:
                self._waiting[task_id] = status
                self._due[task_id] = now
        self._under_way.clear()
