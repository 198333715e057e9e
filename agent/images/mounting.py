"""mount(2) and umount2(2) for overlay filesystems, through the C library.

The options of a mount fit one page, and an image may have over a hundred layers.  So the layers are named relative to the
store's directory, and the mount is made by a thread of its own: it has unshared its working directory from the rest of the
process and goes there first.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from swarm.errors import FailedPrecondition, InternalError, ResourceExhausted, SwarmError, is_disk_full

from agent.disk import MAKE_ROOM

CLONE_FS = 0x200  # from linux/sched.h
MNT_DETACH = 2  # from sys/mount.h
MAX_OPTIONS = 4095  # bytes: a page with its terminating zero
_libc = ctypes.CDLL(None, use_errno=True)


def _unshare_directory() -> None:
    if _libc.unshare(CLONE_FS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


class OverlayMounter:
    """Mounts overlays of layers that are named relative to `base`."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mount", initializer=_unshare_directory)
        self._volatile = True

    async def mount(self, lower: Sequence[str], upper: Path, work: Path, target: Path) -> None:
        """Raises ResourceExhausted (disk full, too many mounts), FailedPrecondition (no overlay here), InternalError."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, self._mount, tuple(lower), upper, work, target)
        except OSError as error:
            raise mount_error(error, target) from error

    def _mount(self, lower: Sequence[str], upper: Path, work: Path, target: Path) -> None:
        os.chdir(self._base)
        options = f"lowerdir={':'.join(lower)},upperdir={upper},workdir={work}"
        # What a container writes outside of volumes does not survive it, so nothing need be synced when it goes.
        if self._volatile:
            try:
                _mount_overlay(target, f"{options},volatile")
                return
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            _mount_overlay(target, options)
            self._volatile = False  # the kernel is older than 5.10
            return
        _mount_overlay(target, options)


def _mount_overlay(target: Path, options: str) -> None:
    data = os.fsencode(options)
    if len(data) > MAX_OPTIONS:
        raise OSError(errno.E2BIG, f"the image has too many layers: {len(data)} bytes of mount options")
    if _libc.mount(b"overlay", os.fsencode(target), b"overlay", 0, data) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


def unmount(target: Path) -> None:
    """Not an error where nothing is mounted. A mount that is still held is detached: it goes when its last user goes."""
    if _libc.umount2(os.fsencode(target), 0) == 0:
        return
    number = ctypes.get_errno()
    if number == errno.EBUSY and _libc.umount2(os.fsencode(target), MNT_DETACH) == 0:
        return
    if number not in (errno.EINVAL, errno.ENOENT):
        raise OSError(number, os.strerror(number), str(target))


def mount_points(mountinfo: str, below: Path) -> set[Path]:
    """The mount points below a directory, from /proc/self/mountinfo."""
    found = set()
    prefix = f"{below}/"
    for line in mountinfo.splitlines():
        fields = line.split(" ", 5)
        if len(fields) > 4:
            point = _unescape(fields[4]) if "\\" in fields[4] else fields[4]
            if point.startswith(prefix):
                found.add(Path(point))
    return found


def _unescape(text: str) -> str:
    """The kernel writes space, tab, line feed and backslash as octal numbers."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def mount_error(error: OSError, place: Path) -> SwarmError:
    """The error for people."""
    if is_disk_full(error):
        return ResourceExhausted(f"the disk of {place} is full; {MAKE_ROOM}")
    if error.errno in (errno.EINVAL, errno.ENODEV, errno.EPERM):
        return FailedPrecondition(f"an overlay filesystem cannot be mounted at {place}: {error.strerror}")
    return InternalError(f"the root filesystem at {place} cannot be made: {error}")
