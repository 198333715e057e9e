"""One manager on a host at a time, and how its agent finds it again.

The file holds the process id and stays locked as long as the process lives. An agent that was restarted reads it, sees by the
lock that the manager lives, and adopts it instead of starting another one.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from swarm.errors import AlreadyExists


@contextmanager
def locked(path: Path) -> Generator[None, None, None]:
    """Holds the lock while inside. Raises AlreadyExists where another process does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            other = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise AlreadyExists(f"a manager runs on this host already (process {other}, {path})") from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def running(path: Path) -> int | None:
    """The process id of the manager that holds the lock; None where none runs."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        content = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        return int(content) if content.isdecimal() else None
    finally:
        os.close(descriptor)
    return None
