"""The mirror of the assignments, its file, and what goes to the networks."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from swarm.errors import FailedPrecondition, ResourceExhausted, Unavailable
from swarm.v1 import dispatcher_pb2 as dispatcher
from swarm.v1 import types_pb2 as types

from agent.network.interface import NetworkView, OverlayView
from agent.session import mirror_file
from agent.session.gates import Gate
from agent.session.mirror import Mirror, Self, StaleAssignments
from agent.session.mirror_file import MirrorFile
from agent.session.networks import NetworkApplier
from tests.unit.agent.fakes import FakeDataPlane, assignments, make_revision, make_task

ME = Self("n1", 3, "10.9.0.1")


def endpoint(task_id: str, *, serving: bool = True) -> dispatcher.Endpoint:
    return dispatcher.Endpoint(network_id="net", task_id=task_id, node_id="n2", address="10.0.0.9", serving=serving)


NETWORK = types.Network(id="net", vni=4097)
PEER = dispatcher.NodePeer(node_id="n2", address="10.9.0.2", number=4)


def test_changes_and_removals_apply_to_the_mirror() -> None:
    mirror = Mirror()
    mirror.receive(assignments(1, NETWORK, PEER, endpoint("a"), make_task("t1"), make_revision(), complete=True))
    gone = dispatcher.AssignedKey(kind=dispatcher.ASSIGNED_KIND_ENDPOINT, key="net/a")
    mirror.receive(assignments(2, gone, endpoint("b"), make_task("t2")))
    assert set(mirror.endpoints) == {"net/b"}
    assert set(mirror.tasks) == {"t1", "t2"}
    spec = mirror.spec_of(mirror.tasks["t1"])
    assert spec is not None and spec.name == "web"
    assert (mirror.epoch, mirror.index) == (1, 2)


def test_parts_take_effect_together() -> None:
    mirror = Mirror()
    assert mirror.receive(assignments(1, make_task("t1"), complete=True, more=True)) is None
    assert mirror.tasks == {}
    assert mirror.receive(assignments(1, make_task("t2"))) is not None
    assert set(mirror.tasks) == {"t1", "t2"}


def test_an_unfinished_set_is_forgotten_with_its_session() -> None:
    mirror = Mirror()
    mirror.receive(assignments(1, make_task("t1"), complete=True, more=True))
    mirror.drop_parts()
    mirror.receive(assignments(2, make_task("t2"), complete=True))
    assert set(mirror.tasks) == {"t2"}


@pytest.mark.parametrize(("epoch", "index"), [(1, 4), (0, 99)])
def test_older_assignments_are_refused(epoch: int, index: int) -> None:
    mirror = Mirror()
    mirror.receive(assignments(5, make_task("t1"), complete=True))
    with pytest.raises(StaleAssignments):
        mirror.receive(assignments(index, epoch=epoch, complete=True))
    assert set(mirror.tasks) == {"t1"}


def test_a_newer_epoch_is_taken_whatever_its_index() -> None:
    mirror = Mirror()
    mirror.receive(assignments(5, make_task("t1"), complete=True))
    mirror.receive(assignments(2, epoch=2, complete=True))
    assert mirror.tasks == {}


def test_only_what_is_programmed_moves_the_revision() -> None:
    mirror = Mirror()
    whole = assignments(1, NETWORK, PEER, endpoint("a"), make_task("t1"), complete=True)
    mirror.receive(whole)
    before = mirror.revision
    mirror.receive(assignments(2, make_task("t2")))
    mirror.receive(assignments(3, endpoint("a")))  # the same again
    whole.index = 4
    whole.changes.append(dispatcher.AssignedObject(task=make_task("t3")))
    mirror.receive(whole)  # a new session begins with everything
    assert mirror.revision == before
    mirror.receive(assignments(5, endpoint("a", serving=False)))
    assert mirror.revision == before + 1


def test_host_ports_belong_to_the_tasks_that_may_serve() -> None:
    mirror = Mirror()
    task = make_task("t1")
    task.host_ports.add(target_port=80, published_port=8080, mode=types.PUBLISH_MODE_HOST)
    mirror.receive(assignments(1, task, complete=True))
    view = mirror.network_view(ME)
    assert [(each.task_id, each.port.published_port) for each in view.host_ports] == [("t1", 8080)]
    before = mirror.revision
    stopped = types.Task()
    stopped.CopyFrom(task)
    stopped.desired_state = types.TASK_STATE_SHUTDOWN
    mirror.receive(assignments(2, stopped))
    assert mirror.network_view(ME).host_ports == ()
    assert mirror.revision == before + 1


def test_the_network_view_does_not_depend_on_the_order_of_arrival() -> None:
    objects = [NETWORK, PEER, endpoint("a"), endpoint("b"), make_task("t1")]
    views = []
    for order in (objects, objects[::-1]):
        mirror = Mirror()
        mirror.receive(assignments(1, *order, complete=True))
        views.append(mirror.network_view(ME))
    assert views[0] == views[1]
    assert views[0].overlays[0].endpoints == (endpoint("a"), endpoint("b"))


# ------------------------------------------------------------------------------------------------------------ on disk


def fill(path: Path, count: int = 3) -> Mirror:
    mirror, file = Mirror(), MirrorFile(path)
    for index in range(1, count + 1):
        message = assignments(index, make_task(f"t{index}"), complete=index == 1)
        parts = mirror.receive(message)
        assert parts is not None
        file.append(parts, mirror)
    return mirror


def test_the_file_gives_back_what_was_written(tmp_path: Path) -> None:
    mirror = fill(tmp_path / "assignments")
    loaded = MirrorFile(tmp_path / "assignments").load()
    assert loaded is not None
    assert loaded.tasks == mirror.tasks
    assert (loaded.epoch, loaded.index) == (1, 3)


def test_a_torn_entry_is_cut_off_and_writing_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "assignments"
    fill(path)
    whole = path.read_bytes()
    for cut in (1, 5, 9):
        path.write_bytes(whole[:-cut])
        file = MirrorFile(path)
        loaded = file.load()
        assert loaded is not None and set(loaded.tasks) == {"t1", "t2"}
        parts = loaded.receive(assignments(7, make_task("t7")))
        assert parts is not None
        file.append(parts, loaded)
        again = MirrorFile(path).load()
        assert again is not None and set(again.tasks) == {"t1", "t2", "t7"}


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "assignments"
    fill(path, 1)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    assert MirrorFile(path).load() is None


def test_no_file_is_no_mirror(tmp_path: Path) -> None:
    assert MirrorFile(tmp_path / "assignments").load() is None


def test_the_file_is_rewritten_when_changes_have_outgrown_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_file, "COMPACT_ABOVE", 2000)
    path, mirror = tmp_path / "assignments", Mirror()
    file = MirrorFile(path)
    for index in range(1, 200):
        parts = mirror.receive(assignments(index, make_task("t1"), complete=index == 1))
        assert parts is not None
        file.append(parts, mirror)
    assert path.stat().st_size < 4000
    loaded = MirrorFile(path).load()
    assert loaded is not None and loaded.index >= 190


def test_after_a_full_disk_the_file_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, mirror = tmp_path / "assignments", Mirror()
    file = MirrorFile(path)

    def assign(index: int) -> None:
        parts = mirror.receive(assignments(index, make_task(f"t{index}"), complete=index == 1))
        assert parts is not None
        file.append(parts, mirror)

    def refuse(descriptor: int, data: bytes) -> int:
        write(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    assign(1)
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", refuse)
        with pytest.raises(ResourceExhausted):
            assign(2)
    assert file.behind
    assign(3)
    assert not file.behind
    loaded = MirrorFile(path).load()
    assert loaded is not None and set(loaded.tasks) == {"t1", "t2", "t3"}


# --------------------------------------------------------------------------------------------------------- networks


async def test_an_index_is_in_force_once_it_is_applied() -> None:
    plane, applied = FakeDataPlane(), asyncio.Queue[int]()
    applier = NetworkApplier(plane, random.Random(1), applied.put_nowait)
    running = asyncio.create_task(applier.run())
    mirror = Mirror()
    mirror.receive(assignments(4, NETWORK, endpoint("a"), complete=True))
    applier.submit(mirror.revision, mirror.index, lambda: mirror.network_view(ME))
    assert await applied.get() == 4
    mirror.receive(assignments(5, make_task("t1")))
    applier.submit(mirror.revision, mirror.index, lambda: mirror.network_view(ME))
    assert applied.get_nowait() == 5  # nothing to program: at once
    assert len(plane.views) == 1
    await applier.holds(frozenset({"net"}), 1.0)
    running.cancel()


async def test_after_a_cut_of_history_lower_indexes_are_in_force_anew() -> None:
    plane, applied = FakeDataPlane(), asyncio.Queue[int]()
    applier = NetworkApplier(plane, random.Random(1), applied.put_nowait)
    running = asyncio.create_task(applier.run())
    mirror = Mirror()
    mirror.receive(assignments(900, NETWORK, endpoint("a"), complete=True))
    applier.submit(mirror.revision, mirror.index, lambda: mirror.network_view(ME))
    assert await applied.get() == 900
    mirror.receive(assignments(7, NETWORK, endpoint("a"), epoch=2, complete=True))
    applier.restart()
    applier.submit(mirror.revision, mirror.index, lambda: mirror.network_view(ME))
    assert (applied.get_nowait(), applier.applied_index) == (7, 7)
    running.cancel()


async def test_a_view_of_the_history_before_is_not_in_force_in_the_new_one() -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    class Plane(FakeDataPlane):
        async def apply(self, view: NetworkView) -> None:
            began.set()
            await go_on.wait()

    applied = asyncio.Queue[int]()
    applier = NetworkApplier(Plane(), random.Random(1), applied.put_nowait)
    running = asyncio.create_task(applier.run())
    applier.submit(1, 900, lambda: NetworkView(900, "n1", 3, "10.9.0.1", (), ()))
    await began.wait()
    applier.restart()
    applier.submit(2, 7, lambda: NetworkView(7, "n1", 3, "10.9.0.1", (), ()))
    go_on.set()
    assert await applied.get() == 7
    running.cancel()


async def test_a_gate_begins_anew() -> None:
    gate = Gate(900)
    gate.restart()
    assert not await gate.reached(7, 0.0)
    gate.advance(7)
    assert await gate.reached(7, 0.0)


async def test_what_fails_is_tried_again_and_not_acknowledged_before() -> None:
    plane, applied = FakeDataPlane(), asyncio.Queue[int]()
    plane.errors = [FailedPrecondition("nft says no")]
    applier = NetworkApplier(plane, random.Random(1), applied.put_nowait)
    running = asyncio.create_task(applier.run())
    mirror = Mirror()
    mirror.receive(assignments(4, NETWORK, complete=True))
    applier.submit(mirror.revision, mirror.index, lambda: mirror.network_view(ME))
    async with asyncio.timeout(10):
        assert await applied.get() == 4
    assert applier.error is None
    running.cancel()


async def test_a_task_of_a_network_that_cannot_be_set_up_says_why() -> None:
    plane = FakeDataPlane()
    plane.errors = [FailedPrecondition("nft says no")] * 100
    applier = NetworkApplier(plane, random.Random(1), lambda _: None)
    running = asyncio.create_task(applier.run())
    mirror = Mirror()
    mirror.receive(assignments(4, NETWORK, complete=True))
    applier.submit(mirror.revision, mirror.index, lambda: mirror.network_view(ME))
    with pytest.raises(Unavailable, match="nft says no"):
        await applier.holds(frozenset({"net"}), 0.2)
    running.cancel()


async def test_a_network_that_is_just_being_removed_does_not_count_as_there() -> None:
    """The last task of a network failed; its replacement is assigned while the older view takes the network away."""
    without_network = NetworkView(5, "n1", 3, "10.9.0.1", (), ())
    with_network = replace(without_network, overlays=(OverlayView(NETWORK, (), ()),))
    removing, removed = asyncio.Event(), asyncio.Event()

    class Plane(FakeDataPlane):
        async def apply(self, view: NetworkView) -> None:
            if not view.overlays:
                removing.set()
                await removed.wait()
            await super().apply(view)

    applier = NetworkApplier(Plane(), random.Random(1), lambda _: None)
    running = asyncio.create_task(applier.run())
    applier.submit(1, 4, lambda: with_network)
    await applier.holds(frozenset({"net"}), 5.0)
    applier.submit(2, 5, lambda: without_network)
    await removing.wait()
    applier.submit(3, 6, lambda: with_network)
    held = asyncio.create_task(applier.holds(frozenset({"net"}), 5.0))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not held.done()
    removed.set()
    await held
    running.cancel()
