"""The kernel's file notifications for one directory, as far as following a log needs them.

Python has no binding; three calls of the C library and a descriptor that the event loop watches are enough.  What happened
is not told: every event means "look again".
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from agent.runtime.processes import readable

# from linux/inotify.h
_MODIFY, _MOVED_TO, _CREATE, _DELETE, _DELETE_SELF = 0x2, 0x80, 0x100, 0x200, 0x400
_ONLY_DIRECTORY = 0x01000000
_EVENTS = _MODIFY | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _ONLY_DIRECTORY


class DirectoryWatch:
    """Tells when something changes directly in a directory. Raises OSError where it is not there, or too many are watched."""

    def __init__(self, directory: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1", str(directory))
        if libc.inotify_add_watch(self._descriptor, os.fsencode(directory), _EVENTS) < 0:
            number = ctypes.get_errno()
            os.close(self._descriptor)
            raise OSError(number, os.strerror(number), str(directory))

    def __enter__(self) -> DirectoryWatch:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    async def changed(self) -> None:
        """Waits for the next change; several that have happened count as one."""
        await readable(self._descriptor)
        try:
            os.read(self._descriptor, 64 * 1024)
        except BlockingIOError:
            return
