"""The leader's work begins and ends with the leadership."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
from swarm.errors import Unavailable

from orchestrator.manager.bootstrap import ClusterLost
from orchestrator.manager.leadership import LeaderWork
from tests.unit.dispatcher.worlds import World

DEADLINE = 10.0


class Recorder:
    """Tasks that say when they begin and end."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.failure: Exception | None = None
        self.prepare_failures: list[Exception] = []
        self._changed = asyncio.Event()

    def say(self, event: str) -> None:
        self.events.append(event)
        self._changed.set()

    async def prepare(self) -> None:
        self.say("prepare")
        if self.prepare_failures:
            raise self.prepare_failures.pop(0)

    async def task(self) -> None:
        self.say("begin")
        try:
            if self.failure is not None:
                failure, self.failure = self.failure, None
                raise failure
            await asyncio.Event().wait()
        finally:
            self.say("end")

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


def work_of(world: World, recorder: Recorder) -> LeaderWork:
    work = LeaderWork(
        world.log.leadership,
        recorder.prepare,
        [recorder.task],
        monotonic=asyncio.get_running_loop().time,
        rng=random.Random(1),
    )
    world.log.on_leadership(work.leadership_changed)
    return work


async def test_work_follows_the_leadership() -> None:
    world, recorder = World(), Recorder()
    world.log.lose_leadership()
    running = asyncio.create_task(work_of(world, recorder).run())
    await asyncio.sleep(0)
    assert recorder.events == []
    world.log.gain_leadership()
    await recorder.until(lambda: recorder.events == ["prepare", "begin"])
    world.log.lose_leadership()
    await recorder.until(lambda: recorder.events == ["prepare", "begin", "end"])
    world.log.gain_leadership()
    await recorder.until(lambda: recorder.events[3:] == ["prepare", "begin"])
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert recorder.events[-1] == "end"


async def test_another_term_of_the_same_leader_begins_anew() -> None:
    world, recorder = World(), Recorder()
    running = asyncio.create_task(work_of(world, recorder).run())
    await recorder.until(lambda: recorder.events == ["prepare", "begin"])
    world.log.gain_leadership()  # nothing between the terms was noticed
    await recorder.until(lambda: recorder.events == ["prepare", "begin", "end", "prepare", "begin"])
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_task_that_fails_is_begun_again() -> None:
    world, recorder = World(), Recorder()
    recorder.failure = RuntimeError("a defect")
    running = asyncio.create_task(work_of(world, recorder).run())
    await recorder.until(lambda: recorder.events == ["prepare", "begin", "end", "prepare", "begin"])
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_preparation_is_repeated_while_nothing_can_be_written() -> None:
    world, recorder = World(), Recorder()
    recorder.prepare_failures = [Unavailable("no quorum")]
    running = asyncio.create_task(work_of(world, recorder).run())
    await recorder.until(lambda: recorder.events == ["prepare", "prepare", "begin"])
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_lost_cluster_ends_the_manager() -> None:
    world, recorder = World(), Recorder()
    recorder.prepare_failures = [ClusterLost("the state directory was damaged")]
    with pytest.raises(ClusterLost):
        await asyncio.wait_for(work_of(world, recorder).run(), DEADLINE)
