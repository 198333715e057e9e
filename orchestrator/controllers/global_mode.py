"""Global services: one slot on every node that may run it.

A node qualifies while it is active (a paused one keeps what it has) and meets the constraints. A node that is down keeps its
slot: its task goes on when it returns.
"""

from __future__ import annotations

from collections.abc import Sequence

from swarm.v1.types_pb2 import AVAILABILITY_DRAIN, AVAILABILITY_PAUSE, NODE_STATE_READY, Node

from orchestrator.controllers.service_view import ServiceView, Slot, stop
from orchestrator.scheduler.constraints import parse_constraint
from orchestrator.store import Change


def cover(view: ServiceView, slots: Sequence[Slot]) -> tuple[list[Change], list[Slot]]:
    """Tasks for qualified nodes that have none, ends those on nodes that do not qualify; the claimed slots that stay and whose
    node can be reached."""
    by_node = {str(slot.key): slot for slot in slots}
    changes: list[Change] = []
    stay: list[Slot] = []
    qualified = {node.id: node for node in view.snapshot.nodes if _qualifies(view, node)}
    for key, slot in by_node.items():
        if slot.current and key not in qualified:
            changes += [stop(task) for task in slot.current]
    for node_id, node in sorted(qualified.items()):
        slot_of_node = by_node.get(node_id)
        up = node.status.state == NODE_STATE_READY
        if slot_of_node is not None and slot_of_node.current:
            stay += [slot_of_node] if up else []
        elif up and node.spec.availability != AVAILABILITY_PAUSE and not (slot_of_node and slot_of_node.leaving):
            changes.append(view.new_task(node_id))
    return changes, stay


def _qualifies(view: ServiceView, node: Node) -> bool:
    constraints = view.revision.spec.task.placement.constraints
    return node.spec.availability != AVAILABILITY_DRAIN and all(
        parse_constraint(text).allows(node) for text in constraints
    )
