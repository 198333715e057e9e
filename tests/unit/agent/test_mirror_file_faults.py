"""What a start makes of an assignments file that could not be written to its end."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from swarm.errors import ResourceExhausted
from swarm.v1 import types_pb2 as types

from agent.session.mirror import Mirror
from agent.session.mirror_file import MirrorFile
from tests.unit.agent.fakes import FakeHost, assignments, make_revision, make_task

_write = os.write


def half(descriptor: int, data: bytes) -> int:
    """The disk's last free block: a part fits, and that is no error yet."""
    return _write(descriptor, data[: len(data) // 2])


def nothing(descriptor: int, data: bytes) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("write", [half, nothing])
async def test_a_full_disk_costs_no_container_at_the_next_start(
    write: Callable[[int, bytes], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk was full for one set of assignments, and swarmd was restarted: the containers of that set, and of those after
    it, were stopped at once, with `service ps` naming no reason."""
    host, mirror, path = FakeHost(tmp_path / "host"), Mirror(), tmp_path / "assignments"
    file, agent = MirrorFile(path), host.supervisor()
    await agent.prepare_recovery()

    def assign(index: int, *objects: object) -> None:
        parts = mirror.receive(assignments(index, *objects, complete=index == 1))
        assert parts is not None
        try:
            file.append(parts, mirror)
        finally:
            agent.apply(mirror)

    assign(1, make_revision(), make_task("t1"))
    with monkeypatch.context() as full:
        full.setattr(os, "write", write)
        with pytest.raises(ResourceExhausted):
            assign(2, make_task("t2"))
    for task_id in ("t1", "t2"):
        await host.sink.until(task_id, types.TASK_STATE_RUNNING)
    await agent.close()
    assert MirrorFile(path).load() is None  # nothing is judged before a manager spoke


async def test_there_is_a_whole_file_again_once_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets were appended behind a torn one, and the next start cut them all off: their containers were stopped."""
    mirror, path = Mirror(), tmp_path / "assignments"
    file = MirrorFile(path)

    def assign(index: int) -> None:
        parts = mirror.receive(assignments(index, make_task(f"t{index}"), complete=index == 1))
        assert parts is not None
        file.append(parts, mirror)

    assign(1)
    with monkeypatch.context() as full:
        full.setattr(os, "write", half)
        with pytest.raises(ResourceExhausted):
            assign(2)
    assign(3)
    assign(4)
    loaded = MirrorFile(path).load()
    assert loaded is not None and set(loaded.tasks) == {"t1", "t2", "t3", "t4"}
