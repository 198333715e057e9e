"""Root filesystems of containers: what a container left in its own goes with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.images import mounting
from agent.images.layers import Layers, Record
from agent.images.rootfs import RootFilesystems

RECORD = Record("ab" * 32, "", frozenset(), ("r/web:1",), "", 0.0)


def nest(directory: Path, levels: int) -> None:
    inner = os.open(directory, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=inner)
        outer, inner = inner, os.open("d", os.O_RDONLY, dir_fd=inner)
        os.close(outer)
    os.close(inner)


async def test_directories_however_deep_go_with_their_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program in a container nested a thousand directories: swarmd failed to remove the container's files, did not forget the
    task, at each start again, and `swarm leave` waited for it in vain."""
    monkeypatch.setattr(mounting, "unmount", lambda _: None)
    filesystems = RootFilesystems(tmp_path, Layers(tmp_path / "images", "vfs"))
    for remove in (filesystems.unmount("t1"), filesystems.mount("t1", RECORD)):
        merged = await filesystems.mount("t1", RECORD)
        nest(merged, 1500)
        await remove
        assert not (merged / "d").exists()
    await filesystems.unmount("t1")
    assert filesystems.ids() == set()
