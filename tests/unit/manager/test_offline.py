"""A cut of history: what a recovered or restored manager commits, and what stands in the way of recovering and restoring."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from swarm.clock import SystemClock
from swarm.errors import FailedPrecondition, InternalError, InvalidArgument, ResourceExhausted
from swarm.ids import id_source
from swarm.v1 import types_pb2 as types

from orchestrator.consensus import Member
from orchestrator.identity.authority import RootAuthority
from orchestrator.identity.membership import bootstrap_objects, new_node
from orchestrator.manager.bootstrap import initialise
from orchestrator.manager.data_key import data_key
from orchestrator.manager.offline import (
    REPLACED,
    Cut,
    commit_cut,
    cut_changes,
    inspect,
    read_cut,
    recover,
    restore,
)
from orchestrator.manager.options import InitOptions, OfflineOptions, Places
from orchestrator.raft import membership, recovery
from orchestrator.raft.disk import LocalDirectory
from orchestrator.raft.snapshots import SnapshotStore
from orchestrator.store import Create, Snapshot
from orchestrator.store.persistence import dump
from tests.unit.dispatcher.worlds import World

NOW = 1_700_000_000.0
EPOCH = 1_700_000_000


def manager(node_id: str, number: int, role: types.NodeRole.ValueType = types.NODE_ROLE_MANAGER) -> types.Node:
    return new_node(
        node_id=node_id,
        number=number,
        role=role,
        hostname=node_id,
        address=f"192.0.2.{number}:2378",
        availability=types.AVAILABILITY_ACTIVE,
    )


def before(*nodes: types.Node) -> Snapshot:
    cluster = types.Cluster(id="c1", epoch=4, next_node_number=len(nodes) + 1)
    return Snapshot().with_changes([Create(cluster), *map(Create, nodes)])


def cut(node_id: str, number: int) -> Cut:
    return Cut("request", node_id, node_id, f"192.0.2.{number}:2378")


def test_the_epoch_rises_and_only_this_manager_stays() -> None:
    snapshot = before(manager("m1", 1), manager("m2", 2), manager("m3", 3), manager("w1", 4, types.NODE_ROLE_WORKER))
    after = snapshot.with_changes(cut_changes(snapshot, cut("m1", 1), NOW))
    assert after.cluster is not None
    assert after.cluster.epoch == EPOCH
    assert {node.id for node in after.nodes} == {"m1", "w1"}
    assert {(revoked.node_id, revoked.epoch) for revoked in after.cluster.revoked_nodes} == {
        ("m2", EPOCH),
        ("m3", EPOCH),
    }


def test_a_snapshot_that_is_restored_twice_begins_two_epochs() -> None:
    snapshot = before(manager("m1", 1))
    epochs = []
    for now in (NOW, NOW + 60):
        after = snapshot.with_changes(cut_changes(snapshot, cut("m1", 1), now))
        assert after.cluster is not None
        epochs.append(after.cluster.epoch)
    assert epochs[0] < epochs[1]


@pytest.mark.parametrize(("seen", "epoch"), [(0, 5), (3, 5), (7, 8), (NOW + 5, NOW + 6)])
def test_with_a_clock_that_is_behind_the_epoch_is_above_those_that_are_known(seen: float, epoch: float) -> None:
    snapshot = before(manager("m1", 1))
    after = snapshot.with_changes(cut_changes(snapshot, replace(cut("m1", 1), seen_epoch=int(seen)), 3.0))
    assert after.cluster is not None
    assert after.cluster.epoch == epoch


def test_a_new_host_becomes_a_node_with_a_number_of_its_own() -> None:
    snapshot = before(manager("m1", 1), manager("w1", 2, types.NODE_ROLE_WORKER))
    after = snapshot.with_changes(cut_changes(snapshot, cut("new", 9), NOW))
    assert after.cluster is not None
    assert (after.cluster.epoch, after.cluster.next_node_number) == (EPOCH, 4)
    assert {node.id for node in after.nodes} == {"new", "w1"}
    assert (after.nodes["new"].number, after.nodes["new"].manager.address) == (3, "192.0.2.9:2378")


def test_a_manager_that_was_to_be_a_worker_is_the_manager_now() -> None:
    demoted = manager("m1", 1)
    demoted.spec.desired_role = types.NODE_ROLE_WORKER
    snapshot = before(demoted, manager("m2", 2))
    after = snapshot.with_changes(cut_changes(snapshot, cut("m1", 1), NOW))
    assert after.nodes["m1"].spec.desired_role == types.NODE_ROLE_MANAGER


async def test_the_cut_is_committed_once_and_forgotten(tmp_path: Path) -> None:
    places, world = Places(tmp_path, tmp_path), World()
    await world.commit(Create(types.Cluster(id="c1", epoch=1, next_node_number=3)))
    await world.commit(Create(manager("m1", 1)), Create(manager("m2", 2)))
    for _ in range(2):  # the second time as after a crash before the file was removed
        cut("m1", 1).write(places.recovery)
        await commit_cut(places, world.store, world.transactions, [Member("m1", "192.0.2.1:2378")], NOW)
        cluster = world.store.snapshot().cluster
        assert cluster is not None
        assert cluster.epoch == EPOCH
        assert not places.recovery.exists()


async def test_a_recovery_that_did_not_happen_cuts_nothing(tmp_path: Path) -> None:
    places, world = Places(tmp_path, tmp_path), World()
    cut("m1", 1).write(places.recovery)
    members = [Member("m1", "192.0.2.1:2378"), Member("m2", "192.0.2.2:2378")]
    await commit_cut(places, world.store, world.transactions, members, NOW)
    assert not places.recovery.exists()
    assert world.store.snapshot().index == 0


def test_a_damaged_note_is_told(tmp_path: Path) -> None:
    (tmp_path / "recovery").write_text("{")
    with pytest.raises(InternalError, match="recovery"):
        read_cut(tmp_path / "recovery")


def test_only_a_manager_with_a_log_is_recovered(tmp_path: Path) -> None:
    places = Places(tmp_path / "state", tmp_path / "run")
    options = OfflineOptions("recover", places, "192.0.2.1", "m1", 2378, False, None)
    with pytest.raises(FailedPrecondition):
        recover(options, id_source())
    initialise(InitOptions(places, "192.0.2.1", "m1", 2378, None, "active"), clock=SystemClock(), ids=id_source())
    with pytest.raises(FailedPrecondition, match="no log"):
        recover(options, id_source())
    assert not places.recovery.exists()


def test_a_manager_whose_recovery_failed_does_not_start_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`swarm recover` of a manager that the swarm went on without, on a full disk: it failed, and the manager was started with
    the log that it had, ready to lead together with others that were left behind."""
    places = Places(tmp_path / "state", tmp_path / "run")
    initialise(InitOptions(places, "192.0.2.1", "m1", 2378, None, "active"), clock=SystemClock(), ids=id_source())
    places.raft.mkdir()
    (places.raft / "00.journal").touch()
    places.superseded.write_text("the swarm was recovered without this manager")

    def full(*_: object, **__: object) -> None:
        raise ResourceExhausted("the disk is full")

    monkeypatch.setattr(recovery, "force_new_cluster", full)
    with pytest.raises(ResourceExhausted):
        recover(OfflineOptions("recover", places, "192.0.2.1", "m1", 2378, False, None), id_source())
    assert places.superseded.exists()


def test_what_is_no_snapshot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="no file"):
        inspect(tmp_path / "absent")


def test_a_key_is_made_with_the_log_and_never_after_it(tmp_path: Path) -> None:
    places = Places(tmp_path, tmp_path)
    assert data_key(places) == places.data_key
    places.raft.mkdir(parents=True)
    (places.raft / "00.journal").touch()
    assert data_key(places) is None, "a new key would open nothing"
    places.data_key.parent.mkdir()
    places.data_key.touch()
    assert data_key(places) == places.data_key


def test_a_restore_that_is_killed_keeps_the_former_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeated after that, it threw away what the first attempt had put aside: the only copy of the former log. And the only
    manager of a swarm, which went on with the log that it had, cut that swarm's history all the same."""
    changes = bootstrap_objects(
        types.ClusterSpec(name="default"),
        cluster_id="c1",
        authority=RootAuthority.create("c1", NOW),
        node_id="m1",
        hostname="m1",
        address="192.0.2.1:2378",
        availability=types.AVAILABILITY_ACTIVE,
        ids=id_source(),
        rng=random.Random(1),
    )
    saved = SnapshotStore(LocalDirectory(tmp_path)).write(
        0, 1, membership.founding([Member("m1", "192.0.2.1:2378")]), dump(Snapshot().with_changes(changes), ())
    )
    places = Places(tmp_path / "state", tmp_path / "run")
    options = OfflineOptions("restore", places, "192.0.2.1", "m1", 2378, False, tmp_path / saved.name)
    places.raft.mkdir(parents=True)
    (places.raft / "former").touch()

    def killed(path: Path, directory: Path, *_: object, **__: object) -> None:
        (directory / "half").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recovery, "restore", killed)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                restore(options, SystemClock(), id_source())
    assert (places.raft / "former").exists()
    assert not places.recovery.exists()
    restore(options, SystemClock(), id_source())
    assert [path.name for path in (places.manager / REPLACED).iterdir()] == ["former"]
    assert not (places.raft / "half").exists()
    assert recover(replace(options, command="recover", dry_run=True), id_source())["last_index"] >= 0
