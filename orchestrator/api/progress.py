"""How far a service has come: pure, from a snapshot.

A slot (for global services: a node) counts by its current task: the newest one that is wanted, else the newest. A service
has converged when every wanted slot has a healthy task that is what the service says now and has run for STABLE_SECONDS
(many a program ends right after its start), no slot is too many, and no update is under way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from swarm.clock import seconds_of
from swarm.v1 import control_pb2, types_pb2

from orchestrator.api.listing import fitting
from orchestrator.controllers.service_view import runs_current_spec
from orchestrator.scheduler.constraints import parse_constraint
from orchestrator.store import Snapshot
from orchestrator.store.states import is_healthy, is_live
from orchestrator.store.tables import SlotKey

MAX_TASKS = 2000  # in one message, where they fit; those that are not done come first
STABLE_SECONDS = 1.0  # that a task runs before it counts as one that stays
UNDER_WAY = frozenset({types_pb2.UPDATE_STATE_UPDATING, types_pb2.UPDATE_STATE_ROLLBACK_STARTED})


def current_task(tasks: Sequence[types_pb2.Task]) -> types_pb2.Task:
    """The task that stands for a slot, of all its tasks (oldest first, at least one)."""
    for task in reversed(tasks):
        if is_live(task):
            return task
    return tasks[-1]


def current_tasks(snapshot: Snapshot, service_id: str) -> Iterator[tuple[SlotKey, types_pb2.Task]]:
    """The current task of each slot of a service, also of slots that are on their way out."""
    for key, tasks in snapshot.tasks.slots(service_id):
        if key != "":  # a global task without a node stands for nothing yet
            yield key, current_task(tasks)


def summarize(snapshot: Snapshot, service: types_pb2.Service) -> control_pb2.ServiceSummary:
    """Desired, running and healthy tasks. What a lost node last said of its tasks is no evidence that they run."""
    live = [
        task
        for _, task in current_tasks(snapshot, service.id)
        if is_live(task) and not _is_lost(snapshot, task.node_id)
    ]
    return control_pb2.ServiceSummary(
        service=service,
        desired=_desired(snapshot, service),
        running=sum(task.status.state == types_pb2.TASK_STATE_RUNNING for task in live),
        healthy=sum(is_healthy(task) for task in live),
    )


def _is_lost(snapshot: Snapshot, node_id: str) -> bool:
    node = snapshot.nodes.get(node_id)
    return node is not None and node.status.state == types_pb2.NODE_STATE_DOWN


def _desired(snapshot: Snapshot, service: types_pb2.Service) -> int:
    if service.removing:
        return 0
    if service.spec.mode.HasField("global"):
        return len(wanted_nodes(snapshot, service))
    return service.spec.mode.replicated.replicas


def wanted_nodes(snapshot: Snapshot, service: types_pb2.Service) -> set[str]:
    """The nodes that a global service is to have a task on now: those that are ready, take tasks and meet the constraints,
    and paused ones that have one already."""
    constraints = [parse_constraint(text) for text in service.spec.task.placement.constraints]
    holding = {task.node_id for _, task in current_tasks(snapshot, service.id) if is_live(task)}
    return {
        node.id
        for node in snapshot.nodes
        if node.status.state == types_pb2.NODE_STATE_READY
        and node.spec.availability != types_pb2.AVAILABILITY_DRAIN
        and (node.spec.availability != types_pb2.AVAILABILITY_PAUSE or node.id in holding)
        and all(constraint.allows(node) for constraint in constraints)
    }


def progress(snapshot: Snapshot, service: types_pb2.Service, now: float) -> control_pb2.ServiceProgress:
    """What a watcher of the service is shown. `now`: wall clock."""
    shown = [task for key, task in current_tasks(snapshot, service.id) if is_live(task) or _is_wanted(service, key)]
    shown.sort(key=lambda task: (is_healthy(task), task.slot, task.node_id))
    return control_pb2.ServiceProgress(
        summary=summarize(snapshot, service),
        tasks=sorted(fitting(shown, MAX_TASKS), key=lambda task: (task.slot, task.node_id)),
        converged=settles_in(snapshot, service, now) == 0,
    )


def settles_in(snapshot: Snapshot, service: types_pb2.Service, now: float) -> float | None:
    """Seconds until the service has converged if nothing happens (0: it has); None where something must happen first."""
    if service.removing or service.update_status.state in UNDER_WAY:
        return None
    live = [task for _, task in current_tasks(snapshot, service.id) if is_live(task)]
    if service.spec.mode.HasField("global"):
        wanted = wanted_nodes(snapshot, service)
        live = [task for task in live if task.node_id in wanted]  # those on lost nodes are nobody's measure
    if len(live) != _desired(snapshot, service):
        return None
    if not all(is_healthy(task) and runs_current_spec(snapshot, service, task) for task in live):
        return None
    # By the managers' clocks; whatever those of two leaders differ by, nobody waits longer than the whole time.
    ages = [now - seconds_of(task.status.recorded_at) for task in live]
    return max((min(STABLE_SECONDS, max(0.0, STABLE_SECONDS - age)) for age in ages), default=0.0)


def _is_wanted(service: types_pb2.Service, key: SlotKey) -> bool:
    """A slot within the replicas is shown although its last task ended: that task says why there is none."""
    return isinstance(key, int) and key <= service.spec.mode.replicated.replicas and not service.removing
