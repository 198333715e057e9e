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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from swarm.errors import FailedPrecondition, InternalError
from swarm.v1 import raft_pb2 as pb

from orchestrator.raft.disk import Directory, StoredFile
from orchestrator.raft.sealing import OVERHEAD_BYTES, Sealed, Sealer, open_sealed

SCHEMA = 1
PART_BYTES = 512 << 10  # of a transfer
# A file is synced as it grows. One sync of all of it at its end would be a burst that syncs of the journal wait behind.
_SYNC_BYTES = 256 << 10
_BLOCK = struct.Struct("<IIII")  # magic, kind, length, checksum
_MAGIC = 0x53525753  # "SWRS"
_HEADER, _STATE, _END, _SEALED = 1, 2, 3, 4
_MAX_BLOCK = 8 << 20
_SUFFIX = ".snapshot"
_TEMPORARY = ".part"


class SnapshotDamaged(InternalError):
    """A snapshot file of this manager cannot be trusted. `what` is wrong with it, whoever it belongs to."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(
            f"snapshot {name}: {what}; this manager's state is damaged: remove it from the swarm and let it join again"
        )
        self.what = what


@dataclass(frozen=True)
class Snapshot:
    """A whole snapshot on disk: the state after entry `index`, whose term is `term`."""

    name: str
    index: int
    term: int
    configuration: pb.RaftConfiguration


def _block(kind: int, data: bytes) -> bytes:
    return _BLOCK.pack(_MAGIC, kind, len(data), zlib.crc32(data, kind)) + data


def _context(number: int) -> bytes:
    return b"block %d" % number


def file_name(index: int, term: int) -> str:
    return f"{index:020d}-{term:010d}{_SUFFIX}"


class SnapshotStore:
    """The snapshots of a directory; the newest counts."""

    def __init__(
        self, directory: Directory, sealer: Sealer | None = None, *, breathe: Callable[[], None] = lambda: None
    ) -> None:
        """`breathe` is called after each block that `write` has written: to let the rest of the process go on."""
        self._directory = directory
        self._sealer = sealer
        self._breathe = breathe
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
            incoming.add_block(_HEADER, header.SerializeToString())
            for chunk in chunks:
                incoming.add_block(_STATE, zlib.compress(chunk, 1))
                self._breathe()
            incoming.add_block(_END, b"")
            incoming.finish()
        return Snapshot(name, index, term, configuration)

    def receive(self, name: str) -> IncomingSnapshot:
        """A file under way; it counts once `finish` has returned."""
        return IncomingSnapshot(self._directory, name, next(self._attempts), self._sealer)

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
            for kind, data in self._blocks(file, snapshot.name):
                if kind == _STATE:
                    try:
                        yield zlib.decompress(data)
                    except zlib.error as error:
                        raise SnapshotDamaged(snapshot.name, str(error)) from error
        finally:
            file.close()

    def _blocks(self, file: StoredFile, name: str) -> Iterator[tuple[int, bytes]]:
        """All blocks, opened where they were sealed."""
        offset, number, kind = 0, 0, 0
        while kind != _END:
            kind, data, offset = self._read_block(file, name, offset)
            if kind == _SEALED:
                try:
                    yield _STATE, open_sealed(self._sealer, data, _context(number))
                except Sealed as error:
                    raise FailedPrecondition(f"snapshot {name}: {error}") from error
            else:
                yield kind, data
            number += 1

    def parts(self, snapshot: Snapshot) -> tuple[int, Iterator[bytes]]:
        """The size of the file as it travels, and its bytes in parts. They stay readable even where the file is removed
        meanwhile."""
        file = self._directory.open(snapshot.name)
        size = self._size_opened(file, snapshot.name)

        def read() -> Iterator[bytes]:
            try:
                for kind, data in self._blocks(file, snapshot.name):
                    block = _block(kind, data)
                    for start in range(0, len(block), PART_BYTES):
                        yield block[start : start + PART_BYTES]
            finally:
                file.close()

        return size, read()

    @staticmethod
    def _size_opened(file: StoredFile, name: str) -> int:
        offset, size, end = 0, 0, file.size()
        while offset < end:
            head = file.read(offset, _BLOCK.size)
            if len(head) < _BLOCK.size:
                raise SnapshotDamaged(name, f"it ends at byte {offset}")
            _, kind, length, _ = _BLOCK.unpack(head)
            offset += _BLOCK.size + length
            size += _BLOCK.size + length - (OVERHEAD_BYTES if kind == _SEALED else 0)
        return size

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
            raise SnapshotDamaged(name, "it does not begin with a header")
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
            raise SnapshotDamaged(name, f"it ends at byte {offset}")
        magic, kind, length, checksum = _BLOCK.unpack(head)
        if magic != _MAGIC or length > _MAX_BLOCK:
            raise SnapshotDamaged(name, f"no block begins at byte {offset}")
        data = file.read(offset + _BLOCK.size, length)
        if len(data) < length or zlib.crc32(data, kind) != checksum:
            raise SnapshotDamaged(name, f"the block at byte {offset} is unreadable")
        return kind, data, offset + _BLOCK.size + length


class IncomingSnapshot:
    """A snapshot file that is being written."""

    def __init__(self, directory: Directory, name: str, attempt: int, sealer: Sealer | None = None) -> None:
        self._directory = directory
        self._name = name
        self._temporary = f"{name}.{attempt}{_TEMPORARY}"  # a second transfer of the same one must not write into this
        self._file: StoredFile | None = directory.open(self._temporary, create=True)
        self._offset = 0
        self._synced = 0
        self._sealer = sealer
        self._number = 0
        self._partial = bytearray()

    def add(self, data: bytes) -> None:
        """The next bytes of a file as it travels. Raises SnapshotDamaged where they are not blocks."""
        self._partial += data
        while len(self._partial) >= _BLOCK.size:
            magic, kind, length, checksum = _BLOCK.unpack_from(self._partial)
            if magic != _MAGIC or length > _MAX_BLOCK:
                raise SnapshotDamaged(self._name, "what arrived is not a snapshot")
            end = _BLOCK.size + length
            if len(self._partial) < end:
                return
            block = bytes(self._partial[_BLOCK.size : end])
            if zlib.crc32(block, kind) != checksum:
                raise SnapshotDamaged(self._name, "a block arrived damaged")
            del self._partial[:end]
            self.add_block(kind, block)

    def add_block(self, kind: int, data: bytes) -> None:
        assert self._file is not None
        if kind == _STATE and self._sealer is not None:
            kind, data = _SEALED, self._sealer.seal(data, _context(self._number))
        self._number += 1
        block = _block(kind, data)
        self._file.write(self._offset, block)
        self._offset += len(block)
        if self._offset - self._synced >= _SYNC_BYTES:
            self._file.sync()
            self._synced = self._offset

    def finish(self) -> None:
        """Makes the file durable under its final name."""
        assert self._file is not None
        if self._partial:
            raise SnapshotDamaged(self._name, "it arrived incomplete")
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
