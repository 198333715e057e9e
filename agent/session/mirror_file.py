"""The mirror on disk: STATE/assignments, a complete set followed by the changes since, each with length and checksum.

Written before a change takes effect (where the disk allows), so that a restarted agent goes on where it was, and refuses what
it would have refused before. The file is rewritten as one complete set when the changes have outgrown it. A torn last entry
(the host lost power while it was written) is cut off; a manager sends its content again. Where the disk is full the agent goes
on with what it has in memory: tasks that need the disk fail with that reason and run elsewhere, where without assignments they
would wait here. The file is removed then: after a restart, tasks that are missing from it would count as taken away, where
without a file nothing is judged before a manager spoke.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf.message import DecodeError
from swarm.errors import ResourceExhausted
from swarm.identity import write_atomically
from swarm.v1 import dispatcher_pb2 as dispatcher

from agent.session.mirror import Mirror, StaleAssignments

log = logging.getLogger(__name__)

_MAGIC = b"swarm-assignments-1\n"
_HEADER = struct.Struct(">II")  # length, CRC-32
COMPACT_ABOVE = 1 << 20  # bytes of changes that are always let grow


class MirrorFile:
    """Blocking; call it in a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._complete_bytes = 0
        self._changed_bytes = 0
        self.behind = False  # something could not be written: the next that can is a complete set

    def load(self) -> Mirror | None:
        """The mirror as it was written; None where there is no file, or none that can be believed."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        if not data.startswith(_MAGIC):
            log.error(
                "%s is not of a version that this program knows; it waits for a manager's assignments", self._path
            )
            return None
        mirror, end = Mirror(), len(_MAGIC)
        for message, position in _entries(data):
            with contextlib.suppress(StaleAssignments):
                mirror.receive(message)
            end = position
        mirror.drop_parts()
        if end == len(_MAGIC):
            return None
        if end < len(data):
            log.warning("the last %d bytes of %s were torn and are cut off", len(data) - end, self._path)
            os.truncate(self._path, end)
        self._changed_bytes = end
        return mirror

    def append(self, parts: Iterable[dispatcher.Assignments], mirror: Mirror) -> None:
        """Writes a set that `mirror` already contains. Raises ResourceExhausted where the disk refuses; there is no file then
        until one of the next calls succeeds."""
        messages = list(parts)
        data = b"".join(_entry(message) for message in messages)
        limit = max(COMPACT_ABOVE, 2 * self._complete_bytes)
        try:
            if (
                self.behind
                or messages[0].complete
                or not self._path.exists()
                or self._changed_bytes + len(data) > limit
            ):
                whole = _MAGIC + _entry(mirror.complete_set())
                write_atomically(self._path, whole)
                self._complete_bytes, self._changed_bytes, self.behind = len(whole), 0, False
                return
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)
            try:
                if os.write(descriptor, data) < len(data):  # the disk's last block took a part
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            self.behind = True
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            raise ResourceExhausted(f"the assignments cannot be written to {self._path}: {error}") from error
        self._changed_bytes += len(data)


def _entry(message: dispatcher.Assignments) -> bytes:
    body = message.SerializeToString()
    return _HEADER.pack(len(body), zlib.crc32(body)) + body


def _entries(data: bytes) -> Iterator[tuple[dispatcher.Assignments, int]]:
    """Each intact entry and where it ends."""
    position = len(_MAGIC)
    while position + _HEADER.size <= len(data):
        length, checksum = _HEADER.unpack_from(data, position)
        body = data[position + _HEADER.size : position + _HEADER.size + length]
        if len(body) != length or zlib.crc32(body) != checksum:
            return
        try:
            message = dispatcher.Assignments.FromString(body)
        except DecodeError:
            return
        position += _HEADER.size + length
        yield message, position
