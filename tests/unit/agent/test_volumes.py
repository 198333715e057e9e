"""New volumes are filled from the image: completely, once, and without others waiting for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from swarm.process import Completed, run
from swarm.v1 import types_pb2 as types

from agent.images.interface import Image
from agent.tasks import preparation
from agent.tasks.supervisor import TaskSupervisor
from tests.unit.agent.fakes import FakeHost, make_revision, make_task, mirror_of

RUNNING = types.TASK_STATE_RUNNING
FILES = {f"{number}": f"content {number}" for number in range(20)}


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    """Its images hold FILES in /data."""
    host = FakeHost(tmp_path)
    root = tmp_path / "image"
    (root / "data").mkdir(parents=True)
    for name, content in FILES.items():
        (root / "data" / name).write_text(content)

    async def mount(container_id: str, image: Image) -> Path:
        return root

    host.images.mount = mount  # type: ignore[method-assign]
    return host


@pytest.fixture
async def tasks(host: FakeHost) -> AsyncIterator[TaskSupervisor]:
    tasks = host.supervisor()
    await tasks.prepare_recovery()
    yield tasks
    await tasks.close()


def with_volume() -> types.ServiceRevision:
    mount = types.Mount(type=types.MOUNT_TYPE_VOLUME, source="data", target="/data")
    return make_revision(types.ContainerSpec(image="web", mounts=[mount]))


def files_of(volume: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in volume.iterdir()}


async def test_replicas_that_share_a_new_volume_both_find_it_complete(
    host: FakeHost, tasks: TaskSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second replica removed what was being copied for the first; the first then ran, and so did all after it, with a
    volume in which files of the image were missing, and nobody was told."""
    copies: list[object] = []
    copied, go_on, never = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def copy(words: list[str | Path], *, timeout: float) -> Completed:
        copies.append(words)
        if len(copies) > 1:
            await never.wait()
        done = await run(words, timeout=timeout)
        copied.set()
        await go_on.wait()
        return done

    monkeypatch.setattr(preparation, "run", copy)
    tasks.apply(mirror_of(with_volume(), make_task("t1")))
    await copied.wait()
    tasks.apply(mirror_of(with_volume(), make_task("t1"), make_task("t2"), index=2))
    await asyncio.sleep(0.1)  # t2 comes as far as it can
    go_on.set()
    await host.sink.until("t1", RUNNING)
    assert files_of(host.state / "volumes" / "data") == FILES
    await host.sink.until("t2", RUNNING)
    assert len(copies) == 1
    assert [path.name for path in (host.state / "volumes").iterdir()] == ["data"]


async def test_a_task_without_volumes_starts_while_a_large_volume_is_filled(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a host with few cores all other tasks stayed PREPARING for as long as one volume was copied, up to ten minutes."""
    host.starts = 1
    tasks = host.supervisor()
    await tasks.prepare_recovery()
    copying = asyncio.Event()

    async def copy(words: list[str | Path], *, timeout: float) -> None:
        copying.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(preparation, "run", copy)
    other = make_revision()
    other.id = "r2"
    task = make_task("t2")
    task.revision_id = "r2"
    tasks.apply(mirror_of(with_volume(), make_task("t1")))
    await copying.wait()
    tasks.apply(mirror_of(with_volume(), other, make_task("t1"), task, index=2))
    await host.sink.until("t2", RUNNING)
    assert host.sink.states("t1")[-1] == "PREPARING"
    await tasks.close()


async def test_what_an_interrupted_copy_left_is_not_in_the_volume(host: FakeHost, tasks: TaskSupervisor) -> None:
    left = host.state / "volumes" / ".data.new" / "deep"
    left.mkdir(parents=True)
    (left / "half").write_text("hal")
    tasks.apply(mirror_of(with_volume(), make_task("t1")))
    await host.sink.until("t1", RUNNING)
    assert files_of(host.state / "volumes" / "data") == FILES


def bound(source: str) -> types.ContainerSpec:
    mount = types.Mount(type=types.MOUNT_TYPE_BIND, source=source, target="/data")
    return types.ContainerSpec(image="web", mounts=[mount])


async def test_a_bind_mount_whose_file_server_is_gone_holds_nobody_up(
    host: FakeHost, tasks: TaskSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One service with a bind mount of an NFS directory, and its server gone: swarmd hung, the node was down, and so was the
    next one that the task was placed on."""
    exists, back = Path.exists, threading.Event()

    def held(path: Path) -> bool:
        return back.wait(3) if str(path) == "/nfs/data" else exists(path)

    monkeypatch.setattr(Path, "exists", held)
    monkeypatch.setattr(preparation, "LOOK_TIMEOUT", 0.1)
    try:
        tasks.apply(mirror_of(make_revision(bound("/nfs/data")), make_task("t1")))
        status = await host.sink.until("t1", types.TASK_STATE_REJECTED)
        assert not back.is_set() and "could not be looked at within 0.1 s" in status.error
    finally:
        back.set()


async def test_a_bind_mount_with_a_name_that_nothing_can_have_is_told_in_a_sentence(
    host: FakeHost, tasks: TaskSupervisor, caplog: pytest.LogCaptureFixture
) -> None:
    """The task said that the node daemon failed unexpectedly, and swarmd's log had a traceback for each attempt."""
    tasks.apply(mirror_of(make_revision(bound("/" + "x" * 300)), make_task("t1")))
    status = await host.sink.until("t1", types.TASK_STATE_REJECTED)
    assert status.error.endswith("cannot be used on this node: File name too long") and "Traceback" not in caplog.text
