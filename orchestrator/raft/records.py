"""The bytes of a journal record, and how a segment is read back after a crash.

A record carries a checksum over itself, a sequence number without gaps, and the highest sequence number that was known
synced when it was written. The last is what tells a *torn tail* (writes that were never synced, and hence never
acknowledged: they are cut off) from *damage* (a record that was synced once and is unreadable now: refused, since cutting
it off would un-acknowledge writes and votes).
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

SCHEMA = 1  # raised whenever a record's meaning changes; an unknown one is refused
_MAGIC = 0x4A525753  # "SWRJ"
_HEADER = struct.Struct(
    "<IIIBBHQQQQ"
)  # magic, payload length, crc, kind, schema, sealed, sequence, synced, index, term
_CONTEXT = struct.Struct("<BQQQ")
HEADER_BYTES = _HEADER.size
_CHECKED_FROM = 12  # the checksum covers everything after itself
_ALIGNMENT = 8


class Kind(enum.IntEnum):
    """What a record says."""

    CHECKPOINT = 1  # first of each segment: all that earlier segments said and that still holds
    ENTRY = 2
    TRUNCATE = 3  # entries from `index` on are gone
    VOTE = 4  # the current term, and who got this member's vote (payload)
    RESET = 5  # a snapshot replaced the log
    COMMIT = 6  # a hint: everything up to `index` is committed


@dataclass(frozen=True, slots=True)
class Record:
    kind: Kind
    sequence: int
    synced: int
    index: int
    term: int
    payload: bytes
    sealed: bool = False  # the payload is sealed, see sealing.py

    @property
    def context(self) -> bytes:
        """What a sealed payload is bound to."""
        return _CONTEXT.pack(self.kind, self.sequence, self.index, self.term)


class Damaged(Exception):
    """A segment holds bytes that were synced once and do not make sense any more."""


class UnknownSchema(Exception):
    """A record was written by a newer version."""


def encoded_size(payload: int) -> int:
    """The bytes that a record with so long a payload takes."""
    return -(-(HEADER_BYTES + payload) // _ALIGNMENT) * _ALIGNMENT


def encode(record: Record) -> bytes:
    length = len(record.payload)
    rest = _HEADER.pack(
        _MAGIC, length, 0, record.kind, SCHEMA, record.sealed, record.sequence, record.synced, record.index, record.term
    )[_CHECKED_FROM:]
    crc = zlib.crc32(record.payload, zlib.crc32(rest, length))
    start = struct.pack("<III", _MAGIC, length, crc)
    return b"".join((start, rest, record.payload, bytes(encoded_size(length) - HEADER_BYTES - length)))


def _decode(data: bytes | memoryview, offset: int) -> Record | None:
    """The record at `offset`, or None where there is no whole one."""
    if offset + HEADER_BYTES > len(data):
        return None
    magic, length, crc, kind, schema, sealed, sequence, synced, index, term = _HEADER.unpack_from(data, offset)
    end = offset + HEADER_BYTES + length
    if magic != _MAGIC or end > len(data):
        return None
    if (
        zlib.crc32(
            data[offset + HEADER_BYTES : end], zlib.crc32(data[offset + _CHECKED_FROM : offset + HEADER_BYTES], length)
        )
        != crc
    ):
        return None
    if schema > SCHEMA or kind not in Kind.__members__.values():
        raise UnknownSchema(f"record {sequence} has schema {schema} and kind {kind}; this version knows up to {SCHEMA}")
    return Record(Kind(kind), sequence, synced, index, term, bytes(data[offset + HEADER_BYTES : end]), bool(sealed))


@dataclass
class Scan:
    """Reads a segment's records in order. After the iteration, `end` is where the readable part ends."""

    data: bytes
    sequence: int  # that the next record must have
    end: int = 0

    def __iter__(self) -> Iterator[Record]:
        view = memoryview(self.data)
        while (record := _decode(view, self.end)) is not None and record.sequence == self.sequence:
            yield record
            self.end += encoded_size(len(record.payload))
            self.sequence += 1

    def check_tail(self) -> None:
        """Raises Damaged unless what follows `end` was never synced."""
        view = memoryview(self.data)
        # Only a start of a record can matter, and those are aligned; find() skips the zeros of unused space quickly.
        magic = struct.pack("<I", _MAGIC)
        at = self.data.find(magic, self.end)
        while at >= 0:
            if at % _ALIGNMENT == 0:
                later = _decode(view, at)
                if later is not None and later.sequence > self.sequence and later.synced >= self.sequence:
                    raise Damaged(
                        f"record {self.sequence} at byte {self.end} is unreadable, although record {later.sequence} "
                        "says that it was stored safely"
                    )
            at = self.data.find(magic, at + 1)
