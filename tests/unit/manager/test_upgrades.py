"""Feature levels: what is written while managers of two versions run, and who is let in."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from swarm.errors import SwarmError, Unavailable
from swarm.v1 import types_pb2 as types
from swarm.v1.store_pb2 import Command

from orchestrator.consensus import Member
from orchestrator.manager.__main__ import EXIT_TOO_OLD, exit_code
from orchestrator.manager.upgrades import FeatureKeeper
from orchestrator.store import Create, Store, features
from orchestrator.store.features import NewerVersion
from tests.unit.dispatcher.worlds import World

MEMBERS = tuple(Member(name, f"{name}:2378") for name in ("m1", "m2", "m3"))


class Enough(Exception):
    """The keeper would wait."""


def keeper(
    world: World, levels: dict[str, int | SwarmError], waits: Sequence[dict[str, int | SwarmError]] = ()
) -> FeatureKeeper:
    following = iter(waits)

    async def ask(member: Member) -> int:
        level = levels[member.node_id]
        if isinstance(level, SwarmError):
            raise level
        return level

    async def pause(_: float) -> None:
        try:
            levels.update(next(following))
        except StopIteration:
            raise Enough from None

    return FeatureKeeper(world.store, world.transactions, lambda: MEMBERS, ask, "m1", pause=pause)


async def cluster_at(level: int) -> World:
    world = World()
    await world.commit(Create(types.Cluster(id="c1", epoch=1, feature_level=level)))
    return world


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "SUPPORTED", 3)


@pytest.mark.usefixtures("newer")
async def test_the_level_rises_when_the_last_manager_supports_it() -> None:
    world = await cluster_at(1)
    gone = Unavailable("it does not answer")
    await keeper(world, {"m2": 1, "m3": 3}, [{"m2": gone}, {"m2": 3}]).run()
    assert features.level_of(world.store.snapshot().cluster) == 3


@pytest.mark.usefixtures("newer")
async def test_the_level_is_what_all_have_in_common() -> None:
    world = await cluster_at(1)
    with pytest.raises(Enough):
        await keeper(world, {"m2": 2, "m3": 3}).run()
    assert features.level_of(world.store.snapshot().cluster) == 2


@pytest.mark.usefixtures("newer")
async def test_one_old_manager_holds_the_level() -> None:
    world = await cluster_at(2)
    with pytest.raises(Enough):
        await keeper(world, {"m2": 1, "m3": 3}).run()
    assert features.level_of(world.store.snapshot().cluster) == 2, "it never sinks"


@pytest.mark.usefixtures("newer")
async def test_a_snapshot_is_written_at_the_agreed_level(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await cluster_at(1)
    data = b"".join(world.store.capture()())
    monkeypatch.setattr(features, "SUPPORTED", 1)
    older = Store()
    older.restore(world.store.snapshot().index, [data])
    assert older.snapshot().cluster is not None


@pytest.mark.usefixtures("newer")
async def test_what_a_newer_version_wrote_stops_an_older_one(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await cluster_at(2)
    data = b"".join(world.store.capture()())
    monkeypatch.setattr(features, "SUPPORTED", 1)
    with pytest.raises(NewerVersion, match="update it"):
        Store().restore(world.store.snapshot().index, [data])
    with pytest.raises(NewerVersion, match="entry 7 of the log has schema 2, this manager knows up to 1") as stopped:
        Store().apply(7, Command(schema=2).SerializeToString())
    assert exit_code(stopped.value) == EXIT_TOO_OLD


async def test_an_older_manager_stops_where_the_level_rises_above_it() -> None:
    with pytest.raises(NewerVersion, match="feature level 2"):
        await cluster_at(2)
