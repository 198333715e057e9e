"""The leader's loop: events in, rounds of the functional core, transactions out.

It waits for the watch or for the core's next wake-up, whichever comes first; it never polls. A transaction that conflicts
(somebody else wrote a service, or took a port, in between) is decided anew from the newest snapshot. It ends when this
manager no longer leads; whoever runs it cancels it at once when leadership is lost, and starts a new one when it is gained:
nothing of what it remembers is needed by its successor.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from swarm.clock import Clock
from swarm.errors import (
    AlreadyExists,
    Conflict,
    InternalError,
    OutcomeUnknown,
    ResourceExhausted,
    SwarmError,
    Unavailable,
)
from swarm.ids import IdSource

from orchestrator.controllers.core import ControlCore
from orchestrator.store import Change, Store, Transactions, Watch, split_changes

ENTRY_BYTES = 512 * 1024  # of one transaction of a round; larger rounds are split
COMMIT_TIMEOUT = 10.0  # seconds
BARRIER_TIMEOUT = 10.0  # seconds
PAUSE = 0.5  # seconds before a round that found no room on the disk or in the queue is decided again
MAX_CONFLICTS = 1000  # in a row; more means that what is decided can never be written

log = logging.getLogger(__name__)

RoundObserver = Callable[[int, float], None]  # (changes, seconds from the decision to its commit)


class ControlLoop:
    """Runs controllers, allocator and scheduler on the leader. `observer` is told of each committed round (metrics)."""

    def __init__(
        self,
        store: Store,
        transactions: Transactions,
        *,
        clock: Clock,
        new_id: IdSource,
        observer: RoundObserver = lambda changes, seconds: None,
    ) -> None:
        self._store = store
        self._transactions = transactions
        self._clock = clock
        self._new_id = new_id
        self._observer = observer

    async def run(self) -> None:
        """Runs until cancelled, or returns when this manager does not lead any more. Start it once leadership is `ready`."""
        core = ControlCore(self._new_id)
        snapshot, watch = self._store.watch()
        with watch:
            core.touch_all(snapshot)
            while await self._round(core, watch):
                await self._wait(core, watch)
        log.info("the control loop ends: this manager does not lead any more")

    async def _round(self, core: ControlCore, watch: Watch) -> bool:
        """Decides and commits until nothing is left to decide now; False where this manager does not lead any more."""
        conflicts = 0
        while True:
            began = self._clock.monotonic()
            decision = core.decide(self._store.snapshot(), self._clock.wall())
            if not decision.changes:
                return True
            try:
                await self._commit(decision.changes)
            except (Conflict, AlreadyExists) as error:
                # AlreadyExists: a service that asks for a port by its number was quicker than the choice of that port.
                core.again()
                conflicts += 1
                log.debug("decided anew: %s", error)
                if conflicts > MAX_CONFLICTS:
                    raise InternalError(f"the control loop cannot write its decisions: {error}") from error
            except (OutcomeUnknown, ResourceExhausted, Unavailable) as error:
                core.again()
                if not await self._writable_again(error):
                    return False
            else:
                conflicts = 0
                self._observer(len(decision.changes), self._clock.monotonic() - began)
            self._take(core, watch)

    async def _writable_again(self, error: SwarmError) -> bool:
        """After a commit that failed, or may have: whether to decide again. After an unknown outcome the entry may still come;
        behind a barrier it has come or never will, and the newest snapshot shows which."""
        unsure = isinstance(error, OutcomeUnknown)
        while self._transactions.may_write():
            if unsure:
                try:
                    await self._transactions.barrier(timeout=BARRIER_TIMEOUT)
                except SwarmError as failure:
                    error = failure
                else:
                    return True
            log.warning("the control loop waits: %s", error)
            await asyncio.sleep(PAUSE)  # no room, or too busy: there is no event to wait for
            if not unsure:
                return self._transactions.may_write()
        return False

    async def _commit(self, changes: Sequence[Change]) -> None:
        for group in split_changes(changes, ENTRY_BYTES):
            await self._transactions.commit(group, timeout=COMMIT_TIMEOUT)

    def _take(self, core: ControlCore, watch: Watch) -> None:
        events = watch.take()
        if events is None:
            return
        if events.changes is None:
            core.touch_all(events.snapshot)
        else:
            core.touch(events.snapshot, events.changes)

    async def _wait(self, core: ControlCore, watch: Watch) -> None:
        """Until something happened, or the core wants to look again."""
        wake_at = core.wake_at()
        timeout = None if wake_at is None else max(0.0, wake_at - self._clock.wall())
        try:
            async with asyncio.timeout(timeout):
                await watch.wait()
        except TimeoutError:
            return
        self._take(core, watch)
