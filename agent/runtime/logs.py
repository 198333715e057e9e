"""Reading containers' logs: what the monitor wrote, one record a line, `TIME STREAM TAG TEXT` (Kubernetes' CRI format).

TAG is P for a piece of a line that goes on, F for the last piece; the pieces of each stream are joined here.  A log is
bounded: when it reaches the monitor's limit, the monitor puts an empty file in its place and goes on, so who follows looks
whether the name still means the file that is open.  Following is driven by the kernel's file notifications.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from swarm.errors import ResourceExhausted

from agent.runtime.inotify import DirectoryWatch

CHUNK = 64 * 1024
MAX_LINE = 256 * 1024  # bytes; what is longer is given out in pieces
LAST_LINE_LENGTH = 300  # characters


@dataclass(frozen=True)
class LogLine:
    """`at_ns`: nanoseconds since the epoch. `stream`: stdout or stderr. `line`: without the line feed."""

    at_ns: int
    stream: str
    line: bytes


@lru_cache(maxsize=16)
def _whole_seconds(text: bytes, zone: bytes) -> int:
    return int(datetime.fromisoformat(text.decode() + zone.decode()).timestamp())


def parse_time(text: bytes) -> int:
    """`2026-01-31T12:00:00.123456789+00:00` → nanoseconds since the epoch. Raises ValueError."""
    seconds, rest = text[:19], text[19:]
    fraction = b""
    if rest.startswith(b"."):
        end = next((position for position, byte in enumerate(rest) if byte in b"+-Z"), len(rest))
        fraction, rest = rest[1:end], rest[end:]
    zone = b"+00:00" if rest in (b"Z", b"") else rest
    return _whole_seconds(seconds, zone) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0") or b"0")


class Joiner:
    """From records of the file to whole lines. What is no record (a line cut by a full disk) is left out."""

    def __init__(self) -> None:
        self._pieces: dict[bytes, bytearray] = {}

    def feed(self, record: bytes) -> LogLine | None:
        """Takes one line of the file; a line of the container once its last piece has come."""
        fields = record.split(b" ", 3)
        if len(fields) < 3 or fields[1] not in (b"stdout", b"stderr"):
            return None
        try:
            at = parse_time(fields[0])
        except ValueError:
            return None
        text = fields[3] if len(fields) == 4 else b""
        pieces = self._pieces.setdefault(fields[1], bytearray())
        pieces += text
        if not fields[2].startswith(b"F") and len(pieces) < MAX_LINE:
            return None
        line = LogLine(at, fields[1].decode(), bytes(pieces))
        pieces.clear()
        return line


def _is_last_piece(record: bytes) -> bool:
    fields = record.split(b" ", 3)
    return len(fields) >= 3 and fields[2].startswith(b"F")


def _time_of(record: bytes) -> int | None:
    try:
        return parse_time(record.partition(b" ")[0])
    except ValueError:
        return None


def _lines_until(records: list[bytes], until_ns: int | None) -> int:
    """How many lines end in these records, not after `until_ns`. Times only grow, so most chunks show at their first record
    that all of them are later."""
    if until_ns is None:
        return sum(map(_is_last_piece, records))
    count = 0
    for record in records:
        at = _time_of(record)
        if at is not None and at > until_ns:
            break
        count += _is_last_piece(record)
    return count


def tail_offset(stream: BinaryIO, lines: int, until_ns: int | None = None) -> int:
    """Where at least the last `lines` whole lines begin, later ones than `until_ns` not counted (a few more may follow, and a
    piece of one before them)."""
    position = stream.seek(0, os.SEEK_END)
    found, behind = 0, b""
    while position > 0:
        size = min(CHUNK, position)
        position -= size
        stream.seek(position)
        first, *complete = (stream.read(size) + behind).split(b"\n")
        behind = first
        found += _lines_until(complete, until_ns)
        # one more than asked for, so that the pieces before the first line's last one are there as well
        if found > lines and position > 0:
            return position + len(first) + 1
    return 0


async def read(
    path: Path,
    *,
    tail: int | None = None,
    since_ns: int | None = None,
    until_ns: int | None = None,
    follow: bool = False,
    ended: asyncio.Event | None = None,
) -> AsyncIterator[LogLine]:
    """The lines of a log, oldest first; nothing where there is no such file.

    `since_ns`, `until_ns`: only lines of that time, both included. `tail`: only so many of those that are there, the newest.
    `follow`: goes on with what is written, until `ended` is set and all is read, the log's directory is removed, or a line
    after `until_ns` comes. Raises ResourceExhausted where the host watches too many directories already, or lacks descriptors.
    """
    async for line in _follow(path, tail, until_ns, follow, ended):
        if until_ns is not None and line.at_ns > until_ns:
            return
        if since_ns is None or line.at_ns >= since_ns:
            yield line


async def _follow(
    path: Path, tail: int | None, until_ns: int | None, follow: bool, ended: asyncio.Event | None
) -> AsyncIterator[LogLine]:
    """All lines, from the first of the tail on; a line after `until_ns` ends it at the latest."""
    try:
        watch = DirectoryWatch(path.parent) if follow else None
    except FileNotFoundError:
        return
    except OSError as error:
        raise ResourceExhausted(
            f"the log {path} cannot be followed: {error.strerror}; raise fs.inotify.max_user_instances on the host"
        ) from error
    with watch or contextlib.nullcontext(), _File(path) as file:
        if tail is not None:
            newest, later = file.tail(tail, until_ns)
            for line in newest:
                yield line
            if later:
                return
        while True:
            over = ended is not None and ended.is_set()  # before reading: what was written until then is still read
            while (lines := file.next_lines()) is not None:
                for line in lines:
                    yield line
                await asyncio.sleep(0)  # a long log must not keep others from running
            if file.reopen_if_replaced():
                continue
            if watch is None or over or not path.parent.is_dir():
                return
            try:
                await _next_change(watch, ended)
            except OSError as error:
                raise ResourceExhausted(f"the log {path} cannot be followed any longer: {error.strerror}") from error


class _File:
    """The open log: which file the name meant when it was opened, how far it was read, and pieces of unfinished lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: BinaryIO | None = None
        self._open()

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()

    def _open(self) -> None:
        self._joiner, self._rest = Joiner(), bytearray()
        try:
            self._stream = self._path.open("rb")
        except FileNotFoundError:
            self._stream = None

    def next_lines(self) -> list[LogLine] | None:
        """The lines of the next chunk; None at the end of the file."""
        if self._stream is None:
            return None
        data = self._stream.read(CHUNK)
        if not data:
            return None
        *complete, last = (bytes(self._rest) + data).split(b"\n")
        self._rest[:] = last if len(last) < 4 * MAX_LINE else b""  # the monitor writes no such line
        return [line for record in complete if (line := self._joiner.feed(record)) is not None]

    def tail(self, count: int, until_ns: int | None = None) -> tuple[list[LogLine], bool]:
        """The last whole lines of the file as it is now, those after `until_ns` left out; and whether there are such."""
        newest: deque[LogLine] = deque(maxlen=max(0, count))
        if self._stream is not None:
            self._stream.seek(tail_offset(self._stream, count, until_ns))
            while (lines := self.next_lines()) is not None:
                for line in lines:
                    if until_ns is not None and line.at_ns > until_ns:
                        return list(newest), True
                    newest.append(line)
        return list(newest), False

    def reopen_if_replaced(self) -> bool:
        """Whether there is another file to read now."""
        if self._stream is not None:
            if not _replaced(self._path, self._stream):
                return False
            self._stream.close()
        self._open()
        return self._stream is not None


def _replaced(path: Path, stream: BinaryIO) -> bool:
    """Whether the name means another file now, or the file was cut."""
    try:
        named = path.stat()
    except FileNotFoundError:
        return True
    opened = os.fstat(stream.fileno())
    return (named.st_ino, named.st_dev) != (opened.st_ino, opened.st_dev) or opened.st_size < stream.tell()


async def _next_change(watch: DirectoryWatch, ended: asyncio.Event | None) -> None:
    """Raises OSError where the watch fails."""
    waits = [asyncio.ensure_future(watch.changed())]
    if ended is not None:
        waits.append(asyncio.ensure_future(_set(ended)))
    try:
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in done:
            wait.result()  # a watch that fails tells nothing more
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


async def _set(event: asyncio.Event) -> None:
    await event.wait()


async def last_line(path: Path) -> str:
    """The last line that is not empty, for the message of a failed container; "" where there is none."""
    return _last_line(path)


def _last_line(path: Path) -> str:
    with _File(path) as file:
        lines, _ = file.tail(10)
    for line in reversed(lines):
        text = line.line.decode(errors="replace").strip()
        if text:
            return text[-LAST_LINE_LENGTH:]
    return ""
