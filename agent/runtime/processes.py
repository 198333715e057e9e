"""Processes that are not our children: found by the pid files they left, recognised, waited for and killed through pidfds.

A pid file may be older than the process that has the number now.  A pidfd stays with one process, so the order is: open it,
then look in /proc whether that is the process we mean, then use it.  Where we lack descriptors or memory to look, that is an
error and not an end: whoever took it for one would end what runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

from swarm.errors import InternalError


class Handle:
    """An open pidfd. Use as a context manager, or `close` it."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid = pid
        self._descriptor = descriptor

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def send(self, number: int) -> bool:
        """False where the process has ended."""
        try:
            signal.pidfd_send_signal(self._descriptor, number)
        except ProcessLookupError:
            return False
        return True

    async def ended(self) -> None:
        """Waits for the end of the process; reaps it where it is an orphan that became our child. Raises InternalError."""
        try:
            await readable(self._descriptor)
        except OSError as error:
            raise InternalError(f"process {self.pid} cannot be waited for: {error.strerror}") from error
        self._reap()

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self._descriptor, os.WEXITED | os.WNOHANG)


async def readable(descriptor: int) -> None:
    """Waits until something can be read. The descriptor is duplicated, so several may wait for one."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    own = os.dup(descriptor)

    def ready() -> None:
        loop.remove_reader(own)
        if not done.done():
            done.set_result(None)

    try:
        loop.add_reader(own, ready)
        await done
    finally:
        loop.remove_reader(own)
        os.close(own)


def read_pid(path: Path) -> int:
    """0 where there is no such file or no number in it. Raises InternalError where it cannot be read."""
    text = (_content(path) or b"").strip()
    return int(text) if text.isdigit() else 0


def find(pid: int, recognise: Callable[[int], bool]) -> Handle | None:
    """The process, if it lives and is the one that we mean. Raises InternalError where that cannot be found out."""
    if pid <= 0:
        return None
    try:
        handle = Handle(pid, os.pidfd_open(pid))
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL):  # ended, or the number is a thread's now
            return None
        raise InternalError(f"process {pid} cannot be looked at: {error.strerror}") from error
    found = False
    try:
        found = not is_zombie(pid) and recognise(pid)
    finally:
        if not found:
            handle.close()
    return handle if found else None


def is_zombie(pid: int) -> bool:
    """Also true for a process that is not there."""
    state = (_content(Path(f"/proc/{pid}/stat")) or b"").rpartition(b") ")[2][:1]
    return state in (b"Z", b"X", b"")


def command_line(pid: int) -> list[str]:
    return (_content(Path(f"/proc/{pid}/cmdline")) or b"").decode(errors="replace").split("\0")


def in_group(pid: int, group: str) -> bool:
    """Whether the process belongs to a control group of this path, in any hierarchy."""
    lines = (_content(Path(f"/proc/{pid}/cgroup")) or b"").decode(errors="replace").splitlines()
    wanted = "/" + group.strip("/")
    return any(line.endswith(wanted) or f"{wanted}/" in line for line in lines)


def _content(path: Path) -> bytes | None:
    """None where there is no such file, or (in /proc) no such process any more."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    except OSError as error:
        raise InternalError(f"{path} cannot be read: {error.strerror}") from error


def descendants(pid: int) -> list[int]:
    """Children, their children and so on, at this moment."""
    found: list[int] = []
    waiting = [pid]
    while waiting and len(found) < 10_000:
        parent = waiting.pop()
        for children in _of_each_thread(parent):
            with contextlib.suppress(OSError):
                pids = [int(word) for word in children.read_text().split()]
                found += pids
                waiting += pids
    return found


def _of_each_thread(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").glob("*/children"))
    except OSError:  # it ended while they were listed
        return []
