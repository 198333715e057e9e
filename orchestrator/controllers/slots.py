"""One slot: from what its tasks are to what they should be.

Replacing a task has three forms, which the newest task's desired state tells apart, so that any leader can go on:

* *prepared* (stop-first updates, drains): the successor is wanted READY. It is placed and prepared while the old task
  serves. Once it is ready, the old one is told to stop, and once that has stopped, the successor is wanted RUNNING. A
  successor that cannot be prepared never costs the task that works, but on a drained node: that gets empty all the same.
* *start-first*: the successor is wanted RUNNING at once; the old task is told to stop when the successor is healthy.
* *at once* (failures, lost nodes): the old task is given up and the successor is wanted RUNNING – or READY for as long as
  another task of the slot is still stopping.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from swarm.clock import seconds_of
from swarm.v1.types_pb2 import (
    TASK_STATE_ASSIGNED,
    TASK_STATE_PENDING,
    TASK_STATE_READY,
    TASK_STATE_RUNNING,
    UPDATE_ORDER_START_FIRST,
    RestartPolicy,
    ServiceRevision,
    Task,
    TaskState,
    UpdateOrder,
)

from orchestrator.controllers.restarts import backoff, ended_by_itself, failures_up_to, restart_at
from orchestrator.controllers.service_view import Place, ServiceView, Slot, stop
from orchestrator.store import Change, Decision, SetDesiredState, earliest
from orchestrator.store.states import is_ended, is_healthy, is_live, is_paused

DRAIN_PATIENCE = 30.0  # seconds that a drained node's task may go on serving while successors are prepared


_NOTHING = Decision()


@dataclass
class _Plan:
    changes: list[Change] = field(default_factory=list)
    wakes: list[float | None] = field(default_factory=list)

    def decision(self) -> Decision:
        return Decision(tuple(self.changes), earliest(self.wakes))


def reconcile_slot(view: ServiceView, slot: Slot) -> Decision:
    """Restarts, replacements under way, lost and draining nodes. (Whether a slot may begin an update is decided for the
    service as a whole: `begin_update`.)"""
    if not slot.current or _is_quiet(view, slot):
        return _NOTHING
    plan = _Plan()
    served = _to_bring_back(view, slot)
    if served is not None:
        _bring_back(view, slot, served, plan)
        return plan.decision()
    newest, older = slot.newest, list(_still_useful(view, slot, plan))
    keeper = next((task for task in reversed(older) if not view.is_dirty(task)), None)
    if keeper is not None and view.is_dirty(newest):
        # The update was taken back while the replacement was under way: what was to go is what is wanted again.
        plan.changes += [stop(task) for task in slot.current if task.id != keeper.id]
        return plan.decision()
    place = view.place(newest)
    if is_ended(newest):
        _restart(view, slot, newest, older, plan)
    elif place in (Place.LOST, Place.GONE):
        _replace_lost(view, slot, newest, older, plan)
    elif place is Place.DRAINING:
        _replace_draining(view, slot, newest, older, plan)
    elif older:
        _hand_over(view, newest, older, plan)
    elif newest.desired_state == TASK_STATE_READY and not slot.leaving and not plan.changes:
        plan.changes.append(SetDesiredState(newest.id, TASK_STATE_RUNNING))
    return plan.decision()


def _is_quiet(view: ServiceView, slot: Slot) -> bool:
    """One task, on its way or running: nearly every slot, whenever one is looked at because of another."""
    newest = slot.newest
    return (
        len(slot.current) == 1
        and newest.desired_state == TASK_STATE_RUNNING
        and not is_ended(newest)
        and view.place(newest) is Place.FINE
    )


def _still_useful(view: ServiceView, slot: Slot, plan: _Plan) -> Iterator[Task]:
    """The older tasks that may serve on while the newest gets ready; the others are given up."""
    for task in slot.older:
        if is_ended(task) or task.status.state < TASK_STATE_RUNNING or view.place(task) in (Place.LOST, Place.GONE):
            plan.changes.append(stop(task))
        else:
            yield task


def _to_bring_back(view: ServiceView, slot: Slot) -> Task | None:
    """The task of an old spec that served until now, where it ended, is lost or must move while its update is paused, and the
    newest task cannot take over: what was not accepted must not become all that the slot has."""
    if not is_paused(view.service) or len(slot.current) != 2:
        return None
    served, newest = slot.current
    if not view.spec_is_old(served.revision_id) or served.revision_id == newest.revision_id or _can_take_over(newest):
        return None
    if is_ended(served):
        return served if restart_at(served, slot.tasks, policy_of(view, served)) is not None else None
    return served if view.place(served) is not Place.FINE else None


def _bring_back(view: ServiceView, slot: Slot, served: Task, plan: _Plan) -> None:
    if not is_ended(served) and view.place(served) is Place.DRAINING:
        plan.changes += _begin_again(view, slot, served.revision_id)
        return
    replace = _restart if is_ended(served) else _replace_lost
    replace(view, slot, served, [], plan)
    if plan.changes:
        plan.changes.append(stop(slot.newest))


def _restart(view: ServiceView, slot: Slot, newest: Task, older: list[Task], plan: _Plan) -> None:
    at = restart_at(newest, slot.tasks, policy_of(view, newest))
    if _hurry_drained(view, newest, older, plan) and at is None and not newest.status.HasField("running_since"):
        # The policy is about what ran. The task that is to move still does, and where to was not found yet.
        at = seconds_of(newest.status.recorded_at) + backoff(failures_up_to(newest))
    if at is None:
        return
    if at > view.now:
        plan.wakes.append(at)
        return
    failures = failures_up_to(newest) if ended_by_itself(newest) else 0
    plan.changes += [stop(newest), _successor(view, slot, newest, older, failures)]


def _replace_lost(view: ServiceView, slot: Slot, newest: Task, older: list[Task], plan: _Plan) -> None:
    if not view.budget.take():
        plan.wakes.append(view.budget.next_at())
        return
    plan.changes += [stop(newest), _successor(view, slot, newest, older, newest.consecutive_failures)]


def _replace_draining(view: ServiceView, slot: Slot, newest: Task, older: list[Task], plan: _Plan) -> None:
    if older:
        plan.changes += _begin_again(view, slot, _revision_for(view, newest))
    elif newest.status.state < TASK_STATE_RUNNING:
        plan.changes += [stop(newest), _successor(view, slot, newest, older, newest.consecutive_failures)]
    else:
        plan.changes += _prepared(view, slot, _revision_for(view, newest), view.service.spec.update.order)


def _hand_over(view: ServiceView, newest: Task, older: list[Task], plan: _Plan) -> None:
    """The newest is placed, or waits for a place; the older ones serve until it can take over."""
    if _can_take_over(newest):
        plan.changes += [stop(task) for task in older]
    else:
        _hurry_drained(view, newest, older, plan)


def _hurry_drained(view: ServiceView, newest: Task, older: list[Task], plan: _Plan) -> bool:
    """Stops the tasks of drained nodes whose patience is over, or whose successor finds no place. Whether there are any."""
    drained = [task for task in older if view.place(task) is Place.DRAINING]
    nowhere = newest.status.state <= TASK_STATE_PENDING and bool(newest.status.message)
    for task in drained:
        ends = _patience_ends(view, task, newest)
        if nowhere or view.now >= ends:
            plan.changes.append(stop(task))
        else:
            plan.wakes.append(ends)
    return bool(drained)


def _patience_ends(view: ServiceView, drained: Task, newest: Task) -> float:
    """Measured from the first successor. Where others followed upon it, it may be forgotten: it was made when the node was
    drained."""
    retried = newest.consecutive_failures > 0
    since = view.snapshot.nodes[drained.node_id].meta.updated_at if retried else newest.meta.created_at
    return seconds_of(since) + DRAIN_PATIENCE


def _can_take_over(newest: Task) -> bool:
    if is_ended(newest):
        return False
    return newest.status.state >= TASK_STATE_READY if newest.desired_state == TASK_STATE_READY else is_healthy(newest)


def _successor(view: ServiceView, slot: Slot, old: Task, older: list[Task], failures: int) -> Change:
    """A task in place of one that is given up."""
    desired: TaskState.ValueType = TASK_STATE_RUNNING
    if older:
        desired = old.desired_state  # the replacement goes on in the form that it began in
    elif slot.leaving or any(_may_run(view, task) for task in slot.current):
        desired = TASK_STATE_READY
    return view.new_task(slot.key, revision_id=_revision_for(view, old), desired=desired, consecutive_failures=failures)


def _may_run(view: ServiceView, task: Task) -> bool:
    return is_live(task) and task.status.state >= TASK_STATE_ASSIGNED and not view.is_released(task)


def _prepared(view: ServiceView, slot: Slot, revision_id: str, order: UpdateOrder.ValueType) -> list[Change]:
    """A successor beside a task that serves on until it can take over."""
    if order != UPDATE_ORDER_START_FIRST:
        return [view.new_task(slot.key, revision_id=revision_id, desired=TASK_STATE_READY)]
    if slot.leaving:
        return []  # another container of the slot is still stopping: never three at a time
    return [view.new_task(slot.key, revision_id=revision_id)]


def _begin_again(view: ServiceView, slot: Slot, revision_id: str) -> list[Change]:
    """Another successor in place of the newest task, which has not taken over yet and must not."""
    newest = slot.newest
    if newest.desired_state == TASK_STATE_READY:
        return [stop(newest), view.new_task(slot.key, revision_id=revision_id, desired=TASK_STATE_READY)]
    return [stop(newest)]  # it may have started: the next successor waits until it has stopped


def begin_update(view: ServiceView, slot: Slot, order: UpdateOrder.ValueType) -> list[Change]:
    """Replaces a slot's dirty newest task by one of the service's revision."""
    newest = slot.newest
    if slot.older:  # overtaken by another update
        return _begin_again(view, slot, view.revision.id)
    if is_ended(newest) or newest.status.state < TASK_STATE_ASSIGNED:
        desired = TASK_STATE_READY if slot.leaving else TASK_STATE_RUNNING
        return [stop(newest), view.new_task(slot.key, desired=desired)]
    return _prepared(view, slot, view.revision.id, order)


def policy_of(view: ServiceView, task: Task) -> RestartPolicy:
    """The restart policy of the task's own revision."""
    revision: ServiceRevision = view.snapshot.revisions.get(task.revision_id) or view.revision
    return revision.spec.task.restart


def _revision_for(view: ServiceView, old: Task) -> str:
    """The revision of a replacement: the same, so that an update that was paused does not creep in by restarts."""
    return old.revision_id if view.spec_is_old(old.revision_id) else view.revision.id
