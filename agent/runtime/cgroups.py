"""Control groups of containers, by the files of the kernel: where they are, what they count, how they go away.

Three layouts exist: version 1 (a hierarchy for each controller), version 2 (one), and hybrid, which is version 1 with an
empty version 2 beside it.  The OCI runtime creates a container's group, `PARENT/ID` in each hierarchy; this module reads
it, removes it, and moves monitors out of the agent's own group, because an init system that stops the agent kills all
that is in that group.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
from dataclasses import dataclass
from pathlib import Path

MONITORS = "monitors"  # the group, below the parent, of all containers' monitors


@dataclass(frozen=True)
class Hierarchies:
    """The mounted hierarchies of a host: `controllers` by name (version 1), `unified` where version 2 is mounted."""

    controllers: tuple[tuple[str, Path], ...] = ()
    unified: Path | None = None

    @property
    def version_2_only(self) -> bool:
        return not self.controllers

    @property
    def roots(self) -> tuple[Path, ...]:
        """Each hierarchy once, also where one mount carries several controllers."""
        found = list(dict.fromkeys(path for _, path in self.controllers))
        return tuple(found + ([self.unified] if self.unified is not None else []))

    def controller(self, name: str) -> Path | None:
        """The hierarchy that has this controller."""
        if self.version_2_only:
            return self.unified
        return next((path for controller, path in self.controllers if controller == name), None)


def parse_mounts(mountinfo: str) -> Hierarchies:
    """From /proc/self/mountinfo. The first mount of each hierarchy counts; a container's bind mounts come later."""
    controllers: dict[str, Path] = {}
    unified: Path | None = None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kind) < 3:
            continue
        place = Path(fields[4])
        if not place.is_relative_to("/sys/fs/cgroup"):
            continue
        if kind[0] == "cgroup2":
            unified = unified if unified is not None else place
        elif kind[0] == "cgroup":
            for option in kind[2].split(","):
                name = option.removeprefix("name=")
                if option not in ("rw", "ro", "xattr", "noprefix", "clone_children"):
                    controllers.setdefault(name, place)
    return Hierarchies(tuple(controllers.items()), unified)


@functools.lru_cache(maxsize=1)
def hierarchies() -> Hierarchies:
    """Of this host. Mounts of control groups do not change while a host runs."""
    return parse_mounts(Path("/proc/self/mountinfo").read_text())


def group_paths(host: Hierarchies, parent: str, name: str) -> list[Path]:
    return [root / parent.strip("/") / name for root in host.roots]


def _counter(path: Path) -> int:
    try:
        text = path.read_text().strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0


def _table(path: Path) -> dict[str, int]:
    """The `key value` lines of a file; empty where it cannot be read."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


@dataclass(frozen=True)
class Usage:
    cpu_seconds: float
    memory_bytes: int  # without the page cache that the kernel would give up first
    pids: int


def usage(host: Hierarchies, parent: str, name: str) -> Usage | None:
    """What the container has used; None where it has no group."""
    inner = Path(parent.strip("/")) / name
    groups = {
        kind: root / inner for kind in ("cpuacct", "memory", "pids") if (root := host.controller(kind)) is not None
    }
    if not any(group.is_dir() for group in groups.values()):
        return None
    memory, pids, cpu = groups.get("memory"), groups.get("pids"), groups.get("cpuacct")
    processes = _counter(pids / "pids.current") if pids is not None else 0
    if host.version_2_only:
        assert memory is not None and cpu is not None
        used = _counter(memory / "memory.current") - _table(memory / "memory.stat").get("inactive_file", 0)
        return Usage(_table(cpu / "cpu.stat").get("usage_usec", 0) / 1e6, max(0, used), processes)
    used = 0
    if memory is not None:
        used = _counter(memory / "memory.usage_in_bytes") - _table(memory / "memory.stat").get("total_inactive_file", 0)
    return Usage(_counter(cpu / "cpuacct.usage") / 1e9 if cpu is not None else 0.0, max(0, used), processes)


def killed_for_memory(host: Hierarchies, parent: str, name: str) -> bool:
    """Whether the kernel killed a process of the container because its memory limit was reached."""
    root = host.controller("memory")
    if root is None:
        return False
    group = root / parent.strip("/") / name
    events = group / ("memory.events" if host.version_2_only else "memory.oom_control")
    return _table(events).get("oom_kill", 0) > 0


def processes(host: Hierarchies, parent: str, name: str) -> set[int]:
    """All processes of the container, in any hierarchy."""
    found: set[int] = set()
    for group in group_paths(host, parent, name):
        for place in (group, *_children(group)):
            with contextlib.suppress(OSError):
                found.update(int(word) for word in (place / "cgroup.procs").read_text().split())
    return found - {0}  # one that our own process namespace does not show: as a number it would mean ourselves


def _children(group: Path) -> list[Path]:
    """Groups below, the deepest first."""
    try:
        if group.stat().st_nlink <= 2:  # the usual case, without listing the directory: itself, and its name above
            return []
        found = [path.parent for path in group.rglob("cgroup.procs") if path.parent != group]
    except FileNotFoundError:  # one went while they were listed: whoever needs it looks again
        return []
    return sorted(found, key=lambda path: len(path.parts), reverse=True)


def kill(host: Hierarchies, parent: str, name: str) -> None:
    """Ends all processes of the container. Version 2 does it in one step, which no fork outruns (Linux 5.14); elsewhere it is
    to be repeated until `remove` succeeds."""
    if host.unified is not None:
        with contextlib.suppress(OSError):  # no such group, or an older kernel
            (host.unified / parent.strip("/") / name / "cgroup.kill").write_text("1")
    for pid in processes(host, parent, name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def remove_parent(host: Hierarchies, parent: str) -> bool:
    """Removes the group of all containers, and that of their monitors, once they are empty; False where one is not. What others
    made below it stays."""
    gone = True
    for group in group_paths(host, parent, "") if parent.strip("/") else ():
        for place in (group / MONITORS, group):
            try:
                place.rmdir()
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                    raise
                gone = False
    return gone


def counts_swap(host: Hierarchies) -> bool:
    """Whether a limit of swap can be set: the kernel may have been built or started without. The root group of version 2 has no
    limits, so the groups below it are looked at."""
    root = host.controller("memory")
    if root is None:
        return False
    if host.version_2_only:
        return next(root.glob("*/memory.swap.max"), None) is not None
    return (root / "memory.memsw.limit_in_bytes").exists()


def remove(host: Hierarchies, parent: str, name: str) -> bool:
    """Removes the container's groups; False where one is still busy with processes that are ending."""
    gone = True
    for group in group_paths(host, parent, name):
        for place in (*_children(group), group):
            try:
                place.rmdir()
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                gone = False
    return gone


def monitor_groups(host: Hierarchies, parent: str, own: str) -> list[Path]:
    """The groups that a monitor must be moved to; none where the agent itself is in the root group.

    `own` is /proc/self/cgroup. An init system finds a service's processes by version 2, or on older hosts by the hierarchy
    that is named after it; the other hierarchies of version 1 only count, and stay.
    """
    own_paths: dict[str, str] = {}
    for line in own.splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        for name in names.split(","):
            own_paths[name.removeprefix("name=")] = path
    found: list[Path] = []
    inner = Path(parent.strip("/")) / MONITORS
    if host.unified is not None and own_paths.get("", "/") != "/":
        found.append(host.unified / inner)
    manager = dict(host.controllers).get("systemd")
    if manager is not None and own_paths.get("systemd", "/") != "/":
        found.append(manager / inner)
    return found


def move_monitor(host: Hierarchies, parent: str, pid: int) -> None:
    """Puts a process that has not forked yet where the end of the agent does not reach it. Raises OSError."""
    for group in monitor_groups(host, parent, Path("/proc/self/cgroup").read_text()):
        group.mkdir(parents=True, exist_ok=True)
        (group / "cgroup.procs").write_text(str(pid))
