"""Whether and when a task that ended by itself is replaced in its slot.

All that this needs is in the store: how the task ended and when (the leader's clock), how many tasks of the slot failed in a
row before it, and the slot's history. So a new leader goes on counting where the last one stopped.
"""

from __future__ import annotations

from collections.abc import Sequence

from swarm.clock import seconds_of
from swarm.v1.types_pb2 import (
    RESTART_CONDITION_NONE,
    RESTART_CONDITION_ON_FAILURE,
    TASK_STATE_COMPLETE,
    TASK_STATE_FAILED,
    TASK_STATE_ORPHANED,
    TASK_STATE_REJECTED,
    TASK_STATE_SHUTDOWN,
    RestartPolicy,
    Task,
)

from orchestrator.store.states import is_ended

STABLE_AFTER = 60.0  # seconds of running after which a failure counts as the first one
MAXIMUM_BACKOFF = 60.0  # seconds


def ended_by_itself(task: Task) -> bool:
    """COMPLETE, FAILED or REJECTED: not because anybody wanted it."""
    return task.status.state in (TASK_STATE_COMPLETE, TASK_STATE_FAILED, TASK_STATE_REJECTED)


def failures_up_to(task: Task) -> int:
    """How many tasks of the slot have ended in a row, with `task`; 0 where it had run for long."""
    return 0 if running_seconds(task) >= STABLE_AFTER else task.consecutive_failures + 1


def running_seconds(task: Task) -> float:
    """How long an ended task had run, by its agent's clock; 0 where it never did."""
    if not task.status.HasField("running_since"):
        return 0.0
    return max(0.0, seconds_of(task.status.at) - seconds_of(task.status.running_since))


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures in a row: 0, 1, 2, 4 … 60."""
    return 0.0 if failures <= 1 else min(MAXIMUM_BACKOFF, 2.0 ** min(failures - 2, 10))


def restart_at(task: Task, slot: Sequence[Task], policy: RestartPolicy) -> float | None:
    """The wall-clock time at which an ended task is to be replaced; in the past: at once; None: never. `slot`: all tasks of
    its slot."""
    if task.status.state in (TASK_STATE_SHUTDOWN, TASK_STATE_ORPHANED):
        return 0.0  # stopped with its host, or forgotten: nothing about it failed
    if policy.condition == RESTART_CONDITION_NONE:
        return None
    if policy.condition == RESTART_CONDITION_ON_FAILURE and task.status.state == TASK_STATE_COMPLETE:
        return None
    ended = seconds_of(task.status.recorded_at)
    if policy.max_attempts and _restarts_before(task, slot, policy, ended) >= policy.max_attempts:
        return None
    delay = seconds_of(policy.delay) if policy.HasField("delay") else backoff(failures_up_to(task))
    return ended + delay


def _restarts_before(task: Task, slot: Sequence[Task], policy: RestartPolicy, ended: float) -> int:
    """How often the slot was restarted before, with this revision, within the policy's window. The window is measured back from
    the moment that the task ended, so that the answer does not change while time passes."""
    since = ended - seconds_of(policy.window) if seconds_of(policy.window) else 0.0
    return sum(
        1
        for other in slot
        if other.id != task.id
        and other.revision_id == task.revision_id
        and is_ended(other)
        and ended_by_itself(other)
        and seconds_of(other.status.recorded_at) >= since
    )
