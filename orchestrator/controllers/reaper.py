"""What may be forgotten: old tasks, removed services, revisions that nothing names.

A task leaves the store only when nothing of it runs: its agent confirmed it, it never reached an agent, or its node was
removed from the swarm. The exception is a service that is removed while a node is down: the service goes, and the tasks
of that node stay, wanted REMOVE, until the node returns or is removed.
"""

from __future__ import annotations

from swarm.v1.types_pb2 import NODE_STATE_DOWN, TASK_STATE_REMOVE, TASK_STATE_RUNNING, Service, Task

from orchestrator.store import Change, Decision, Kind, Remove, SetDesiredState, Snapshot
from orchestrator.store.states import is_confirmed_stopped

DEFAULT_HISTORY = 5  # finished tasks kept for each slot


def reap_service(snapshot: Snapshot, service_id: str) -> Decision:
    """Forgets what a service, or one that is gone, no longer needs."""
    service = snapshot.services.get(service_id)
    if service is None or service.removing:
        return Decision(tuple(_remove_service(snapshot, service_id, service)))
    changes: list[Change] = []
    referenced = {service.revision_id, service.previous_revision_id}
    history: list[tuple[Task, ...]] = []
    for _, tasks in snapshot.tasks.slots(service_id):
        if len(tasks) == 1 and tasks[0].desired_state <= TASK_STATE_RUNNING:
            referenced.add(tasks[0].revision_id)  # nothing to forget in nearly all slots
        else:
            history.append(tasks)
    for tasks in sorted(history, key=lambda tasks: tasks[0].id):
        forgotten = {task.id for task in _forgettable(snapshot, service, tasks)}
        changes += [Remove(Kind.TASK, task.id) for task in tasks if task.id in forgotten]
        referenced.update(task.revision_id for task in tasks if task.id not in forgotten)
    for revision in sorted(snapshot.revisions.of_service(service_id), key=lambda revision: revision.number):
        if revision.id not in referenced:
            changes.append(Remove(Kind.REVISION, revision.id))
    return Decision(tuple(changes))


def may_forget(snapshot: Snapshot, task: Task) -> bool:
    """Whether nothing of the task runs on any node of the swarm."""
    return is_confirmed_stopped(task) or bool(task.node_id and task.node_id not in snapshot.nodes)


def _forgettable(snapshot: Snapshot, service: Service, tasks: tuple[Task, ...]) -> list[Task]:
    finished = [task for task in tasks if task.desired_state > TASK_STATE_RUNNING and may_forget(snapshot, task)]
    if all(task.desired_state > TASK_STATE_RUNNING for task in tasks):
        return finished  # the slot was given up: nobody will ask why
    keep = history_limit(snapshot)
    revision = snapshot.revisions.get(service.revision_id)
    if revision is not None:
        keep = max(keep, revision.spec.task.restart.max_attempts)  # restarts count them
    # What a removed node left behind holds its addresses until it is forgotten.
    unconfirmed = [task for task in finished if not is_confirmed_stopped(task)]
    confirmed = [task for task in finished if is_confirmed_stopped(task)]
    return unconfirmed + confirmed[: max(0, len(confirmed) - keep)]


def history_limit(snapshot: Snapshot) -> int:
    limit = snapshot.cluster.spec.task_history_limit if snapshot.cluster is not None else 0
    return limit or DEFAULT_HISTORY


def _remove_service(snapshot: Snapshot, service_id: str, service: Service | None) -> list[Change]:
    changes: list[Change] = []
    held_up = needed = False
    for task in sorted(snapshot.tasks.of_service(service_id), key=lambda task: (task.slot, task.id)):
        if may_forget(snapshot, task) or (task.desired_state < TASK_STATE_REMOVE and not task.node_id):
            changes.append(Remove(Kind.TASK, task.id))
            continue
        needed = True
        node = snapshot.nodes.get(task.node_id)
        held_up |= node is None or node.status.state != NODE_STATE_DOWN
        if task.desired_state < TASK_STATE_REMOVE:
            changes.append(SetDesiredState(task.id, TASK_STATE_REMOVE))
    if not needed:
        changes += [Remove(Kind.REVISION, revision.id) for revision in snapshot.revisions.of_service(service_id)]
    if service is not None and not held_up:
        changes.append(Remove(Kind.SERVICE, service_id))
    return changes
