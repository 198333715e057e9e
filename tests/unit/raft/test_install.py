"""A snapshot on its way in, and a leader that gives the transfer up."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from swarm.clock import SystemClock
from swarm.identity import TlsMaterial
from swarm.v1 import raft_pb2 as pb

from orchestrator.raft import service
from orchestrator.raft.disk import LocalDirectory, LocalFile
from orchestrator.raft.service import RaftService
from orchestrator.raft.snapshots import SnapshotStore
from orchestrator.raft.transport import GrpcLinks
from tests.unit.raft.conftest import until


class SlowFile(LocalFile):
    """Its writes take until the test says so."""

    def __init__(self, disk: SlowDirectory, path: Path, *, create: bool) -> None:
        super().__init__(path, create=create)
        self._disk = disk
        self._writing = False

    def write(self, offset: int, data: bytes) -> None:
        self._writing = True
        self._disk.writing.set()
        assert self._disk.goes_on.wait(10)
        super().write(offset, data)
        self._writing = False

    def close(self) -> None:
        self._disk.closed_while_writing |= self._writing
        super().close()


class SlowDirectory(LocalDirectory):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.writing, self.goes_on = threading.Event(), threading.Event()
        self.opening, self.opens = threading.Event(), threading.Event()
        self.opens.set()
        self.files: list[SlowFile] = []
        self.closed_while_writing = False

    def open(self, name: str, *, create: bool = False) -> SlowFile:
        self.opening.set()
        assert self.opens.wait(10)
        self.files.append(SlowFile(self, self.path / name, create=create))
        return self.files[-1]


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RaftService, SlowDirectory]:
    links = GrpcLinks("a", lambda: TlsMaterial(b"", b"", b""), SystemClock(), random.Random(1))
    disk = SlowDirectory(tmp_path / "raft")
    links.snapshots = SnapshotStore(disk)
    monkeypatch.setattr(service.RaftService, "_caller", lambda *_: "b")
    return RaftService(links), disk


async def parts(path: Path) -> AsyncIterator[pb.RaftSnapshotPart]:
    """A snapshot as a leader sends it."""
    store = SnapshotStore(LocalDirectory(path))
    size, pieces = store.parts(store.write(5, 1, pb.RaftConfiguration(), [b"state"]))
    offer = pb.RaftSnapshotOffer(term=1, index=5, index_term=1, size=size)
    for piece in pieces:
        yield pb.RaftSnapshotPart(offer=offer, data=piece)


async def test_a_transfer_that_is_given_up_closes_its_file_when_nobody_writes_to_it(
    served: tuple[RaftService, SlowDirectory], tmp_path: Path
) -> None:
    """The leader's connection broke while this manager wrote a piece of the snapshot to a slow disk. Another file could be
    opened under the same descriptor before the write: the piece went into that one, as the journal's next segment."""
    serving, disk = served
    context: Any = None
    call = asyncio.create_task(serving.InstallSnapshot(parts(tmp_path / "leader"), context))
    await until(disk.writing.is_set)
    for _ in range(2):  # who waits for it may ask again
        call.cancel()
        await asyncio.wait({call}, timeout=0.05)
    assert not call.done()
    disk.goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not disk.closed_while_writing
    assert disk.names() == []


async def test_a_transfer_that_is_given_up_at_its_beginning_leaves_no_file_open(
    served: tuple[RaftService, SlowDirectory], tmp_path: Path
) -> None:
    """Each such transfer cost the manager a descriptor, and the disk a file until the next start."""
    serving, disk = served
    disk.goes_on.set()
    disk.opens.clear()
    context: Any = None
    call = asyncio.create_task(serving.InstallSnapshot(parts(tmp_path / "leader"), context))
    await until(disk.opening.is_set)
    call.cancel()
    await asyncio.sleep(0.02)
    disk.opens.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: bool(disk.files))
    assert disk.files[0]._descriptor < 0
    assert disk.names() == []
