"""What states mean, in one place: which of a task's are final, which own addresses, which serve; when an update is paused.

Observed states only move forward (`TaskState` is ordered). The steps up to ASSIGNED belong to the managers, those from
ACCEPTED to the agent, ORPHANED to the node controller.
"""

from __future__ import annotations

from swarm.v1.types_pb2 import (
    HEALTH_STATE_HEALTHY,
    HEALTH_STATE_UNSPECIFIED,
    TASK_STATE_ASSIGNED,
    TASK_STATE_COMPLETE,
    TASK_STATE_ORPHANED,
    TASK_STATE_REJECTED,
    TASK_STATE_RUNNING,
    UPDATE_STATE_PAUSED,
    UPDATE_STATE_ROLLBACK_PAUSED,
    Service,
    Task,
    TaskState,
)


def is_final(state: TaskState.ValueType) -> bool:
    """COMPLETE, SHUTDOWN, FAILED, REJECTED, ORPHANED: the task will do nothing any more."""
    return state >= TASK_STATE_COMPLETE


def is_ended(task: Task) -> bool:
    """The task's observed state is final."""
    return task.status.state >= TASK_STATE_COMPLETE


def is_live(task: Task) -> bool:
    """The task is, or may still become, a running container that is wanted: neither ended nor told to end."""
    return task.status.state < TASK_STATE_COMPLETE and task.desired_state <= TASK_STATE_RUNNING


def is_confirmed_stopped(task: Task) -> bool:
    """Nothing of the task runs on any host, so its addresses are free and it may be forgotten: its agent said so, or it
    never reached one and will not (desired to end before it had a node)."""
    state = task.status.state
    if state == TASK_STATE_ORPHANED:
        return task.status.stopped or not task.node_id
    if TASK_STATE_COMPLETE <= state <= TASK_STATE_REJECTED:
        return True
    return state < TASK_STATE_ASSIGNED and task.desired_state > TASK_STATE_RUNNING


def is_healthy(task: Task) -> bool:
    """RUNNING, and its health check (if any) says so."""
    return task.status.state == TASK_STATE_RUNNING and task.status.health in (
        HEALTH_STATE_UNSPECIFIED,
        HEALTH_STATE_HEALTHY,
    )


def is_serving(task: Task) -> bool:
    """Names, virtual IPs and published ports may lead to the task."""
    return task.desired_state == TASK_STATE_RUNNING and is_healthy(task)


def is_paused(service: Service) -> bool:
    """The service's update, or its rollback, stopped where it was."""
    return service.update_status.state in (UPDATE_STATE_PAUSED, UPDATE_STATE_ROLLBACK_PAUSED)
