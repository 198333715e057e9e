"""What a pure step returns: changes to commit, and when to look again where nothing else happens first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from swarm.clock import timestamp
from swarm.v1.types_pb2 import Task

from orchestrator.store.changes import Change, SetTaskStatus
from orchestrator.store.objects import copy_of


@dataclass(frozen=True)
class Decision:
    """Changes in order, and the wall-clock time (seconds) at which the step wants to be asked again; None: only on events."""

    changes: tuple[Change, ...] = ()
    wake_at: float | None = None


def earliest(times: Iterable[float | None]) -> float | None:
    """The first of some wake-up times."""
    return min((time for time in times if time is not None), default=None)


def waiting_because(now: float, task: Task, message: str) -> Iterable[Change]:
    """Says in a task's status why it does not go on, where that is news."""
    if task.status.message != message:
        status = copy_of(task).status
        status.message = message
        status.at.CopyFrom(timestamp(now))
        yield SetTaskStatus(task.id, status)
