"""Waiting for a condition of the shared state, without polling it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Pulse:
    """Whoever changes the state beats; whoever waits looks again at each beat."""

    def __init__(self) -> None:
        self._beat = asyncio.Event()

    def beat(self) -> None:
        self._beat.set()
        self._beat = asyncio.Event()

    async def wait_until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Whether `condition` came true within `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    await self._beat.wait()
        except TimeoutError:
            return condition()
        return True
