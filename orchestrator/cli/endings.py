"""Whether a service stands still: nothing of it runs that should not, and what ended is not restarted. Pure.

Whether a task is restarted is the managers' to decide (docs/task-states.md); this reads their rule from the other side, so
that nobody waits for what cannot come: by the restart policy, from what the managers show of the service and its tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from swarm.v1 import control_pb2 as control
from swarm.v1 import types_pb2 as types

from orchestrator.cli import words
from orchestrator.cli.task_words import problem_of, task_label

UNDER_WAY = (types.UPDATE_STATE_UPDATING, types.UPDATE_STATE_ROLLBACK_STARTED)
PAUSED = (types.UPDATE_STATE_PAUSED, types.UPDATE_STATE_ROLLBACK_PAUSED)
_BY_ITSELF = (types.TASK_STATE_COMPLETE, types.TASK_STATE_FAILED, types.TASK_STATE_REJECTED)
_VERBS = {types.TASK_STATE_FAILED: "failed", types.TASK_STATE_REJECTED: "was rejected"}


@dataclass(frozen=True)
class Standstill:
    """What is left to say of a service in which nothing happens any more."""

    tasks: Sequence[types.Task]  # that of each slot
    running: int
    completed: int
    failed: Sequence[types.Task]
    why_not_restarted: str = ""  # the first that failed

    def remark(self) -> str:
        """Of a service whose tasks did what was asked: how many of them are done with it."""
        if not self.completed:
            return ""
        rest = f", {words.plural(self.running, 'task')} running" if self.running else ""
        return f"{words.plural(self.completed, 'task')} ran to the end{rest}"

    def failure(self) -> str:
        """Empty where no task failed."""
        if not self.failed:
            return ""
        first = self.failed[0]
        others = len(self.failed) - 1
        more = f" (and {words.plural(others, 'other task')} likewise)" if others else ""
        return f"task {task_label(first)} {reason_of(first)} and is not restarted: {self.why_not_restarted}{more}"


def reason_of(task: types.Task) -> str:
    """How a task ended that should not have: `failed (exit code 3)`."""
    verb = _VERBS.get(task.status.state, "ended")
    return f"{verb} ({problem_of(task) or f'exit code {task.status.container.exit_code}'})"


def is_settled(task: types.Task) -> bool:
    """The task runs and is healthy, and is to go on with that."""
    return (
        task.desired_state == types.TASK_STATE_RUNNING
        and task.status.state == types.TASK_STATE_RUNNING
        and task.status.health in (types.HEALTH_STATE_UNSPECIFIED, types.HEALTH_STATE_HEALTHY)
    )


def may_stand_still(progress: control.ServiceProgress) -> bool:
    """Whether it is worth looking at all tasks, those before the current ones too, for `standstill`."""
    service = progress.summary.service
    if progress.converged or service.removing or service.update_status.state in UNDER_WAY:
        return False
    if not all(task.status.state in _BY_ITSELF or is_settled(task) for task in progress.tasks):
        return False
    # Ended tasks of a global service are not among those that are shown.
    ended = sum(task.status.state in _BY_ITSELF for task in progress.tasks) or (
        progress.summary.desired - len(progress.tasks) if service.spec.mode.HasField("global") else 0
    )
    return (ended > 0 and may_end(service.spec.task.restart)) or (ended == 0 and service.update_status.state in PAUSED)


def may_end(policy: types.RestartPolicy) -> bool:
    """Whether there are tasks that this policy does not restart."""
    return bool(policy.max_attempts) or policy.condition in (
        types.RESTART_CONDITION_NONE,
        types.RESTART_CONDITION_ON_FAILURE,
    )


def standstill(summary: control.ServiceSummary, tasks: Iterable[types.Task]) -> Standstill | None:
    """None where something may still happen. `tasks`: all of the service that the managers remember."""
    service = summary.service
    if service.removing or service.update_status.state in UNDER_WAY:
        return None
    paused = service.update_status.state in PAUSED
    running = completed = 0
    shown: list[types.Task] = []
    failed: list[types.Task] = []
    why = ""
    claimed = [slot for slot in _slots(tasks) if any(_is_wanted(task) for task in slot)]
    if len(claimed) != summary.desired:
        return None
    for slot in claimed:
        current = [task for task in slot if _is_wanted(task)]
        if len(current) > 1:
            return None  # one of them is to take over from the other
        (task,) = current
        shown.append(task)
        if is_settled(task) and (paused or task.revision_id == service.revision_id):
            running += 1
            continue
        # What another revision's tasks came to says nothing of an update that is about to begin.
        reason = why_not_restarted(task, slot, service.spec.task.restart)
        if not reason or task.revision_id != service.revision_id:
            return None
        if task.status.state == types.TASK_STATE_COMPLETE:
            completed += 1
        else:
            failed.append(task)
            why = why or reason
    return Standstill(shown, running, completed, failed, why) if completed or failed or paused else None


def why_not_restarted(task: types.Task, slot: Sequence[types.Task], policy: types.RestartPolicy) -> str:
    """The flag that has an ended task left as it is; empty where it will be restarted, or has not ended by itself. `slot`:
    all tasks of its slot."""
    # The managers' own rule. It comes with much of their program, 0.1 s: only where tasks have ended.
    from orchestrator.controllers.restarts import ended_by_itself, restart_at

    if not ended_by_itself(task) or restart_at(task, slot, policy) is not None:
        return ""
    if policy.condition == types.RESTART_CONDITION_NONE:
        return "--restart-condition none"
    if policy.condition == types.RESTART_CONDITION_ON_FAILURE and task.status.state == types.TASK_STATE_COMPLETE:
        return "--restart-condition on-failure"
    return f"--restart-max-attempts {policy.max_attempts} used up"


def _slots(tasks: Iterable[types.Task]) -> list[list[types.Task]]:
    found: dict[int | str, list[types.Task]] = {}
    for task in sorted(tasks, key=lambda task: (task.slot, task.node_id)):
        found.setdefault(task.slot or task.node_id, []).append(task)
    return list(found.values())


def _is_wanted(task: types.Task) -> bool:
    return task.desired_state <= types.TASK_STATE_RUNNING
