"""Network namespaces, and the threads that work inside them.

A namespace belongs to a thread, so everything that must happen inside one (opening a netlink or a DNS socket, writing a
sysctl) runs on a thread of `NamespaceThreads`. Each job first returns its thread to the home namespace – the one that the
process was started in, which in a lab is not the machine's – so that a job that failed half-way cannot make the next one
work in the wrong place. A socket belongs for ever to the namespace that it was opened in; the thread may leave meanwhile.

Knows nothing of tasks or overlays, and raises OSError only: the resolver imports it and must stay small.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

CLONE_NEWNET = 0x40000000
MS_BIND = 4096
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def current_namespace() -> int:
    """A descriptor of the calling thread's network namespace."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def enter(descriptor: int) -> None:
    """Moves the calling thread into the namespace."""
    _check(_libc.setns(descriptor, CLONE_NEWNET), "setns")


def create(path: Path) -> None:
    """Makes a network namespace, keeps it alive at `path`, and leaves the calling thread inside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(exist_ok=True)
    try:
        _check(_libc.unshare(CLONE_NEWNET), "unshare")
        source = b"/proc/thread-self/ns/net"
        _check(_libc.mount(source, os.fsencode(path), b"none", MS_BIND, None), f"mount {path}")
    except OSError:
        path.unlink(missing_ok=True)
        raise


def delete(path: Path) -> None:
    """Lets go of the namespace at `path`; the kernel frees it once nothing runs in it. Not an error where it is gone."""
    # More than one mount can lie on the path where an earlier process was killed between two steps.
    while path.exists() and _libc.umount2(os.fsencode(path), MNT_DETACH) == 0:
        pass
    path.unlink(missing_ok=True)


def is_namespace(path: Path) -> bool:
    """Whether a namespace is kept at `path` (a plain file is what a crash leaves)."""
    try:
        return path.stat().st_dev == Path("/proc/self/ns/net").stat().st_dev
    except FileNotFoundError:
        return False


def write_sysctl(name: str, value: str) -> None:
    """Sets a `net.…` sysctl of the calling thread's namespace; the part after `conf.` or `neigh.` may be an interface."""
    with Path("/proc/sys", *name.split(".")).open("w") as file:
        file.write(value)


class NamespaceThreads:
    """A few threads that may change their network namespace. `close` when done."""

    def __init__(self, workers: int = 3) -> None:
        self._home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="netns")

    def leave(self) -> None:
        """Returns the calling thread to the home namespace, from within a job."""
        enter(self._home)

    @contextlib.contextmanager
    def inside(self, path: Path) -> Iterator[None]:
        """Puts the calling thread into the namespace at `path`, from within a job; then back home."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            enter(descriptor)
        finally:
            os.close(descriptor)
        try:
            yield
        finally:
            self.leave()

    async def run(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a blocking job that starts in the home namespace. A cancelled caller still waits for the job's end, so
        that what the job made is known and can be undone."""
        future = asyncio.get_running_loop().run_in_executor(self._pool, partial(self._at_home, job, *args, **kwargs))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([future])
            raise

    def _at_home(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        self.leave()
        try:
            return job(*args, **kwargs)
        finally:
            self.leave()  # an idle thread must not keep a namespace alive

    def close(self) -> None:
        self._pool.shutdown(wait=True)
        os.close(self._home)
