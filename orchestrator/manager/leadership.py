"""What runs on the leader only, and while it leads.

`LeaderWork.run` follows the leadership: as soon as this manager leads and has applied everything before its term, the first
transaction is made sure of and the leader's tasks run (the control loop, the membership of managers); when the leadership
ends they are cancelled. A task that fails is a defect: it is logged, and the work begins anew after a pause.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence

from swarm.cancellation import cancelled
from swarm.errors import SwarmError
from swarm.retry import Backoff

from orchestrator.consensus import Leadership
from orchestrator.manager.bootstrap import ClusterLost

log = logging.getLogger(__name__)

_BACKOFF = Backoff(first=0.2, maximum=10.0)
LONG_ENOUGH = 60.0  # seconds of work after which a failure is the first again


class LeaderWork:
    """`prepare` must have returned before `tasks` (each makes one run) begin."""

    def __init__(
        self,
        leadership: Callable[[], Leadership],
        prepare: Callable[[], Awaitable[None]],
        tasks: Sequence[Callable[[], Awaitable[None]]],
        *,
        monotonic: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._leadership = leadership
        self._prepare = prepare
        self._tasks = tasks
        self._monotonic = monotonic
        self._rng = rng
        self._changed = asyncio.Event()

    def leadership_changed(self, _: Leadership | None = None) -> None:
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled. Raises ClusterLost where `prepare` does: this manager cannot lead with the state it has."""
        delays = _BACKOFF.delays(self._rng)
        while True:
            await self._until(leading=True)
            began = self._monotonic()
            work = asyncio.create_task(self._work())
            ended = asyncio.create_task(self._until(leading=False))
            try:
                await asyncio.wait({work, ended}, return_when=asyncio.FIRST_COMPLETED)
                failed = work.done()
            finally:
                results = await cancelled(work, ended)
            if not failed:
                continue
            self._note(results[0])
            if self._monotonic() - began > LONG_ENOUGH:
                delays = _BACKOFF.delays(self._rng)
            await asyncio.sleep(next(delays))

    async def _work(self) -> None:
        term = self._leadership().term
        log.info("this manager leads (term %d)", term)
        await self._prepare()
        async with asyncio.TaskGroup() as group:
            for task in self._tasks:
                group.create_task(_as_coroutine(task()))

    async def _until(self, *, leading: bool) -> None:
        """Until this manager leads and is ready, or until it does not any more (another term counts as that)."""
        term = self._leadership().term
        while True:
            now = self._leadership()
            if (now.is_leader and now.ready) == leading or (not leading and now.term != term):
                return
            self._changed.clear()
            await self._changed.wait()

    @staticmethod
    def _note(result: object) -> None:
        if isinstance(result, ClusterLost):
            raise result
        if isinstance(result, SwarmError):
            log.warning("the leader's work begins anew: %s", result)
        elif isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            log.error("the leader's work failed and begins anew", exc_info=result)


async def _as_coroutine(task: Awaitable[None]) -> None:
    await task
