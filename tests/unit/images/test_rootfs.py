"""Root filesystems of containers: what a container left in its own goes with it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from swarm.errors import InternalError, ResourceExhausted, SwarmError

from agent.images import mounting, rootfs
from agent.images.layers import Layers, Record
from agent.images.rootfs import RootFilesystems, choose_driver
from tests.support.nesting import nest

RECORD = Record("ab" * 32, "", frozenset(), ("r/web:1",), "", 0.0)


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


def test_a_container_whose_image_cannot_be_read_is_not_overlooked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`image prune --all` while swarmd lacked a descriptor for a moment: images went from under containers that ran."""
    filesystems = RootFilesystems(tmp_path, Layers(tmp_path / "images", "vfs"))
    for name in ("making", "t1"):
        (tmp_path / name).mkdir()
    (tmp_path / "t1" / "image").write_text(RECORD.id)
    assert filesystems.image_users() == {RECORD.id: {"t1"}}

    def refused(_: object) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(InternalError, match="cannot be read: Too many open files"):
        filesystems.image_users()


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, ResourceExhausted), (errno.EMFILE, InternalError), (errno.ENOMEM, InternalError)],
)
@pytest.mark.parametrize("where", ["_prepare", "mount"])
async def test_a_host_that_lacks_something_for_a_moment_is_not_taken_for_one_without_overlays(
    where: str, number: int, kind: type[SwarmError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk was full when the first image came: from then on each container of the host had a copy of its image, which took
    seconds and its size, also when there was room again."""
    monkeypatch.setattr(mounting, "unmount", lambda _: None)

    def refused(*_: object) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(*((rootfs, "_prepare") if where == "_prepare" else (mounting, "_mount_overlay")), refused)
    with pytest.raises(kind):
        await choose_driver(tmp_path / "images", tmp_path)
    number = errno.EINVAL
    assert await choose_driver(tmp_path / "images", tmp_path) == "vfs"
    assert list(tmp_path.iterdir()) == []
