"""How a cluster begins."""

from __future__ import annotations

from pathlib import Path

import pytest
from swarm.clock import SystemClock
from swarm.errors import AlreadyExists, InternalError, InvalidArgument
from swarm.identity import Role
from swarm.ids import id_source
from swarm.v1 import types_pb2 as types

from orchestrator.manager.bootstrap import ClusterLost, commit_bootstrap, initialise, is_founder
from orchestrator.manager.options import InitOptions, Places
from tests.unit.dispatcher.worlds import World


def options(directory: Path, spec: Path | None = None) -> InitOptions:
    return InitOptions(Places(directory / "state", directory / "run"), "192.0.2.1", "host1", 2378, spec, "drain")


def init(directory: Path, spec: Path | None = None) -> tuple[Places, dict[str, str]]:
    chosen = options(directory, spec)
    return chosen.places, initialise(chosen, clock=SystemClock(), ids=id_source())


async def test_a_new_cluster_begins_once(tmp_path: Path) -> None:
    spec = tmp_path / "spec"
    spec.write_bytes(types.ClusterSpec(name="lab", default_registry="127.0.0.1:5000").SerializeToString())
    places, made = init(tmp_path, spec)
    peer = places.certificates.read().peer
    assert (peer.name, peer.role, peer.cluster_id) == (made["node_id"], Role.MANAGER, made["cluster_id"])
    assert is_founder(places)
    assert places.bootstrap.stat().st_mode & 0o777 == 0o600

    world = World()
    await commit_bootstrap(places, world.store, world.transactions)
    snapshot = world.store.snapshot()
    assert snapshot.cluster is not None
    assert (snapshot.cluster.id, snapshot.cluster.spec.default_registry) == (made["cluster_id"], "127.0.0.1:5000")
    node = snapshot.nodes[made["node_id"]]
    assert node.manager.address == "192.0.2.1:2378"
    assert node.spec.availability == types.AVAILABILITY_DRAIN
    assert snapshot.networks.ingress() is not None
    assert not places.bootstrap.exists()

    await commit_bootstrap(places, world.store, world.transactions)  # a later leader
    assert world.store.snapshot().index == snapshot.index


async def test_a_crash_before_the_file_was_forgotten_begins_nothing_anew(tmp_path: Path) -> None:
    places, _ = init(tmp_path)
    first = places.bootstrap.read_bytes()
    world = World()
    await commit_bootstrap(places, world.store, world.transactions)
    places.bootstrap.write_bytes(first)
    await commit_bootstrap(places, world.store, world.transactions)
    assert len(world.store.snapshot().nodes) == 1
    assert not places.bootstrap.exists()


async def test_an_empty_store_without_a_beginning_is_a_lost_cluster(tmp_path: Path) -> None:
    places = Places(tmp_path, tmp_path)
    world = World()
    with pytest.raises(ClusterLost, match="damaged"):
        await commit_bootstrap(places, world.store, world.transactions)


async def test_a_damaged_beginning_is_named(tmp_path: Path) -> None:
    places, _ = init(tmp_path)
    places.bootstrap.write_bytes(b"\xff\xff\xff")
    with pytest.raises(InternalError, match="bootstrap"):
        await commit_bootstrap(places, World().store, World().transactions)


def test_a_host_that_belongs_to_a_cluster_begins_no_other(tmp_path: Path) -> None:
    init(tmp_path)
    with pytest.raises(AlreadyExists, match="leave"):
        init(tmp_path)


def test_a_spec_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="ClusterSpec"):
        init(tmp_path, tmp_path / "missing")
    assert not (tmp_path / "state").exists()
