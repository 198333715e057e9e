"""Snapshots of the whole state, for whoever keeps them elsewhere: written to a file beside the log, and sent from there."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from swarm.errors import ResourceExhausted, is_disk_full

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
        """The file of a snapshot of what this manager has applied. Raises Unavailable, ResourceExhausted."""
        directory = self._scratch()
        try:
            path = directory / "snapshot"
            await self._consensus.save_snapshot(path, timeout=SAVE_TIMEOUT)
            with path.open("rb") as stream:
                while chunk := await asyncio.to_thread(stream.read, CHUNK_BYTES):
                    yield chunk
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _scratch(self) -> Path:
        try:
            return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._directory))
        except OSError as error:
            if is_disk_full(error):
                raise ResourceExhausted(
                    f"the disk of this manager is full: {self._directory}; free some space"
                ) from error
            raise
