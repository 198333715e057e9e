"""Archives that arrive in pieces: into a file with a bound, and safely out of it.

An archive comes from a person, not from us: its members may name places outside, devices, links that lead elsewhere.
Python's `data` filter (PEP 706) refuses those.
"""

from __future__ import annotations

import asyncio
import contextlib
import lzma
import sys
import tempfile
import zlib
from collections.abc import AsyncIterator
from io import FileIO
from pathlib import Path

from swarm.errors import InvalidArgument, ResourceExhausted, is_disk_full

from agent.disk import remove_tree

if sys.version_info >= (3, 12):
    import tarfile
else:
    from backports import tarfile  # 3.11 has the filters only from 3.11.4 on

MAX_ARCHIVE_BYTES = 16 << 30
MAX_CONTEXT_BYTES = 4 << 30
MAX_CONTEXT_MEMBERS = 500_000


@contextlib.asynccontextmanager
async def scratch(parent: Path) -> AsyncIterator[Path]:
    """A directory that is removed in the end, on the disk where images lie (it must hold as much as they do). Raises
    ResourceExhausted where the disk is full."""
    try:
        parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        directory = Path(tempfile.mkdtemp(prefix="upload-", dir=parent))
    except OSError as error:
        if is_disk_full(error):
            raise ResourceExhausted(f"the disk is full: {parent}; free some space on this node") from error
        raise
    try:
        yield directory
    finally:
        await remove_tree(directory)


async def receive(pieces: AsyncIterator[bytes], path: Path, limit: int) -> int:
    """Writes the pieces to `path`; how many bytes there were. Raises ResourceExhausted above `limit`, or where the disk is
    full."""
    total = 0
    with path.open("wb", buffering=0) as stream:  # else the last bytes would meet the full disk when it is closed
        async for piece in pieces:
            total += len(piece)
            if total > limit:
                raise ResourceExhausted(f"the archive is larger than the {limit >> 20} MiB that are allowed")
            await asyncio.to_thread(_write, stream, piece)
    return total


def _write(stream: FileIO, piece: bytes) -> None:
    rest = memoryview(piece)
    try:
        while rest:
            rest = rest[stream.write(rest) :]
    except OSError as error:
        if is_disk_full(error):
            raise ResourceExhausted(f"the disk is full: {stream.name}; free some space on this node") from error
        raise


def extract_context(archive: Path, directory: Path) -> None:
    """Unpacks a build context. Blocking. Raises InvalidArgument for what is no tar archive or leaves the context."""
    total = members = 0
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                members, total = members + 1, total + member.size
                if members > MAX_CONTEXT_MEMBERS or total > MAX_CONTEXT_BYTES:
                    raise ResourceExhausted(
                        f"the build context has more than {MAX_CONTEXT_MEMBERS} files or {MAX_CONTEXT_BYTES >> 20} MiB; "
                        "name what is not needed in .dockerignore"
                    )
                tar.extract(member, directory, filter="data")
    except tarfile.FilterError as error:
        raise InvalidArgument(f"the build context holds what may not be unpacked: {error}") from error
    except tarfile.TarError as error:
        raise InvalidArgument(f"the build context is not a tar archive: {error}") from error
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise InvalidArgument(f"the build context is cut short or damaged: {error}") from error
    except (ValueError, OverflowError) as error:  # a name or a time that no file can have
        raise InvalidArgument(f"the build context holds what cannot be unpacked: {error}") from error
    except OSError as error:
        if is_disk_full(error):
            raise ResourceExhausted("the disk is full; free some space on this node") from error
        raise InvalidArgument(f"the build context cannot be unpacked: {error}") from error
