"""A disk that forgets what was not synced.

`crash(power=True)` is a power loss: of the writes since the last sync each survives, or not, or in part (whole sectors of
512 bytes), in any order; of the changes of names since the directory's last sync a prefix survives. `crash(power=False)` is a
killed process: the kernel keeps everything. `fail_after` makes the n-th operation from now raise `Crashed`, so that a member
dies between any two operations. `spend` is told how long each operation takes, where the disk is slow.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from orchestrator.raft.disk import DiskFull

SECTOR = 512


class Crashed(BaseException):
    """The member stopped at this very operation. Not an Exception: nothing may handle it."""


class _Contents:
    def __init__(self) -> None:
        self.now = bytearray()
        self.synced = bytearray()
        self.unsynced: list[tuple[int, bytes]] = []
        self.sizes: list[int] = []

    def write(self, offset: int, data: bytes) -> None:
        if len(self.now) < offset + len(data):
            self.now.extend(bytes(offset + len(data) - len(self.now)))
        self.now[offset : offset + len(data)] = data
        self.unsynced.append((offset, bytes(data)))

    def resize(self, size: int) -> None:
        if size < len(self.now):
            del self.now[size:]
        else:
            self.now.extend(bytes(size - len(self.now)))
        self.sizes.append(size)

    def sync(self) -> None:
        if self.sizes or len(self.synced) != len(self.now):
            self.synced = bytearray(self.now)
        else:
            for offset, data in self.unsynced:
                self.synced[offset : offset + len(data)] = data
        self.unsynced.clear()
        self.sizes.clear()

    def lose_power(self, rng: random.Random, met: Counter[str]) -> None:
        """What survives; `met` counts what was lost and torn."""
        after = bytearray(self.synced)
        if self.sizes:
            size = rng.choice([len(self.synced), *self.sizes])
            after = after[:size] + bytes(max(0, size - len(after)))
        for offset, data in self.unsynced:
            survived, sectors = 0, range(0, len(data), SECTOR)
            for start in sectors:
                if rng.random() < 0.5:
                    survived += 1
                    piece = data[start : start + SECTOR]
                    at = offset + start
                    if len(after) < at + len(piece):
                        after.extend(bytes(at + len(piece) - len(after)))
                    after[at : at + len(piece)] = piece
            if survived < len(sectors):
                met["unsynced write torn" if survived else "unsynced write lost"] += 1
        self.now = after
        self.synced = bytearray(after)
        self.unsynced.clear()
        self.sizes.clear()


class VirtualDirectory:
    """Implements `orchestrator.raft.disk.Directory`."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._files: dict[str, _Contents] = {}
        self._synced: dict[str, _Contents] = {}
        self._changes: list[dict[str, _Contents]] = []  # the names after each change since the last sync
        self._countdown: int | None = None
        self.stopped_before: str | None = None  # the operation that the member stopped at
        self.operations = 0
        self.capacity = 1 << 60
        self.spend: Callable[[str], None] = lambda _: None
        self.met: Counter[str] = Counter()  # what the faults did

    # ---- faults

    def fail_after(self, operations: int | None) -> None:
        self._countdown = operations

    def step(self, operation: str = "operation") -> None:
        """Before each operation. A member that was stopped stays so: nothing that it still does has an effect."""
        self.operations += 1
        if self._countdown is not None:
            if self._countdown <= 0:
                self.stopped_before = operation
                raise Crashed
            self._countdown -= 1
        self.spend(operation)

    def crash(self, *, power: bool) -> None:
        """What a restart finds."""
        self._countdown = None
        if self.stopped_before is not None:
            self.met[f"stopped before {self.stopped_before}"] += 1
            self.stopped_before = None
        if power:
            if self._changes:
                survived = self._rng.randint(0, len(self._changes))
                if survived < len(self._changes):
                    self.met["unsynced change of names lost"] += 1
                self._files = dict(self._changes[survived - 1] if survived else self._synced)
            for contents in self._files.values():
                contents.lose_power(self._rng, self.met)
        self._synced, self._changes = dict(self._files), []

    def flip_bit(self, name: str, offset: int) -> None:
        self._files[name].now[offset] ^= 1
        self._files[name].synced = bytearray(self._files[name].now)

    def contents(self, name: str) -> bytes:
        return bytes(self._files[name].now)

    def put(self, name: str, data: bytes) -> None:
        """A file that is there, durably."""
        contents = _Contents()
        contents.write(0, data)
        contents.sync()
        self._files[name] = self._synced[name] = contents

    def used(self) -> int:
        return sum(len(contents.now) for contents in self._files.values())

    # ---- Directory

    def names(self) -> list[str]:
        return sorted(self._files)

    def open(self, name: str, *, create: bool = False) -> VirtualFile:
        if create:
            self._changed("create", lambda: self._files.__setitem__(name, _Contents()))
        elif name not in self._files:
            raise FileNotFoundError(name)
        return VirtualFile(self, self._files[name])

    def rename(self, old: str, new: str) -> None:
        self._changed("rename", lambda: self._files.__setitem__(new, self._files.pop(old)))

    def remove(self, name: str) -> None:
        self._changed("remove", lambda: self._files.pop(name, None) and None)

    def sync(self) -> None:
        self.step("sync of names")
        self._synced, self._changes = dict(self._files), []

    def _changed(self, operation: str, change: Callable[[], None]) -> None:
        self.step(operation)
        change()
        self._changes.append(dict(self._files))


class VirtualFile:
    """Implements `orchestrator.raft.disk.StoredFile`."""

    def __init__(self, directory: VirtualDirectory, contents: _Contents) -> None:
        self._directory = directory
        self._contents = contents

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._contents.now[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        self._directory.step("write")
        self._check_room(offset + len(data))
        self._contents.write(offset, data)

    def allocate(self, size: int) -> None:
        if size > len(self._contents.now):
            self._directory.step("allocate")
            self._check_room(size)
            self._contents.resize(size)

    def truncate(self, size: int) -> None:
        self._directory.step("truncate")
        self._contents.resize(size)

    def size(self) -> int:
        return len(self._contents.now)

    def sync(self) -> None:
        self._directory.step("sync")
        self._contents.sync()

    def close(self) -> None:
        """Nothing to give back."""

    def _check_room(self, size: int) -> None:
        grows = size - len(self._contents.now)
        if grows > 0 and self._directory.used() + grows > self._directory.capacity:
            raise DiskFull("the disk is full")
