"""The simulated disk as the library as shipped sees it: `open`, `os`, `shutil` and `mmap`, over `VirtualDirectory`.

What the library writes into a mapped file is in the page cache: a killed process loses nothing of it, a power loss may. Where
the disk is full a mapped page has nowhere to go, and the process dies.
"""

from __future__ import annotations

import errno
from types import SimpleNamespace, TracebackType
from typing import Any

from orchestrator.raft.disk import DiskFull
from tests.simulation.raft.virtual_disk import VirtualDirectory, VirtualFile


class _File:
    def __init__(self, directory: VirtualDirectory, name: str, mode: str) -> None:
        there = name in directory.names()
        if mode[0] == "r" and not there:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        self.directory, self.name = directory, name
        self.file: VirtualFile = directory.open(name, create=mode[0] == "w" or not there)
        self._at = self.file.size() if mode[0] == "a" else 0

    def write(self, data: bytes) -> int:
        try:
            self.file.write(self._at, bytes(data))
        except DiskFull as error:
            raise OSError(errno.ENOSPC, "no space left on device", self.name) from error
        self._at += len(data)
        return len(data)

    def read(self, count: int = -1) -> bytes:
        data = self.file.read(self._at, self.file.size() if count is None or count < 0 else count)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self.file.size())[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def fileno(self) -> _File:
        return self  # for `mmap`

    def flush(self) -> None:
        """Into the page cache, where it is already."""

    def close(self) -> None:
        """Nothing to give back."""

    def __enter__(self) -> _File:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _Mapping:
    def __init__(self, opened: _File, _length: int) -> None:
        if opened.file.size() == 0:
            raise ValueError("cannot mmap an empty file")
        self._directory, self._file = opened.directory, opened.file

    def size(self) -> int:
        return self._file.size()

    def resize(self, size: int) -> None:
        self._file.truncate(size)  # sparse: takes no room yet

    def __getitem__(self, part: slice) -> bytes:
        return self._file.read(part.start, part.stop - part.start)

    def __setitem__(self, part: slice, data: bytes) -> None:
        if self._directory.used() > self._directory.capacity:
            self._directory.fail_after(0)  # SIGBUS
        self._file.write(part.start, data)

    def flush(self) -> None:
        self._file.sync()

    def close(self) -> None:
        """Nothing to give back."""


class StockFiles:
    """Paths are `MEMBER/NAME`."""

    def __init__(self) -> None:
        self.disks: dict[str, VirtualDirectory] = {}
        self.os = SimpleNamespace(path=SimpleNamespace(exists=self._exists, isfile=self._exists), rename=self.rename)
        self.shutil = SimpleNamespace(move=self.rename)
        self.mmap = SimpleNamespace(mmap=_Mapping)

    def open(self, path: str, mode: str = "r") -> Any:
        return _File(*self._find(path), mode)

    def rename(self, old: str, new: str) -> None:
        directory, name = self._find(old)
        directory.rename(name, self._find(new)[1])

    def _exists(self, path: str) -> bool:
        directory, name = self._find(path)
        return name in directory.names()

    def _find(self, path: str) -> tuple[VirtualDirectory, str]:
        member, _, name = path.partition("/")
        return self.disks[member], name
