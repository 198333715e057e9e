"""The one retry policy: exponential backoff with full jitter, bounded by attempts or a deadline.

Pure: `delays` yields the waits; `retry` is the thin loop around an operation. Randomness is handed in.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from swarm.cancellation import raise_if_cancelled
from swarm.errors import SwarmError, Unavailable

T = TypeVar("T")


@dataclass(frozen=True)
class Backoff:
    """Waits in seconds: the n-th is drawn from [0.5, 1] × min(maximum, first × factor**n)."""

    first: float = 0.1
    maximum: float = 5.0
    factor: float = 2.0
    attempts: int | None = None

    def delays(self, rng: random.Random) -> Iterator[float]:
        """The waits between attempts, endless where `attempts` is None."""
        wait, count = self.first, 1
        while self.attempts is None or count < self.attempts:
            yield wait * rng.uniform(0.5, 1.0)
            wait, count = min(self.maximum, wait * self.factor), count + 1


async def retry(
    operation: Callable[[], Awaitable[T]],
    *,
    backoff: Backoff,
    rng: random.Random,
    on: tuple[type[SwarmError], ...] = (Unavailable,),
    sleep: Callable[[float], Awaitable[None]] | None = None,  # asyncio's where none is given
) -> T:
    """Repeats `operation` while it fails with one of `on`; the last failure is raised. Bound the whole by a timeout."""
    delays = backoff.delays(rng)
    while True:
        try:
            return await operation()
        except on:
            raise_if_cancelled()
            wait = next(delays, None)
            if wait is None:
                raise
            await (sleep or asyncio.sleep)(wait)
