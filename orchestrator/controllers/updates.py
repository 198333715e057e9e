"""Rolling updates: which slots may begin, whether too many failed, and what the service says about it.

The state of an update is in the store: the service's revision and `update_status`, and the tasks. A slot is dirty while its
newest task is of an old spec; it is in flight from the moment that it got a new task until that runs and the delay has
passed. At most `parallelism` slots are in flight. A slot has failed when a task of the new revision ended before it ran,
or within the monitor period. An update is complete when nothing is dirty or in flight and the last monitor period is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from swarm.clock import seconds_of, timestamp
from swarm.names import task_name
from swarm.v1.types_pb2 import (
    FAILURE_ACTION_CONTINUE,
    FAILURE_ACTION_ROLLBACK,
    RESTART_CONDITION_ANY,
    RESTART_CONDITION_UNSPECIFIED,
    TASK_STATE_COMPLETE,
    TASK_STATE_RUNNING,
    UPDATE_STATE_COMPLETED,
    UPDATE_STATE_PAUSED,
    UPDATE_STATE_ROLLBACK_COMPLETED,
    UPDATE_STATE_ROLLBACK_PAUSED,
    UPDATE_STATE_ROLLBACK_STARTED,
    UPDATE_STATE_UNSPECIFIED,
    UPDATE_STATE_UPDATING,
    Service,
    ServiceRevision,
    Task,
    UpdateConfig,
    UpdateState,
)

from orchestrator.controllers.restarts import ended_by_itself, restart_at, running_seconds
from orchestrator.controllers.service_view import ServiceView, Slot
from orchestrator.controllers.slots import begin_update, policy_of
from orchestrator.store import Change, Decision, Update, copy_of, earliest
from orchestrator.store.states import is_ended, is_healthy
from orchestrator.store.tables import SlotKey

DEFAULT_MONITOR = 5.0  # seconds
_IDLE = (UPDATE_STATE_UNSPECIFIED, UPDATE_STATE_COMPLETED, UPDATE_STATE_ROLLBACK_COMPLETED)
_GOING_BACK, _WENT_BACK = "rolling back", "rolled back"
_RUNNING = (UPDATE_STATE_UPDATING, UPDATE_STATE_ROLLBACK_STARTED)


@dataclass(frozen=True)
class UpdateDecision(Decision):
    """Also names the slots that got a new task."""

    begun: frozenset[SlotKey] = frozenset()


@dataclass
class _Progress:
    """Where the slots of a service stand in its update."""

    dirty: list[Slot] = field(default_factory=list)
    in_flight: int = 0
    settling: list[float] = field(default_factory=list)  # when the delay of an updated slot ends
    watched: list[float] = field(default_factory=list)  # when the monitor period of an updated slot ends
    unfinished: int = 0  # clean slots that are neither running nor given up
    failed: list[Task] = field(default_factory=list)  # one of each failed slot


def reconcile_update(view: ServiceView, slots: Sequence[Slot]) -> UpdateDecision:
    """Begins, goes on with, or ends the update of a service. `slots`: those that are claimed and stay."""
    state = view.service.update_status.state
    if state in _IDLE and not any(view.is_dirty(slot.newest) for slot in slots):
        return UpdateDecision()
    if state in _IDLE:
        started = _with_status(view, view.service, UPDATE_STATE_UPDATING, "update in progress")
        return _go_on(view, started, slots, [Update(started)])
    if state in _RUNNING:
        return _go_on(view, view.service, slots, [])
    return UpdateDecision()  # paused


def _go_on(view: ServiceView, service: Service, slots: Sequence[Slot], changes: list[Change]) -> UpdateDecision:
    now = timestamp(view.now)
    if seconds_of(now) < seconds_of(service.update_status.started_at):
        # Written by a leader whose clock was ahead. The tasks that this one makes would count as older than the update.
        service = copy_of(service)
        service.update_status.started_at.CopyFrom(now)
        changes = [*changes, Update(service)]
    rolling_back = service.update_status.state == UPDATE_STATE_ROLLBACK_STARTED
    config = service.spec.rollback if rolling_back else service.spec.update
    progress = _measure(view, service, config, slots)
    if _too_many_failed(progress, config, len(slots)):
        acted = _act_on_failure(view, service, config, progress, slots)
        if acted is not None:
            return UpdateDecision((Update(acted),))
    if progress.dirty:
        room = max(0, parallelism(config, len(slots)) - progress.in_flight)
        chosen = sorted(progress.dirty, key=lambda slot: (is_healthy(slot.newest), slot.key))[:room]
        for slot in chosen:
            changes += begin_update(view, slot, config.order)
        return UpdateDecision(tuple(changes), earliest(progress.settling), frozenset(slot.key for slot in chosen))
    if progress.unfinished or progress.in_flight or progress.watched:
        return UpdateDecision(tuple(changes), earliest([*progress.settling, *progress.watched]))
    if not rolling_back:
        return UpdateDecision((Update(_with_status(view, service, UPDATE_STATE_COMPLETED, "update completed")),))
    # Why it was rolled back stays to be read: nobody else remembers it.
    message = service.update_status.message.replace(_GOING_BACK, _WENT_BACK, 1)
    return UpdateDecision((Update(_with_status(view, service, UPDATE_STATE_ROLLBACK_COMPLETED, message)),))


def parallelism(config: UpdateConfig, slots: int) -> int:
    """How many slots may be in flight."""
    return max(1, slots) if config.all_at_once else config.parallelism or 1


def _measure(view: ServiceView, service: Service, config: UpdateConfig, slots: Sequence[Slot]) -> _Progress:
    progress = _Progress()
    began = seconds_of(service.update_status.started_at)
    monitor = seconds_of(config.monitor) if config.HasField("monitor") else DEFAULT_MONITOR
    delay = seconds_of(config.delay)
    for slot in slots:
        failure = _failure(view, slot, began, monitor)
        if failure is not None:
            progress.failed.append(failure)
        newest = slot.newest
        if view.is_dirty(newest):
            if any(not view.is_dirty(task) for task in slot.older):
                progress.unfinished += (
                    1  # taken back: the older task is what is wanted, the newest one is being given up
                )
            else:
                progress.dirty.append(slot)
            continue
        if newest.meta.version and seconds_of(newest.meta.created_at) < began and not slot.older:
            continue  # not touched by this update
        if is_ended(newest):
            if restart_at(newest, slot.tasks, policy_of(view, newest)) is not None and failure is None:
                progress.unfinished += 1
            continue
        if newest.status.state == TASK_STATE_RUNNING and newest.desired_state == TASK_STATE_RUNNING:
            ran_since = seconds_of(newest.status.recorded_at)
            if slot.older or slot.leaving or ran_since + delay > view.now:
                progress.in_flight += 1
                progress.settling += [ran_since + delay] if ran_since + delay > view.now else []
            if ran_since + monitor > view.now:
                progress.watched.append(ran_since + monitor)
        elif failure is None:  # what failed is left to its restarts, if the failure is tolerated at all
            progress.unfinished += 1
            progress.in_flight += _was_updated(view, slot)
    return progress


def _was_updated(view: ServiceView, slot: Slot) -> bool:
    """The slot had another task before: it is not one that was just added by scaling."""
    return any(task.id != slot.newest.id and view.is_dirty(task) for task in slot.tasks)


def _failure(view: ServiceView, slot: Slot, began: float, monitor: float) -> Task | None:
    """A task of the new revision that failed in this update."""
    for task in reversed(slot.tasks):
        if (
            task.revision_id == view.revision.id
            and ended_by_itself(task)
            and seconds_of(task.meta.created_at) >= began
            and (running_seconds(task) <= monitor)
        ):
            meant_to_end = task.status.state == TASK_STATE_COMPLETE and policy_of(view, task).condition not in (
                RESTART_CONDITION_UNSPECIFIED,
                RESTART_CONDITION_ANY,
            )
            if not meant_to_end:
                return task
    return None


def _too_many_failed(progress: _Progress, config: UpdateConfig, slots: int) -> bool:
    return bool(progress.failed) and len(progress.failed) / max(1, slots) > config.max_failure_ratio


def _act_on_failure(
    view: ServiceView, service: Service, config: UpdateConfig, progress: _Progress, slots: Sequence[Slot]
) -> Service | None:
    """The service as it is after too many failures; None where the update goes on."""
    if config.failure_action == FAILURE_ACTION_CONTINUE:
        return None
    task = progress.failed[0]
    name = task_name(task.service_name, task.slot, task.node_id)
    why = task.status.error or f"it ended with exit code {task.status.container.exit_code}"
    what = f"{len(progress.failed)} failed, first {name}: {why}"
    if service.update_status.state == UPDATE_STATE_ROLLBACK_STARTED:
        return _with_status(view, service, UPDATE_STATE_ROLLBACK_PAUSED, f"rollback paused: {what}")
    if config.failure_action == FAILURE_ACTION_ROLLBACK:
        previous, why_not = _way_back(view, service, slots)
        if previous is not None:
            back = _with_status(view, service, UPDATE_STATE_ROLLBACK_STARTED, f"{_GOING_BACK}: {what}")
            # What the user asked for in the case of failure: the spec says again what is to run. The rest of it stays.
            back.spec.task.CopyFrom(previous.spec.task)
            back.previous_revision_id, back.revision_id = service.revision_id, previous.id
            return back
        what += f"; not rolled back, because {why_not}"
    return _with_status(view, service, UPDATE_STATE_PAUSED, f"update paused: {what}")


def _way_back(view: ServiceView, service: Service, slots: Sequence[Slot]) -> tuple[ServiceRevision | None, str]:
    """The revision that a failed update returns to, or None and why there is none."""
    previous = view.snapshot.revisions.get(service.previous_revision_id)
    if previous is None or not _found_another_spec(view, service, slots):
        return None, "only ports changed"
    if not view.snapshot.networks.has_all_of(previous.spec.task):
        return None, "a network of the previous version was removed"
    return previous, ""


def _found_another_spec(view: ServiceView, service: Service, slots: Sequence[Slot]) -> bool:
    """Whether the update began with tasks of another spec. Where only ports changed it did not, and the revision before is
    what an earlier update replaced: no way back from this one."""
    began = seconds_of(service.update_status.started_at)
    for slot in slots:
        found = [task for task in slot.tasks if seconds_of(task.meta.created_at) < began]
        if found and view.spec_is_old(found[-1].revision_id):
            return True
    return False


def _with_status(view: ServiceView, service: Service, state: UpdateState.ValueType, message: str) -> Service:
    changed = copy_of(service)
    status = changed.update_status
    if state in _RUNNING:
        status.started_at.CopyFrom(timestamp(view.now))
        status.ClearField("completed_at")
    else:
        status.completed_at.CopyFrom(timestamp(view.now))
    status.state, status.message = state, message
    return changed
