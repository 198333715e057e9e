"""What becomes of the tasks of nodes that are gone.

The dispatcher says which nodes are down; their tasks are replaced by the services' controllers. Here is the end of the
story: a task whose node has been down for a day, or was removed from the swarm, is ORPHANED – nobody owns it any more. Its
addresses stay reserved until its agent confirms that it stopped, or the node is removed.
"""

from __future__ import annotations

from collections.abc import Iterable

from swarm.clock import seconds_of, timestamp
from swarm.v1.types_pb2 import NODE_STATE_DOWN, TASK_STATE_ORPHANED, TASK_STATE_SHUTDOWN, Task, TaskStatus

from orchestrator.store import Change, Decision, SetDesiredState, SetTaskStatus, Snapshot, earliest
from orchestrator.store.states import is_ended

ORPHANED_AFTER = 24 * 3600.0  # seconds of a node being down


def orphan_tasks(snapshot: Snapshot, node_ids: Iterable[str], now: float) -> Decision:
    """Orphans the tasks of those of `node_ids` that are removed, or down for too long. `now`: wall clock."""
    changes: list[Change] = []
    wakes: list[float | None] = []
    for node_id in sorted(node_ids):
        node = snapshot.nodes.get(node_id)
        if node is not None and node.status.state != NODE_STATE_DOWN:
            continue
        if node is not None:
            at = seconds_of(node.status.since) + ORPHANED_AFTER
            if at > now:
                wakes.append(at)
                continue
        why = "the node was removed from the swarm" if node is None else "the node has been down for a day"
        for task in sorted(snapshot.tasks.on_node(node_id), key=lambda task: task.id):
            if not is_ended(task):
                changes += _orphan(task, why, now)
    return Decision(tuple(changes), earliest(wakes))


def _orphan(task: Task, why: str, now: float) -> Iterable[Change]:
    status = TaskStatus()
    status.CopyFrom(task.status)
    status.state, status.error = TASK_STATE_ORPHANED, why
    status.at.CopyFrom(timestamp(now))
    yield SetTaskStatus(task.id, status)
    if task.slot == 0:  # a replicated task is replaced by its service, which then gives it up; see `slots`
        yield SetDesiredState(task.id, TASK_STATE_SHUTDOWN)
