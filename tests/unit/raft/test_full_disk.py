"""A disk that is full in ways that only the kernel knows beforehand: no inode left, a quota, metadata without room."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.consensus import Member
from orchestrator.raft import journal as module
from orchestrator.raft import membership
from orchestrator.raft.disk import DiskFull, LocalDirectory
from orchestrator.raft.journal import Journal
from orchestrator.raft.snapshots import SnapshotStore

FOUNDERS = membership.founding([Member("a", "a:1")])

FullOnce = Callable[[str, Callable[..., bool], int], None]


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 2048)


def creates_a_file(path: Any, flags: int, *_: Any) -> bool:
    return bool(flags & os.O_CREAT)


def is_a_new_segment(descriptor: int) -> bool:
    return Path(f"/proc/self/fd/{descriptor}").readlink().name != f"{1:020d}.journal"


def always(_: int) -> bool:
    return True


@pytest.fixture
def full_once(monkeypatch: pytest.MonkeyPatch) -> FullOnce:
    """The next call of a function of `os` that meets a condition finds no room."""

    def arm(name: str, meets: Callable[..., bool], number: int) -> None:
        real, armed = getattr(os, name), [True]

        def call(*arguments: Any, **options: Any) -> Any:
            if armed and meets(*arguments):
                armed.clear()
                raise OSError(number, os.strerror(number))
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, call)

    return arm


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(
    ("name", "meets"), [("open", creates_a_file), ("fdatasync", is_a_new_segment), ("fsync", always)]
)
def test_the_journal_goes_on_where_there_is_no_room_for_another_segment(
    tmp_path: Path, full_once: FullOnce, name: str, meets: Callable[..., bool], number: int
) -> None:
    """A file system without a free inode ended the manager at its next segment, "the replicated log stopped: No space left on
    device", although there was room for all that it wrote."""
    journal = Journal(LocalDirectory(tmp_path), FOUNDERS)

    def add() -> None:
        journal.reserve(3000)
        journal.add(b"\0" + bytes(2999), journal[-1][1] + 1, 1)
        journal.sync()

    full_once(name, meets, number)
    add()
    assert [path.name for path in tmp_path.iterdir()] == [f"{1:020d}.journal"]
    add()  # there is room again
    assert len(list(tmp_path.iterdir())) == 2
    assert Journal(LocalDirectory(tmp_path), FOUNDERS)[:] == journal[:]


def test_other_failures_of_the_disk_are_final(tmp_path: Path, full_once: FullOnce) -> None:
    """What the kernel did with the pages is unknown then."""
    journal = Journal(LocalDirectory(tmp_path), FOUNDERS)
    journal.add(b"\0" + bytes(3000), 2, 1)
    full_once("fdatasync", is_a_new_segment, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        journal.sync()


def test_a_snapshot_says_that_the_disk_is_full_where_its_file_cannot_be_created(
    tmp_path: Path, full_once: FullOnce
) -> None:
    """`swarm snapshot save` ended with an internal error and exit code 1 instead of "the disk … is full" and 8."""
    full_once("open", creates_a_file, errno.ENOSPC)
    with pytest.raises(DiskFull, match=f"the disk that holds {tmp_path} is full"):
        SnapshotStore(LocalDirectory(tmp_path)).write(2, 1, FOUNDERS, [b"state"])
