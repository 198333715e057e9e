"""Which images may be removed, and that nothing is removed while images move."""

from __future__ import annotations

import asyncio

import pytest
from swarm.errors import InUse

from agent.images.layers import KEPT, Record
from agent.images.pruning import Traffic, unneeded


def record(image_id: str, *names: str, layer: str = "") -> Record:
    return Record(image_id, "", frozenset(), names, layer or f"of {image_id}", 0.0)


TAGGED = record("tagged", "r:5000/web:2", "r:5000/web@sha256:2")
OLD = record("old", "r:5000/web@sha256:1")
BARE = record("bare")
REMOVED = record("removed", f"{KEPT}removed")
ALL = [TAGGED, OLD, BARE, REMOVED]


@pytest.mark.parametrize(
    ("used", "every", "chosen"),
    [
        (set(), False, [OLD, BARE, REMOVED]),
        (set(), True, ALL),
        ({"old", "removed"}, False, [BARE]),
        ({"tagged", "bare"}, True, [OLD, REMOVED]),
        ({"tagged", "old", "bare", "removed"}, True, []),
    ],
)
def test_what_a_container_stands_on_is_never_chosen(used: set[str], every: bool, chosen: list[Record]) -> None:
    assert unneeded(ALL, used, {}, every=every) == chosen


def test_the_steps_of_a_build_stay_with_the_image_that_they_led_to() -> None:
    parents = {"top": "middle", "middle": "base", "base": "", "old": "base"}
    web = record("web", "r/web:1", layer="top")
    steps = [
        record("step", layer="middle"),
        record("label", layer="top"),
        record("from", "r/base@sha256:1", layer="base"),
    ]
    left = record("left", layer="old")
    images = [web, *steps, left]
    assert unneeded(images, set(), parents, every=False) == [steps[2], left], "a base known by its digest only goes"
    assert unneeded(images, {"web"}, parents, every=True) == [steps[2], left]
    assert unneeded(images, set(), parents, every=True) == images


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_pruning_waits_for_what_moves_and_what_would_move_waits_for_pruning() -> None:
    traffic, order = Traffic(), list[str]()
    arrive, finish = asyncio.Event(), asyncio.Event()

    async def move(name: str, until: asyncio.Event) -> None:
        async with traffic.moving(), traffic.moving():
            order.append(f"{name} moves")
            await until.wait()
        order.append(f"{name} arrived")

    async def prune() -> None:
        async with traffic.stopped():
            order.append("prunes")
            await finish.wait()
        order.append("pruned")

    arrived = asyncio.Event()
    arrived.set()
    async with asyncio.TaskGroup() as group:
        group.create_task(move("first", arrive))
        await settle()
        group.create_task(prune())
        await settle()
        group.create_task(move("second", arrived))  # pruning that waits holds nobody up
        await settle()
        assert order == ["first moves", "second moves", "second arrived"]
        arrive.set()
        await settle()
        group.create_task(move("third", arrived))
        await settle()
        assert order[3:] == ["first arrived", "prunes"]
        finish.set()
    assert order[5:] == ["pruned", "third moves", "third arrived"]


async def test_pruning_gives_up_where_images_keep_moving_and_can_be_repeated() -> None:
    traffic = Traffic()
    async with traffic.moving():
        with pytest.raises(InUse, match="being pulled"):
            async with traffic.stopped(wait=0):
                pytest.fail("pruned what moves")
    async with traffic.stopped():
        pass
    async with asyncio.timeout(1), traffic.moving():
        pass


async def test_whoever_is_interrupted_holds_nothing_up() -> None:
    traffic = Traffic()
    for held in (traffic.moving(), traffic.stopped()):
        with pytest.raises(OSError, match="broken"):
            async with held:
                raise OSError("broken")
    async with asyncio.timeout(1), traffic.stopped():
        waiting = asyncio.ensure_future(traffic.moving().__aenter__())
        await settle()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    async with asyncio.timeout(1), traffic.stopped():
        pass
