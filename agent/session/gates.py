"""A number that only grows within one history of the swarm, and waiting for it to reach a value."""

from __future__ import annotations

import asyncio


class Gate:
    """Holds back whoever waits until the value has been reached."""

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self._changed = asyncio.Event()

    def advance(self, value: int) -> None:
        """Raises the value; a lower one changes nothing."""
        if value <= self.value:
            return
        self.value = value
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def restart(self) -> None:
        """Begins anew at 0: what was reached before is of another history."""
        self.value = 0

    async def reached(self, value: int, timeout: float) -> bool:
        """Whether the value was reached within `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while self.value < value:
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True
