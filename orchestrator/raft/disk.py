"""The few operations on files that the journal and the snapshots are built from.

One directory, flat. Nothing is durable before `StoredFile.sync` (contents) and `Directory.sync` (names) have returned: the
simulator replaces both classes by ones that lose, tear and reorder whatever was not synced. Space is allocated before it
is written, so that a full disk shows as `DiskFull` at a moment of our choosing and never in the middle of a record.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from swarm.errors import ResourceExhausted, is_disk_full


class DiskFull(ResourceExhausted):
    """There is no room for another record; the member refuses writes until there is."""


class StoredFile(Protocol):
    """An open file."""

    def read(self, offset: int, length: int) -> bytes: ...

    def write(self, offset: int, data: bytes) -> None: ...

    def allocate(self, size: int) -> None:
        """Makes sure that the file has room, zeroed, up to `size`. Raises DiskFull."""
        ...

    def truncate(self, size: int) -> None: ...

    def size(self) -> int: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


class Directory(Protocol):
    """A flat directory."""

    def names(self) -> list[str]: ...

    def open(self, name: str, *, create: bool = False) -> StoredFile: ...

    def rename(self, old: str, new: str) -> None: ...

    def remove(self, name: str) -> None: ...

    def sync(self) -> None: ...


class LocalFile:
    """A file of the host."""

    def __init__(self, path: Path, *, create: bool) -> None:
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_TRUNC if create else 0)
        self._path = path
        try:
            self._descriptor = os.open(path, flags, 0o600)
        except OSError as error:  # no room for a name, or for what the file system notes of a file
            raise self._full(error) from error

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, offset)

    def write(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                written = os.pwrite(self._descriptor, view, offset)
            except OSError as error:
                raise self._full(error) from error
            view, offset = view[written:], offset + written

    def allocate(self, size: int) -> None:
        try:
            os.posix_fallocate(self._descriptor, 0, size)
        except OSError as error:
            raise self._full(error) from error

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def sync(self) -> None:
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _full(self, error: OSError) -> Exception:
        if is_disk_full(error):
            return DiskFull(
                f"the disk that holds {self._path.parent} is full; free some space, writes are accepted again then"
            )
        return error


class LocalDirectory:
    """A directory of the host, created where it is missing (mode 0700)."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path = path

    def names(self) -> list[str]:
        return sorted(entry.name for entry in self.path.iterdir() if entry.is_file())

    def open(self, name: str, *, create: bool = False) -> LocalFile:
        return LocalFile(self.path / name, create=create)

    def rename(self, old: str, new: str) -> None:
        (self.path / old).replace(self.path / new)

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def sync(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
