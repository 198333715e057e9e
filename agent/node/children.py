"""Processes around the daemon: one daemon for each state directory, what its children inherit, and orphans that nobody else
reaps.

Monitors of containers lose their parents on purpose. Where PID 1 reaps (systemd) they would go there; the daemon makes itself
a child subreaper so that it works where it does not, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import resource
from pathlib import Path
from typing import IO

from swarm.errors import FailedPrecondition

log = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
OPEN_FILES = 1 << 20  # as the unit file of docs/real-hosts.md; what counts up to its limit would take long for more
REAP_AFTER = 5.0  # seconds that a zombie may wait for whoever started it


def become_subreaper() -> None:
    """Orphans among our descendants become our children."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        log.warning("cannot become a child subreaper: %s", os.strerror(ctypes.get_errno()))


def raise_open_files() -> None:
    """As many open files as we may have, for us and for what we start: each container takes some of ours, and a shell begins
    us with 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:
        log.warning("no more than %d files can be open: %s", soft, error)


class OrphanReaper:
    """Reaps children that nobody waited for. Our own are waited for at once by whoever started them; a zombie that is still
    there seconds later is an adopted one. Call `sweep` every few seconds."""

    def __init__(self) -> None:
        self._seen: dict[int, float] = {}

    def sweep(self, now: float) -> list[int]:
        """Reaps what is due at `now` (monotonic seconds); the process ids that were reaped."""
        zombies = {pid for pid in _children() if _is_zombie(pid)}
        self._seen = {pid: self._seen.get(pid, now) for pid in zombies}
        due = [pid for pid, since in self._seen.items() if now - since >= REAP_AFTER]
        for pid in due:
            with contextlib.suppress(ChildProcessError):  # its starter was quicker after all
                os.waitpid(pid, os.WNOHANG)
            del self._seen[pid]
        return due


def _children() -> set[int]:
    """Children of the main thread: the kernel gives orphans to it. What other threads start they wait for themselves."""
    return {int(word) for word in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def _is_zombie(pid: int) -> bool:
    """Looks without reaping, so that a child of ours keeps its exit code for its starter."""
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return found is not None and found.si_pid == pid


def lock_state(state: Path) -> IO[str]:
    """Makes sure that this is the only daemon on the state directory, as long as the returned file is open.

    Raises FailedPrecondition, naming the process that holds it.
    """
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        state.chmod(0o700)  # containers' output and volumes lie below; who made it may have left it open
        lock = (state / "swarmd.lock").open("a+")
    except OSError as error:
        raise FailedPrecondition(f"the state directory {state} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise FailedPrecondition(
            f"another swarmd (process {holder}) runs on the state directory {state}; stop it or name another --state-dir"
        ) from error
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock
