"""Keeps Python's cyclic collector away from a large store.

A hundred thousand tasks are half a million objects that the collector would look through at each full round, for a second
in which nothing else runs in the process – long enough to lose an election. They form no cycles: reference counts free
them. So a large store is frozen (`gc.freeze`) from time to time: frozen objects are freed as ever when nothing refers to
them, and the collector's rounds cover only what came since. A small store is left to the collector's own ways.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator

LARGE = 20_000  # objects in the store
# Objects written from one freeze to the next. Each write also makes the tables' inner nodes anew: a round after 20,000 writes
# took 120 to 320 ms, half an election timeout.
WRITES_BETWEEN = 4_000


class CollectorRelief:
    """Counts what the store writes, and freezes."""

    def __init__(self) -> None:
        self._written = 0

    def wrote(self, objects: int, store_size: Callable[[], int]) -> None:
        """`objects` were written to a store that now holds `store_size()`."""
        self._written += objects
        if self._written >= WRITES_BETWEEN and store_size() >= LARGE:
            self._written = 0
            gc.collect()  # a cycle that is garbage already must not be kept for ever; only what is not frozen is looked at
            gc.freeze()


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """No rounds while many objects are made that all stay: they are more than half of the time of a restore. They are frozen
    at its end; the first round would hold up every thread for half a second with them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
