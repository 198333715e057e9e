"""One service: scale, then its update, then each slot that neither of them touched. Pure."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.controllers import global_mode, replicated
from orchestrator.controllers.losses import ReplacementBudget
from orchestrator.controllers.service_view import ServiceView
from orchestrator.controllers.slots import reconcile_slot
from orchestrator.controllers.updates import reconcile_update
from orchestrator.store import Decision, Snapshot, earliest


def reconcile_service(
    snapshot: Snapshot, service_id: str, now: float, *, new_id: Callable[[], str], budget: ReplacementBudget
) -> Decision:
    """What is to change about one service's tasks, and when to look again. `now`: wall clock."""
    service = snapshot.services.get(service_id)
    if service is None or service.removing:
        return Decision()
    revision = snapshot.revisions.get(service.revision_id)
    if revision is None:
        return Decision()
    view = ServiceView(snapshot, service, revision, now, new_id, budget)
    slots = view.slots()
    is_global = service.spec.mode.WhichOneof("mode") == "global"
    changes, stay = global_mode.cover(view, slots) if is_global else replicated.scale(view, slots)
    # The update chooses first: a slot that it begins gets its one replacement of this round from it.
    update = reconcile_update(view, stay)
    changes += update.changes
    wakes: list[float | None] = [update.wake_at]
    for slot in stay:
        if slot.key not in update.begun:
            decision = reconcile_slot(view, slot)
            changes += decision.changes
            wakes.append(decision.wake_at)
    return Decision(tuple(changes), earliest(wakes))
