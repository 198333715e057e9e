"""Brings the newest network view into force, and says from which index on it is.

One loop: views that arrive while one is applied are skipped but for the newest. An index counts as in force when the data
plane holds everything up to it, which is at once where nothing that it programs has changed: stops elsewhere in the swarm
wait for this acknowledgement.

An application touches every container here, and while a service starts each status of each task makes a new view. So the
next one waits twice as long as the last one took: a lone change is in force at once, a burst costs at most a third of a core.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from swarm.cancellation import raise_if_cancelled
from swarm.errors import SwarmError, Unavailable
from swarm.retry import Backoff

from agent.network.interface import DataPlane, NetworkView
from agent.session.gates import Gate

log = logging.getLogger(__name__)

_BACKOFF = Backoff(first=0.1, maximum=5.0)
_LONGEST_PAUSE = 0.1  # seconds between two applications, at most


class NetworkApplier:
    """`submit` the view of each set of assignments; `run` applies. `on_applied` is told each index that came into force."""

    def __init__(self, data_plane: DataPlane, rng: random.Random, on_applied: Callable[[int], None]) -> None:
        self._data_plane = data_plane
        self._rng = rng
        self._on_applied = on_applied
        self._wanted: tuple[int, Callable[[], NetworkView]] | None = None
        self._wanted_index = 0
        self._wake = asyncio.Event()
        self._applied_revision = -1
        self._networks: frozenset[str] = frozenset()  # of the view in force
        self._coming: frozenset[str] | None = None  # of the view that is being applied
        self._rounds = Gate()  # of applications that succeeded
        self._history = 0  # of the swarm: indexes of one say nothing about another
        self.applied_index = 0
        self.error: SwarmError | None = None

    def submit(self, revision: int, index: int, view: Callable[[], NetworkView]) -> None:
        """`revision` moves when what the data plane programs has changed; `view` is only called when it is needed."""
        self._wanted_index = index
        if revision == self._applied_revision and self._wanted is None:
            self._in_force(index)
            return
        self._wanted = (revision, view)
        self._wake.set()

    def restart(self) -> None:
        """The swarm's history was cut (a higher epoch): indexes begin anew, what is in force stays."""
        self._history += 1
        self.applied_index = 0

    async def run(self) -> None:
        now = asyncio.get_running_loop().time
        rest_until = 0.0
        delays = _BACKOFF.delays(self._rng)
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._wanted is None:
                continue
            await asyncio.sleep(max(0.0, rest_until - now()))
            revision, make_view = self._wanted
            view = make_view()
            networks = frozenset(overlay.network.id for overlay in view.overlays)
            self._coming = networks
            history, began = self._history, now()
            try:
                await self._data_plane.apply(view)
            except SwarmError as error:
                raise_if_cancelled()
                self.error = error
                self._rounds.advance(self._rounds.value + 1)
                log.error("the networks could not be brought up to date and are tried again: %s", error)
                wait = next(delays)
                try:
                    async with asyncio.timeout(wait):
                        await self._wake.wait()
                except TimeoutError:
                    self._wake.set()
                continue
            delays = _BACKOFF.delays(self._rng)
            self.error = None
            self._applied_revision = revision
            self._networks, self._coming = networks, None
            if self._wanted is not None and self._wanted[0] == revision:
                self._wanted = None
                self._in_force(self._wanted_index)
            elif history == self._history:
                self._in_force(view.index)
            self._rounds.advance(self._rounds.value + 1)
            rest_until = now() + min(2 * (now() - began), _LONGEST_PAUSE)

    def _in_force(self, index: int) -> None:
        if index > self.applied_index:
            self.applied_index = index
            self._on_applied(index)

    async def holds(self, network_ids: frozenset[str], timeout: float) -> None:
        """Waits until these networks are part of the view in force, and not about to be removed: that is what an older view
        does when the last task of a network ends right before its replacement comes. Raises Unavailable after `timeout`
        seconds."""
        try:
            async with asyncio.timeout(timeout):
                while not self._holds(network_ids):
                    await self._rounds.reached(self._rounds.value + 1, timeout)
        except TimeoutError as error:
            missing = ", ".join(sorted(network_ids - self._networks or network_ids))
            reason = f": {self.error}" if self.error is not None else ""
            raise Unavailable(f"the network {missing} is not set up on this node{reason}") from error

    def _holds(self, network_ids: frozenset[str]) -> bool:
        return network_ids <= self._networks and (self._coming is None or network_ids <= self._coming)
