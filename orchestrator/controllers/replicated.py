"""Replicated services: as many claimed slots as the spec says.

New slots get the lowest numbers at which nothing runs any more. Scaling down gives up what helps least: tasks that do not
run, then tasks on the nodes that carry most of the service, then the highest slots.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.controllers.service_view import ServiceView, Slot, stop
from orchestrator.store import Change
from orchestrator.store.states import is_ended, is_healthy

MAX_CREATED_AT_ONCE = 2000  # tasks of a service in one round: a round holds up everything else on the loop


def scale(view: ServiceView, slots: Sequence[Slot]) -> tuple[list[Change], list[Slot]]:
    """The changes that bring the number of claimed slots to the spec's, and the claimed slots that stay."""
    claimed = [slot for slot in slots if slot.current]
    wanted = view.service.spec.mode.replicated.replicas
    if len(claimed) > wanted:
        victims = victims_first(claimed)[: len(claimed) - wanted]
        keys = {slot.key for slot in victims}
        changes = [stop(task) for slot in victims for task in slot.current]
        return changes, [slot for slot in claimed if slot.key not in keys]
    busy = {slot.key for slot in slots if slot.current or slot.leaving}
    created: list[Change] = []
    number = 1
    # The commit of a round that was cut short is the event that begins the next one.
    while len(created) < min(wanted - len(claimed), MAX_CREATED_AT_ONCE):
        if number not in busy:
            created.append(view.new_task(number))
        number += 1
    return created, claimed


def victims_first(claimed: Sequence[Slot]) -> list[Slot]:
    """The slots in the order in which scaling down gives them up."""
    by_node: dict[str, list[Slot]] = {}
    for slot in sorted(claimed, key=lambda slot: slot.key):
        by_node.setdefault(slot.current[0].node_id, []).append(slot)
    crowd = {slot.key: rank for members in by_node.values() for rank, slot in enumerate(members)}

    def worth(slot: Slot) -> tuple[bool, int, int, int]:
        runs = any(is_healthy(task) for task in slot.current)
        progress = max(0 if is_ended(task) else int(task.status.state) for task in slot.current)
        return runs, 0 if runs else progress, -crowd[slot.key], -int(slot.key)

    return sorted(claimed, key=worth)
