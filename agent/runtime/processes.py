"""Processes that are not our children: found by the pid files they left, recognised, waited for and killed through pidfds.

A pid file may be older than the process that has the number now.  A pidfd stays with one process, so the order is: open it,
then look in /proc whether that is the process we mean, then use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path


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
        """Waits for the end of the process; reaps it where it is an orphan that became our child."""
        await readable(self._descriptor)
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
    """0 where there is no such file or no number in it."""
    try:
        text = path.read_text().strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0


def find(pid: int, recognise: Callable[[int], bool]) -> Handle | None:
    """The process, if it lives and is the one that we mean."""
    if pid <= 0:
        return None
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:  # ended, or (EINVAL) the number is a thread's now
        return None
    if not is_zombie(pid) and recognise(pid):
        return Handle(pid, descriptor)
    os.close(descriptor)
    return None


def is_zombie(pid: int) -> bool:
    """Also true for a process that is not there."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1]
    except OSError:
        return True
    return state in (b"Z", b"X", b"")


def command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def in_group(pid: int, group: str) -> bool:
    """Whether the process belongs to a control group of this path, in any hierarchy."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return False
    wanted = "/" + group.strip("/")
    return any(line.endswith(wanted) or f"{wanted}/" in line for line in lines)


def descendants(pid: int) -> list[int]:
    """Children, their children and so on, at this moment."""
    found: list[int] = []
    waiting = [pid]
    while waiting and len(found) < 10_000:
        parent = waiting.pop()
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                pids = [int(word) for word in children.read_text().split()]
                found += pids
                waiting += pids
    return found
