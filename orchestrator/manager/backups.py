"""Snapshots of the whole state, for whoever keeps them elsewhere: written to a file beside the log, and sent from there."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from orchestrator.raft import RaftNode

SAVE_TIMEOUT = 60.0  # seconds for the state of a moment to be taken
CHUNK_BYTES = 1 << 20
_PREFIX = "snapshot-"


class Backups:
    """`directory` is the manager's own: a snapshot holds the cluster's secrets."""

    def __init__(self, consensus: RaftNode, directory: Path) -> None:
        self._consensus = consensus
        self._directory = directory
        for left_behind in directory.glob(f"{_PREFIX}*"):
            shutil.rmtree(left_behind, ignore_errors=True)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The file of a snapshot of what this manager has applied. Raises Unavailable, DiskFull."""
        with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=self._directory) as directory:
            path = Path(directory) / "snapshot"
            await self._consensus.save_snapshot(path, timeout=SAVE_TIMEOUT)
            with path.open("rb") as stream:
                while chunk := await asyncio.to_thread(stream.read, CHUNK_BYTES):
                    yield chunk
