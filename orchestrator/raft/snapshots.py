"""Snapshots of the replicated state, as files (removes defects H and the stalls of O).

A file is a sequence of checksummed blocks: a header (schema, index, term, configuration), then compressed pieces of the
state, then an empty block that says "whole". It is written under a temporary name, synced, and renamed; so a file with a
final name is whole, or the disk damaged it, which is an error and never an empty state. Writing and sending happen off the
tick thread, which only takes the state machine's copy-on-write view.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from swarm.errors import InternalError
from swarm.v1 import raft_pb2 as pb

from orchestrator.raft.disk import Directory, StoredFile

SCHEMA = 1
PART_BYTES = 512 << 10  # of a transfer
_BLOCK = struct.Struct("<IIII")  # magic, kind, length, checksum
_MAGIC = 0x53525753  # "SWRS"
_HEADER, _STATE, _END = 1, 2, 3
_MAX_BLOCK = 8 << 20
_SUFFIX = ".snapshot"
_TEMPORARY = ".part"


class SnapshotDamaged(InternalError):
    """A snapshot file cannot be trusted."""


@dataclass(frozen=True)
class Snapshot:
    """A whole snapshot on disk: the state after entry `index`, whose term is `term`."""

    name: str
    index: int
    term: int
    configuration: pb.RaftConfiguration


def _block(kind: int, data: bytes) -> bytes:
    return _BLOCK.pack(_MAGIC, kind, len(data), zlib.crc32(data, kind)) + data


def file_name(index: int, term: int) -> str:
    return f"{index:020d}-{term:010d}{_SUFFIX}"


class SnapshotStore:
    """The snapshots of a directory; the newest counts."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._attempts = itertools.count()

    def newest(self) -> Snapshot | None:
        """The newest snapshot; what a crash left unfinished is removed. Raises SnapshotDamaged."""
        found = None
        for name in self._directory.names():
            if name.endswith(_TEMPORARY):
                self._directory.remove(name)
            elif name.endswith(_SUFFIX):
                found = name
        return None if found is None else self.describe(found)

    def write(self, index: int, term: int, configuration: pb.RaftConfiguration, chunks: Iterable[bytes]) -> Snapshot:
        """Stores a snapshot durably. Takes as long as it takes: not for the tick thread. Raises DiskFull."""
        return self.write_as(file_name(index, term), index, term, configuration, chunks)

    def write_as(
        self, name: str, index: int, term: int, configuration: pb.RaftConfiguration, chunks: Iterable[bytes]
    ) -> Snapshot:
        """As `write`, under any name."""
        header = pb.RaftSnapshotHeader(schema=SCHEMA, index=index, term=term, configuration=configuration)
        with self.receive(name) as incoming:
            incoming.add(_block(_HEADER, header.SerializeToString()))
            for chunk in chunks:
                incoming.add(_block(_STATE, zlib.compress(chunk, 1)))
            incoming.add(_block(_END, b""))
            incoming.finish()
        return Snapshot(name, index, term, configuration)

    def receive(self, name: str) -> IncomingSnapshot:
        """A file under way; it counts once `finish` has returned."""
        return IncomingSnapshot(self._directory, name, next(self._attempts))

    def received(self, name: str) -> Snapshot:
        """Checks every block of a snapshot that came from another member. Raises SnapshotDamaged."""
        snapshot = self.describe(name)
        for _ in self.chunks(snapshot):
            pass
        return snapshot

    def chunks(self, snapshot: Snapshot) -> Iterator[bytes]:
        """The state's bytes, as `StateMachine.capture` gave them. Raises SnapshotDamaged."""
        file = self._directory.open(snapshot.name)
        try:
            offset, whole = 0, False
            while not whole:
                kind, data, offset = self._read_block(file, snapshot.name, offset)
                if kind == _STATE:
                    try:
                        yield zlib.decompress(data)
                    except zlib.error as error:
                        raise _damaged(snapshot.name, str(error)) from error
                whole = kind == _END
        finally:
            file.close()

    def parts(self, snapshot: Snapshot) -> tuple[int, Iterator[bytes]]:
        """The file's size and its bytes, for sending. The file stays readable even where it is removed meanwhile."""
        file = self._directory.open(snapshot.name)
        size = file.size()

        def read() -> Iterator[bytes]:
            try:
                for offset in range(0, size, PART_BYTES):
                    yield file.read(offset, min(PART_BYTES, size - offset))
            finally:
                file.close()

        return size, read()

    def remove_older(self, index: int) -> None:
        """Removes the snapshots that one at `index` replaces."""
        for name in self._directory.names():
            if name.endswith(_SUFFIX) and int(name.partition("-")[0]) < index:
                self._directory.remove(name)
        self._directory.sync()

    def describe(self, name: str) -> Snapshot:
        """What the file's header says. Raises SnapshotDamaged."""
        file = self._directory.open(name)
        try:
            kind, data, _ = self._read_block(file, name, 0)
        finally:
            file.close()
        if kind != _HEADER:
            raise _damaged(name, "it does not begin with a header")
        header = pb.RaftSnapshotHeader.FromString(data)
        if header.schema > SCHEMA:
            raise InternalError(
                f"snapshot {name} has schema {header.schema}, this version knows up to {SCHEMA}; "
                "start this manager with the newer version"
            )
        return Snapshot(name, header.index, header.term, header.configuration)

    @staticmethod
    def _read_block(file: StoredFile, name: str, offset: int) -> tuple[int, bytes, int]:
        head = file.read(offset, _BLOCK.size)
        if len(head) < _BLOCK.size:
            raise _damaged(name, f"it ends at byte {offset}")
        magic, kind, length, checksum = _BLOCK.unpack(head)
        if magic != _MAGIC or length > _MAX_BLOCK:
            raise _damaged(name, f"no block begins at byte {offset}")
        data = file.read(offset + _BLOCK.size, length)
        if len(data) < length or zlib.crc32(data, kind) != checksum:
            raise _damaged(name, f"the block at byte {offset} is unreadable")
        return kind, data, offset + _BLOCK.size + length


class IncomingSnapshot:
    """A snapshot file that is being written."""

    def __init__(self, directory: Directory, name: str, attempt: int) -> None:
        self._directory = directory
        self._name = name
        self._temporary = f"{name}.{attempt}{_TEMPORARY}"  # a second transfer of the same one must not write into this
        self._file: StoredFile | None = directory.open(self._temporary, create=True)
        self._offset = 0

    def add(self, data: bytes) -> None:
        assert self._file is not None
        self._file.write(self._offset, data)
        self._offset += len(data)

    def finish(self) -> None:
        """Makes the file durable under its final name."""
        assert self._file is not None
        self._file.sync()
        self._file.close()
        self._file = None
        self._directory.rename(self._temporary, self._name)
        self._directory.sync()

    def __enter__(self) -> IncomingSnapshot:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            self._directory.remove(self._temporary)


def _damaged(name: str, what: str) -> SnapshotDamaged:
    return SnapshotDamaged(
        f"snapshot {name}: {what}; this manager's state is damaged: remove it from the swarm and let it join again"
    )
