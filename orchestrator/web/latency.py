"""How long tasks wait: what the metrics tell of it, counted while this manager runs.

A snapshot of the store cannot tell it afterwards, so the store is watched for tasks that reach a node and tasks that run.
A manager that starts reads its log once more: tasks from before were counted by whoever ran then.
"""

from __future__ import annotations

from collections.abc import Iterable

from swarm.clock import seconds_of
from swarm.histogram import Histogram
from swarm.v1 import types_pb2 as types

from orchestrator.store import ObjectChange, Store

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class SchedulingLatency:
    """Seconds from a task's creation until it was assigned, and until it ran: `steps`, by name. Only of tasks that were made
    after `since` (wall clock)."""

    def __init__(self, since: float = 0.0) -> None:
        self._since = since
        self.steps = {"assigned": Histogram(_SECONDS), "running": Histogram(_SECONDS)}

    def observe(self, changes: Iterable[ObjectChange]) -> None:
        """Looks at what changed for tasks that took one of the steps."""
        for change in changes:
            if not isinstance(change.new, types.Task) or seconds_of(change.new.meta.created_at) < self._since:
                continue
            before = change.old.status.state if isinstance(change.old, types.Task) else types.TASK_STATE_NEW
            for step, state in (("assigned", types.TASK_STATE_ASSIGNED), ("running", types.TASK_STATE_RUNNING)):
                if before < state <= change.new.status.state <= types.TASK_STATE_RUNNING:
                    self.steps[step].observe(max(0.0, _age(change.new)))

    async def watch(self, store: Store) -> None:
        """Follows the store until cancelled."""
        _, watch = store.watch()
        with watch:
            async for events in watch:
                if events.changes is not None:
                    self.observe(events.changes)


def _age(task: types.Task) -> float:
    return seconds_of(task.status.recorded_at) - seconds_of(task.meta.created_at)
