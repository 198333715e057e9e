"""The daemon around a node that is no member of a swarm."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from swarm.clock import SystemClock

from agent.images import mounting
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
