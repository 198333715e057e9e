"""Which images nobody needs, and when they may be removed.

Nothing is removed by itself: only `swarmctl image prune` does, on the host where it is called.  Two things protect what is
needed.  An image that a container stands on is never chosen (`unneeded`, pure).  And nothing is chosen while images move –
are pulled, built, read, sent, or fetched for a container that does not stand on them yet: pruning waits for that, and
what would move waits for pruning (`Traffic`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager

from swarm.errors import InUse

from agent.images.layers import KEPT, Record

WAIT = 30.0  # seconds for what moves to arrive


def unneeded(
    records: Collection[Record], used: Collection[str], parents: Mapping[str, str], *, every: bool
) -> list[Record]:
    """The images without a tag – left by newer ones of their name, by builds, or known by their digest only –, with `every`
    all images; never one whose id is in `used`.

    The steps that a build went through are images without a name. Those of an image that stays are kept: they take no
    space besides its own, and the next build is quicker with them. `parents`: layer → the one under it.
    """
    chosen = [record for record in records if record.id not in used and (every or not any(map(_is_tag, record.names)))]
    beneath: set[str] = set()
    for record in records:
        if record not in chosen:
            layer = record.layer
            while layer and layer not in beneath:
                beneath.add(layer)
                layer = parents.get(layer, "")
    return [record for record in chosen if record.names or record.layer not in beneath]


def _is_tag(name: str) -> bool:
    return "@" not in name and not name.startswith(KEPT)


class Traffic:
    """Many may move images at once; pruning needs that nobody does."""

    def __init__(self) -> None:
        self._moving = 0
        self._arrived = asyncio.Event()  # nothing moves
        self._arrived.set()
        self._go = asyncio.Event()  # nothing is being pruned
        self._go.set()
        self._pruning = asyncio.Lock()

    @asynccontextmanager
    async def moving(self) -> AsyncIterator[None]:
        """Waits while images are being pruned. May be nested."""
        while not self._go.is_set():
            await self._go.wait()
        self._moving += 1
        self._arrived.clear()
        try:
            yield
        finally:
            self._moving -= 1
            if not self._moving:
                self._arrived.set()

    @asynccontextmanager
    async def stopped(self, wait: float = WAIT) -> AsyncIterator[None]:
        """Nothing moves. Raises InUse where something still does after `wait` seconds."""
        async with self._pruning:
            try:
                async with asyncio.timeout(wait):
                    while self._moving:
                        await self._arrived.wait()
            except TimeoutError:
                raise InUse(
                    "images are being pulled, built or sent on this host, and none is removed meanwhile; try again later"
                ) from None
            self._go.clear()
            try:
                yield
            finally:
                self._go.set()
