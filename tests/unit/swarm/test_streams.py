from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from swarm.errors import Unavailable
from swarm.streams import Pumped


async def test_values_then_the_end_again_and_again() -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1
        yield 2

    async with Pumped(numbers()) as pumped:
        assert [number async for number in pumped] == [1, 2]
        with pytest.raises(StopAsyncIteration):
            await anext(pumped)


async def test_a_failure_comes_after_the_values_before_it() -> None:
    async def failing() -> AsyncIterator[int]:
        yield 1
        raise ValueError("no more")

    async with Pumped(failing()) as pumped:
        assert await anext(pumped) == 1
        with pytest.raises(ValueError, match="no more"):
            await anext(pumped)


async def test_a_cancelled_wait_loses_nothing() -> None:
    ready = asyncio.Event()

    async def late() -> AsyncIterator[int]:
        await ready.wait()
        yield 1

    async with Pumped(late()) as pumped:
        waiting = asyncio.ensure_future(pumped.__anext__())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        ready.set()
        assert await anext(pumped) == 1


async def test_closing_runs_the_clean_up_in_the_generators_own_task() -> None:
    tasks = []

    async def careful() -> AsyncIterator[int]:
        tasks.append(asyncio.current_task())
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.Event().wait())
                while True:
                    yield 1
        finally:
            tasks.append(asyncio.current_task())

    pumped = Pumped(careful())
    assert await anext(pumped) == 1
    await pumped.close()
    assert len(tasks) == 2
    assert tasks[0] is tasks[1]


async def test_the_next_step_begins_when_the_next_value_is_asked_for() -> None:
    dealt_with: list[int] = []

    async def outbox() -> AsyncIterator[int]:
        for number in range(3):
            yield number
            dealt_with.append(number)

    async with Pumped(outbox()) as pumped:
        assert await anext(pumped) == 0
        await asyncio.sleep(0)
        assert dealt_with == []
        assert await anext(pumped) == 1
        assert dealt_with == [0]


async def test_closing_before_the_first_value_never_begins() -> None:
    begun = []

    async def numbers() -> AsyncIterator[int]:
        begun.append(1)
        yield 1

    async with Pumped(numbers()):
        await asyncio.sleep(0)
    assert begun == []


async def test_a_generator_that_is_cancelled_by_what_it_waits_for_is_no_endless_wait() -> None:
    """`swarmctl` waited for the next answer for ever: grpc.aio raises CancelledError where a call was cancelled on our own
    side, as by closing its connection, and the end of the stream never reached who took its values."""

    async def cut_off() -> AsyncIterator[int]:
        yield 1
        raise asyncio.CancelledError

    async with Pumped(cut_off()) as pumped:
        assert await anext(pumped) == 1
        async with asyncio.timeout(5.0):
            with pytest.raises(Unavailable, match="cut off"):
                await anext(pumped)
