"""The daemon around a node that is no member of a swarm."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from pathlib import Path

import pytest
from swarm.clock import SystemClock

from agent.images import mounting
from agent.node import children, daemon
from agent.node.daemon import Daemon
from agent.node.options import Options
from tests.unit.agent.fakes import FakeHost


def daemon_of(tmp_path: Path) -> Daemon:
    host = FakeHost(tmp_path)
    return Daemon(
        Options(state=tmp_path / "state", run=tmp_path / "run", metrics=""),
        host.runtime,
        host.images,
        lambda: host.data_plane,
        clock=SystemClock(),
        rng=random.Random(1),
        use_registry=lambda _: None,
    )


async def until_removed(daemon: Daemon, *paths: Path) -> None:
    running = asyncio.create_task(daemon.run())
    try:
        async with asyncio.timeout(10):
            while any(path.exists() for path in paths):  # noqa: ASYNC110 – bounded; nothing tells
                await asyncio.sleep(0.01)
    finally:
        daemon.stop()
        await running


@pytest.fixture
def abandoned(tmp_path: Path) -> list[Path]:
    (tmp_path / "run").mkdir()
    upload, pull = tmp_path / "state/uploads/upload-x/context", tmp_path / "state/images-temporary/3f"
    for directory in (upload, pull):
        directory.mkdir(parents=True)
        (directory / "layer").write_text("x")
    digest = tmp_path / "state/images-temporary/digest-9"
    digest.write_text("sha256:1")
    return [upload.parent, pull, digest]


async def test_what_a_killed_daemon_had_under_way_is_removed(tmp_path: Path, abandoned: list[Path]) -> None:
    """swarmd was killed while `image load`, `image build` or a pull was under way: what had arrived, up to 16 GiB each time,
    stayed on the disk for ever, and `image prune` did not count it."""
    await until_removed(daemon_of(tmp_path), *abandoned)


async def test_what_a_killed_build_left_mounted_is_not_emptied(
    tmp_path: Path, abandoned: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removing what lies below a mount would remove what is mounted: an image's files, say."""
    upload, pull, digest = abandoned
    monkeypatch.setattr(mounting, "mount_points", lambda _, below: {pull / "mnt"} if below == pull else set())
    await until_removed(daemon_of(tmp_path), upload, digest)
    assert (pull / "layer").exists()


async def test_orphans_are_reaped_after_a_moment_without_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """swarmd had once no descriptor left for a moment: from then on each container that ended left a zombie, until the host
    had no process numbers left."""
    monkeypatch.setattr(daemon, "SWEEP_PERIOD", 0.01)
    looked = asyncio.Event()
    failures = [OSError(errno.EMFILE, os.strerror(errno.EMFILE))]

    def processes() -> set[int]:
        if not failures:
            looked.set()
            return set()
        raise failures.pop()

    monkeypatch.setattr(children, "_children", processes)
    reaping = asyncio.create_task(daemon_of(tmp_path)._reap(()))
    await asyncio.wait({reaping, asyncio.create_task(looked.wait())}, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    assert looked.is_set() and not reaping.done()
    reaping.cancel()
