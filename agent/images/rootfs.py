"""Writable root filesystems: for each container an overlay over the layers of its image.

STATE/rootfs/ID holds `merged` (the mount), `upper` and `work` (what the container writes) and `image` (the id of the image
that it stands on, so that the image is known to be in use after the agent started again).  Where the host cannot stack
overlays (its disk is one already), `merged` is a copy.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from pathlib import Path

from swarm.errors import InternalError, SwarmError
from swarm.process import run

from agent.disk import REMOVAL_TIMEOUT
from agent.images import mounting
from agent.images.layers import Layers, Record
from agent.images.mounting import OverlayMounter, mount_error

COPY_TIMEOUT = 600.0
# Says nothing of overlays. Who took it for a no would copy every image for every container, for as long as there are images.
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class RootFilesystems:
    """The root filesystems below `directory`."""

    def __init__(self, directory: Path, layers: Layers) -> None:
        self._directory = directory
        self._layers = layers
        self._mounter = OverlayMounter(layers.root / "overlay")

    def place(self, container_id: str) -> Path:
        if not container_id or "/" in container_id or container_id.startswith("."):
            raise InternalError(f"{container_id!r} is not a container id")
        return self._directory / container_id

    async def mount(self, container_id: str, record: Record) -> Path:
        """Makes it; the same path again where it is there already. On failure nothing stays behind."""
        place = self.place(container_id)
        merged = place / "merged"
        if place.exists():
            if merged in self._mount_points():  # reading all mounts of the host costs 1 ms
                return merged
            await self.unmount(container_id)  # from before the host started; a volatile overlay cannot be mounted again
        try:
            await asyncio.to_thread(_prepare, place, record.id)
            if self._layers.driver == "overlay":
                await self._mount_overlay(place, record)
            elif record.layer:
                await self._copy(self._layers.tree(record.layer), merged)
        except BaseException as error:
            await asyncio.shield(self.unmount(container_id))
            if isinstance(error, OSError):
                raise mount_error(error, place) from error
            raise
        return merged

    async def _mount_overlay(self, place: Path, record: Record) -> None:
        lower = self._layers.lower_directories(record.layer)
        if lower:
            # the root directory itself is the upper one's, so it takes over owner and mode
            top = (self._layers.root / "overlay" / lower[0]).stat()
            os.chown(place / "upper", top.st_uid, top.st_gid)
            mode = top.st_mode & 0o7777
            # the store's own default, where the image says nothing; other engines show 755
            (place / "upper").chmod(0o755 if mode == 0o555 else mode)
        else:
            (place / "empty").mkdir(exist_ok=True)
            lower = [str(place / "empty")]
        await self._mounter.mount(lower, place / "upper", place / "work", place / "merged")

    async def _copy(self, tree: Path, merged: Path) -> None:
        done = await run(["cp", "-a", "--reflink=auto", f"{tree}/.", str(merged)], timeout=COPY_TIMEOUT, check=False)
        if done.exit_code != 0:
            raise _copy_error(done.complaint, merged)

    async def unmount(self, container_id: str) -> None:
        """Removes it with all that was written. Not an error where it is gone."""
        place = self.place(container_id)
        try:
            await asyncio.to_thread(_remove, place)
        except RecursionError:  # containers may nest directories deeper than Python's rmtree can follow
            await run(["rm", "-rf", place], timeout=REMOVAL_TIMEOUT)
        except OSError as error:
            raise InternalError(f"the root filesystem {place} cannot be removed: {error}") from error

    def _mount_points(self) -> set[Path]:
        return mounting.mount_points(Path("/proc/self/mountinfo").read_text(), self._directory)

    def ids(self) -> set[str]:
        """Of all that are mounted, and of what a crash of the host left, which is to be removed as well."""
        mounted = {point.relative_to(self._directory).parts[0] for point in self._mount_points()}
        left = {path.name for path in self._directory.iterdir()} if self._directory.is_dir() else set()
        return mounted | {name for name in left if not name.startswith(".")}

    def image_users(self) -> dict[str, set[str]]:
        """Image id (hexadecimal) → the containers that stand on it. Raises InternalError: one overlooked loses its layers."""
        users: dict[str, set[str]] = {}
        if self._directory.is_dir():
            for place in self._directory.iterdir():
                try:
                    users.setdefault((place / "image").read_text(), set()).add(place.name)
                except (FileNotFoundError, NotADirectoryError):
                    continue  # being made or removed: it holds no image yet, or none any more
                except OSError as error:
                    raise InternalError(
                        f"which image the container {place.name} stands on cannot be read: {error.strerror}"
                    ) from error
        return users


def _prepare(place: Path, image_id: str) -> None:
    place.mkdir(parents=True, mode=0o711)
    for name in ("upper", "work", "merged"):
        (place / name).mkdir(mode=0o755)
        (place / name).chmod(0o755)
    (place / "image").write_text(image_id)


def _remove(place: Path) -> None:
    mounting.unmount(place / "merged")
    try:
        shutil.rmtree(place)
    except FileNotFoundError:
        return


def _copy_error(complaint: str, merged: Path) -> SwarmError:
    if "No space left" in complaint:
        return mount_error(OSError(28, "no space"), merged)
    return InternalError(f"the root filesystem {merged} cannot be made: {complaint}")


async def choose_driver(images: Path, probe: Path) -> str:
    """overlay where this disk can carry one, else vfs; once images are stored, the driver that stores them. Raises SwarmError
    where that cannot be told now."""
    for driver in ("overlay", "vfs"):
        if (images / f"{driver}-images").is_dir():
            return driver
    place = probe / ".probe"
    try:
        await asyncio.to_thread(_remove, place)
        await asyncio.to_thread(_prepare, place, "")
        (place / "lower").mkdir()
        await OverlayMounter(place).mount(["lower"], place / "upper", place / "work", place / "merged")
    except (OSError, SwarmError) as error:
        refusal = error if isinstance(error, OSError) else error.__cause__
        if isinstance(refusal, OSError) and refusal.errno in _PASSING:
            raise mount_error(refusal, place) from error
        return "vfs"
    else:
        return "overlay"
    finally:
        await asyncio.to_thread(_remove, place)
