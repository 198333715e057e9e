"""Recovery and restore, whatever moment the manager was stopped at before."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from swarm.v1 import raft_pb2 as pb

from orchestrator.consensus import Leadership, Member
from orchestrator.raft import membership, recovery
from orchestrator.raft.config import CompactionPolicy, Timings
from orchestrator.raft.core import Core
from orchestrator.raft.disk import Directory, LocalDirectory
from orchestrator.raft.engine import MemberNode, Role
from orchestrator.raft.journal import Journal, JournalDamaged
from orchestrator.raft.links import Links
from orchestrator.raft.snapshots import SnapshotStore
from tests.simulation.raft.virtual_disk import VirtualDirectory
from tests.unit.raft.conftest import Log

ME = Member("a", "a:1")
THREE = membership.founding([Member(name, f"{name}:1") for name in "abc"])


class NoLinks(Links):
    """To nobody."""

    def connect(self, node: MemberNode) -> None:
        pass

    def disconnect(self, node_id: str) -> None:
        pass

    def transmit(self, node_id: str, message: pb.RaftMessage) -> bool:
        return False


class Nobody:
    """Wants to know nothing."""

    def disk_begins(self, peers: list[str], message: pb.RaftMessage) -> None:
        pass

    def disk_ended(self) -> None:
        pass

    def leadership_changed(self, leadership: Leadership) -> None:
        pass

    def configuration_changed(self, configuration: pb.RaftConfiguration) -> None:
        pass


def nothing_in_background(work: Callable[[], Any], done: Callable[[Any, Exception | None], None]) -> None:
    pass


def started(directory: Directory, machine: Log) -> Core:
    """A member, as a manager's start opens it."""
    return Core(
        MemberNode(ME.node_id, ME.address),
        journal=Journal(directory, membership.founding(())),
        snapshots=SnapshotStore(directory),
        machine=machine,
        links=NoLinks(),
        background=nothing_in_background,
        observer=Nobody(),
        timings=Timings(),
        compaction=CompactionPolicy(),
        clock=time.monotonic,
        rng=random.Random(1),
        queue_size=10,
    )


def a_log(directory: Directory, last: int, term: int) -> None:
    journal = Journal(directory, THREE)
    journal.setCurrentTerm(term, None)
    for index in range(2, last + 1):
        journal.add(b"\0entry", index, term)
    journal.sync()
    journal._destroy()


def a_snapshot(directory: Directory, index: int, term: int, state: Iterable[bytes] = (b"state\n",)) -> None:
    SnapshotStore(directory).write(index, term, THREE, state)


def test_a_recovery_holds_where_a_snapshot_had_come_and_was_not_installed_yet(tmp_path: Path) -> None:
    """`swarm recover` said that this manager was the only one from then on. At its start it held three again, waited for the
    two that were lost, and never led: the snapshot had replaced the log, and with it what the recovery had written."""
    a_log(LocalDirectory(tmp_path), last=10, term=3)
    a_snapshot(LocalDirectory(tmp_path), 50, 6)
    found = recovery.force_new_cluster(tmp_path, ME, dry_run=True)
    assert (found.last_index, found.term) == (50, 6)
    assert recovery.force_new_cluster(tmp_path, ME, dry_run=False) == found
    machine = Log()
    core = started(LocalDirectory(tmp_path), machine)
    assert membership.voters(core.history.current) == {"a"}
    assert sorted(core.history.current.removed) == ["b", "c"]
    assert (core.last_index, core.last_term, core.term) == (51, 7, 7)
    assert machine.commands == [b"state"]
    for _ in range(5):
        core.tick(0.01)
    assert core.role is Role.LEADER


def test_a_recovery_keeps_what_follows_the_newest_snapshot(tmp_path: Path) -> None:
    """The same fitting must not cost the entries behind a snapshot that lies within the log: they count as committed."""
    a_log(LocalDirectory(tmp_path), last=10, term=3)
    a_snapshot(LocalDirectory(tmp_path), 5, 3)
    assert recovery.force_new_cluster(tmp_path, ME, dry_run=False).last_index == 10
    core = started(LocalDirectory(tmp_path), Log())
    assert [core.entry(index) for index in range(6, 11)] == [(b"\0entry", index, 3) for index in range(6, 11)]
    assert membership.voters(core.history.current) == {"a"}


def after_an_install(disk: VirtualDirectory) -> str:
    """The journal of a member that voted and then installed a snapshot: one segment, which begins with what still holds."""
    a_log(disk, last=10, term=3)
    journal = Journal(disk, THREE)
    journal.setCurrentTerm(7, "b")
    journal.reset(50, 6, THREE)
    a_snapshot(disk, 50, 6)
    [segment] = [name for name in disk.names() if name.endswith(".journal")]
    return segment


def test_a_segment_that_stands_for_removed_ones_is_not_taken_for_one_that_was_being_created() -> None:
    """One flipped bit at the journal's beginning: the manager started without a word, in term 0, could vote a second time in
    the term that it had voted in, and had forgotten writes that it had acknowledged."""
    disk = VirtualDirectory(random.Random(1))
    disk.flip_bit(after_an_install(disk), 50)
    with pytest.raises(JournalDamaged, match=r"its first record is unreadable.*let it join again"):
        started(disk, Log())


def test_a_snapshot_without_its_journal_is_refused() -> None:
    """Somebody removed the journal's files, or a file system's check did: the manager went on with the snapshot as if it had
    never voted or acknowledged anything since."""
    disk = VirtualDirectory(random.Random(1))
    disk.remove(after_an_install(disk))
    with pytest.raises(JournalDamaged, match=r"no journal beside it.*let it join again"):
        started(disk, Log())


def test_a_restore_that_was_killed_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the snapshot and the journal, a restore left a manager that started in term 0, below the term of its own
    log. It says now what to do, and doing that works (the caller puts the directory aside)."""
    saved = tmp_path / "saved"
    recovery.export(saved, 50, 6, THREE, lambda: [b"state\n"])

    def killed(*_: object, **__: object) -> Journal:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(recovery, "Journal", killed)
        with pytest.raises(KeyboardInterrupt):
            recovery.restore(saved, tmp_path / "raft", ME)
    with pytest.raises(JournalDamaged, match="repeat the restore"):
        started(LocalDirectory(tmp_path / "raft"), Log())
    (tmp_path / "raft").rename(tmp_path / "raft.replaced")
    recovery.restore(saved, tmp_path / "raft", ME)
    machine = Log()
    core = started(LocalDirectory(tmp_path / "raft"), machine)
    assert (core.base_index, core.term, machine.commands) == (50, 7, [b"state"])
    assert membership.voters(core.history.current) == {"a"}
