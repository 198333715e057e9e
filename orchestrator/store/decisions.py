"""What a pure step returns: changes to commit, and when to look again where nothing else happens first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.store.changes import Change


@dataclass(frozen=True)
class Decision:
    """Changes in order, and the wall-clock time (seconds) at which the step wants to be asked again; None: only on events."""

    changes: tuple[Change, ...] = ()
    wake_at: float | None = None


def earliest(times: Iterable[float | None]) -> float | None:
    """The first of some wake-up times."""
    return min((time for time in times if time is not None), default=None)
