"""Running an asynchronous generator in one task while somebody else takes its values.

A generator that is stepped with `anext` under timeouts or from several tasks runs each step in another task, and then the
task groups and timeouts inside it do not work: they belong to the task that entered them. `Pumped` gives the generator one
task from its first step to its last. As with a plain generator, the next step begins when the next value is asked for: what
stands after a `yield` runs once the value was dealt with.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from swarm.cancellation import cancelled, raise_if_cancelled
from swarm.errors import Unavailable

T = TypeVar("T")


@dataclass(frozen=True)
class _Value(Generic[T]):
    value: T


@dataclass(frozen=True)
class _End:
    error: Exception | None


class Pumped(Generic[T]):
    """An asynchronous iterator over `values`. A wait for the next value may be cancelled without losing one. `close` it (or
    use `async with`): that cancels the generator where it is, and waits for its clean-up."""

    def __init__(self, values: AsyncIterator[T]) -> None:
        self._queue: asyncio.Queue[_Value[T] | _End] = asyncio.Queue(maxsize=1)
        self._wanted = asyncio.Event()
        self._task = asyncio.create_task(self._run(values))
        self._end: _End | None = None

    async def _run(self, values: AsyncIterator[T]) -> None:
        error: Exception | None = None
        try:
            await self._wanted.wait()
            async for value in values:
                self._wanted.clear()
                self._queue.put_nowait(_Value(value))
                await self._wanted.wait()
        except asyncio.CancelledError:
            raise_if_cancelled()  # by `close`; else a call below was cancelled, and who takes the values must know
            error = Unavailable("the answers were cut off; repeat to go on")
        except Exception as failure:  # noqa: BLE001 – raised again by who takes the values
            error = failure
        finally:
            closing = getattr(values, "aclose", None)
            if closing is not None:
                await closing()
        self._queue.put_nowait(_End(error))

    def __aiter__(self) -> Pumped[T]:
        return self

    async def __anext__(self) -> T:
        """The next value. Raises what the generator raised, StopAsyncIteration at its end."""
        if self._end is None:
            if self._queue.empty():
                self._wanted.set()
            item = await self._queue.get()
            if isinstance(item, _Value):
                return item.value
            self._end = item
        if self._end.error is not None:
            raise self._end.error
        raise StopAsyncIteration

    async def close(self) -> None:
        await cancelled(self._task)

    async def __aenter__(self) -> Pumped[T]:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
