"""The journal keeps what it synced, whatever moment the host stops at, and refuses what it cannot trust."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from swarm.errors import InternalError
from swarm.v1 import raft_pb2 as pb

from orchestrator.consensus import Member
from orchestrator.raft import journal as module
from orchestrator.raft import membership, records
from orchestrator.raft.disk import DiskFull, LocalDirectory
from orchestrator.raft.journal import Journal, JournalDamaged
from tests.simulation.raft.virtual_disk import Crashed, VirtualDirectory

FOUNDERS = membership.founding([Member("a", "a:1")])


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 2048)
    monkeypatch.setattr(module, "ALLOCATION_STEP", 1024)
    monkeypatch.setattr(module, "_SMALL_SEGMENT", 256)
    monkeypatch.setattr(module, "MARGIN_BYTES", 1024)


def entries(journal: Journal) -> list[tuple[int, int, bytes]]:
    return [(index, term, command) for command, index, term in journal[1:]]


def filled(directory: object, count: int = 10) -> Journal:
    journal = Journal(directory, FOUNDERS)  # type: ignore[arg-type]
    for index in range(2, count + 2):
        journal.add(b"\0%d" % index, index, 1)
    journal.sync()
    return journal


def test_founding_is_durable_at_once() -> None:
    disk = VirtualDirectory(random.Random(1))
    Journal(disk, FOUNDERS)
    disk.crash(power=True)
    again = Journal(disk, pb.RaftConfiguration())
    assert not again.founded
    assert again.base_configuration == FOUNDERS


def test_entries_term_and_vote_come_back(tmp_path: Path) -> None:
    journal = filled(LocalDirectory(tmp_path))
    journal.setCurrentTerm(7, "b")
    journal.sync()
    again = Journal(LocalDirectory(tmp_path), FOUNDERS)
    assert entries(again) == entries(journal)
    assert (again.getCurrentTerm(), again.getVotedForNodeId()) == (7, "b")


def test_a_truncated_tail_stays_away() -> None:
    disk = VirtualDirectory(random.Random(1))
    journal = filled(disk)
    journal.deleteEntriesFrom(5)
    journal.add(b"\0new", 6, 2)
    journal.sync()
    assert entries(Journal(disk, FOUNDERS)) == entries(journal)


def test_files_shrink_with_compaction() -> None:
    disk = VirtualDirectory(random.Random(1))
    journal = filled(disk, 0)
    for index in range(2, 400):
        journal.add(b"\0" + bytes(100), index, 1)
        journal.sync()
    before = disk.used()
    journal.start_new_segment()
    journal.deleteEntriesTo(390)
    assert disk.used() < before / 5
    assert entries(Journal(disk, FOUNDERS))[-5:] == entries(journal)[-5:]


def test_an_entry_larger_than_a_segment() -> None:
    disk = VirtualDirectory(random.Random(1))
    journal = filled(disk)
    journal.reserve(100_000)
    journal.add(bytes(100_000), 12, 1)
    journal.sync()
    assert entries(Journal(disk, FOUNDERS)) == entries(journal)


class Model:
    """What a journal said was durable, and what it might also have kept."""

    def __init__(self) -> None:
        self.durable: list[tuple[bytes, int, int]] = []
        self.hard_state: tuple[int, str | None] = (0, None)
        self.possible: list[tuple[list[tuple[bytes, int, int]], tuple[int, str | None]]] = []


def workload(journal: Journal, rng: random.Random, model: Model) -> None:
    """Appends, truncates, votes, compacts and resets at random; tells the model before and after each sync."""
    for _ in range(40):
        kind = rng.random()
        last = journal[-1][1]
        if kind < 0.6:
            for index in range(last + 1, last + rng.randint(2, 5)):
                journal.add(b"\0" + rng.randbytes(rng.choice((3, 50, 700))), index, journal.getCurrentTerm())
        elif kind < 0.7 and len(journal) > 3:
            journal.deleteEntriesFrom(rng.randint(2, len(journal) - 1))
        elif kind < 0.85:
            journal.setCurrentTerm(journal.getCurrentTerm() + 1, rng.choice((None, "a", "b")))
        elif kind < 0.93 and len(journal) > 4:
            forgotten = rng.randint(1, len(journal) // 2)
            model.possible.append((journal[forgotten:], model.hard_state))
            journal.start_new_segment()
            journal.deleteEntriesTo(forgotten)
        model.possible.append((journal[:], (journal.getCurrentTerm(), journal.getVotedForNodeId())))
        journal.sync()
        model.durable, model.hard_state = journal[:], (journal.getCurrentTerm(), journal.getVotedForNodeId())
        model.possible.clear()


def held(found: Journal, expected: list[tuple[bytes, int, int]]) -> bool:
    """Whether `found` holds the entries (it may remember more behind, before its base was moved)."""
    behind = expected[0][1] - found[0][1]
    return behind >= 0 and found[behind + 1 :] == expected[1:]


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_a_stop_between_any_two_disk_operations_loses_nothing_synced(seed: int, power: bool) -> None:
    total = operations_of(seed)
    for stop in range(total):
        disk = VirtualDirectory(random.Random(seed * 1000 + stop))
        model, rng = Model(), random.Random(seed)
        journal = Journal(disk, FOUNDERS)
        model.durable = journal[:]
        disk.fail_after(stop)
        with pytest.raises(Crashed):
            workload(journal, rng, model)
        disk.crash(power=power)
        found = Journal(disk, FOUNDERS)
        state = (found.getCurrentTerm(), found.getVotedForNodeId())
        if held(found, model.durable) and state == model.hard_state:
            continue
        assert any(
            compatible(found[:], model.durable, intended) and state in (model.hard_state, hard_state)
            for intended, hard_state in [*model.possible, (model.durable, model.hard_state)]
        ), f"stopped at operation {stop} of {total}"


def operations_of(seed: int) -> int:
    disk = VirtualDirectory(random.Random(0))
    journal = Journal(disk, FOUNDERS)
    before = disk.operations
    workload(journal, random.Random(seed), Model())
    return disk.operations - before


def compatible(
    found: list[tuple[bytes, int, int]],
    durable: list[tuple[bytes, int, int]],
    intended: list[tuple[bytes, int, int]],
) -> bool:
    """Between what was durable and what was being written: the common part is there, the rest is a prefix of either."""
    by_index = {index: (command, term) for command, index, term in found[1:]}
    common = [entry for entry in durable[1:] if entry in intended[1:]]
    kept = all(by_index.get(index) == (command, term) for command, index, term in common)
    known = {(index, command, term) for command, index, term in [*durable, *intended]}
    beyond = [entry for entry in found if entry[1] > max(durable[0][1], intended[0][1])]
    return kept and all((index, command, term) in known for command, index, term in beyond)


def test_an_unsynced_tail_is_cut_off() -> None:
    disk = VirtualDirectory(random.Random(3))
    journal = filled(disk)
    synced = entries(journal)
    for index in range(12, 20):
        journal.add(b"\0" + bytes(600), index, 1)
    journal._write_pending()
    disk.crash(power=True)
    assert entries(Journal(disk, FOUNDERS))[: len(synced)] == synced


def journal_file(disk: VirtualDirectory) -> str:
    return next(name for name in disk.names() if name.endswith(".journal"))


def positions(data: bytes) -> Iterator[int]:
    scan = records.Scan(data, 1)
    for _ in scan:
        yield scan.end


def test_damage_in_the_middle_is_refused() -> None:
    disk = VirtualDirectory(random.Random(1))
    journal = filled(disk, 4)
    for index in range(6, 10):
        journal.add(b"\0later", index, 1)
        journal.sync()
    name = journal_file(disk)
    starts = list(positions(disk.contents(name)))
    disk.flip_bit(name, starts[1] + records.HEADER_BYTES + 1)
    with pytest.raises(JournalDamaged, match=r"stored safely.*remove it from the swarm and let it join again"):
        Journal(disk, FOUNDERS)


def test_a_missing_segment_is_refused() -> None:
    disk = VirtualDirectory(random.Random(1))
    journal = filled(disk, 0)
    for index in range(2, 100):
        journal.add(b"\0" + bytes(100), index, 1)
        journal.sync()
    names = [name for name in disk.names() if name.endswith(".journal")]
    assert len(names) > 3
    disk.remove(names[1])
    with pytest.raises(JournalDamaged, match="is missing"):
        Journal(disk, FOUNDERS)


def test_a_record_of_a_newer_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = VirtualDirectory(random.Random(1))
    monkeypatch.setattr(records, "SCHEMA", 2)
    filled(disk)
    monkeypatch.setattr(records, "SCHEMA", 1)
    with pytest.raises(JournalDamaged, match="start this manager with the newer version"):
        Journal(disk, FOUNDERS)


def test_a_full_disk_is_told_before_anything_changes() -> None:
    disk = VirtualDirectory(random.Random(1))
    journal = filled(disk)
    disk.capacity = disk.used()
    with pytest.raises(DiskFull):
        journal.reserve(10_000)
    assert not journal.dirty
    journal.setCurrentTerm(2, "a")  # the margin that was kept
    journal.sync()
    disk.capacity = 1 << 30
    journal.reserve(10_000)
    journal.add(bytes(10_000), 12, 2)
    journal.sync()
    assert entries(Journal(disk, FOUNDERS)) == entries(journal)


@pytest.mark.parametrize("seed", range(20))
def test_a_segment_that_found_no_room_does_not_come_back(seed: int) -> None:
    """Its name was given up, the current segment went on with the records that it stood for, and the power went."""
    disk = VirtualDirectory(random.Random(seed))
    journal = filled(disk)
    disk.capacity = disk.used()
    journal.start_new_segment()
    journal.setCurrentTerm(2, "a")
    journal.sync()
    journal.start_new_segment()
    disk.crash(power=True)
    again = Journal(disk, FOUNDERS)
    assert entries(again) == entries(journal)
    assert again.getVotedForNodeId() == "a"


@pytest.mark.parametrize(
    ("index", "term", "outcome"),
    [
        (5, 1, "keeps"),  # the snapshot lies within the log
        (40, 3, "replaces"),  # a crash between installing a snapshot and replacing the log
        (5, 9, "replaces"),  # the log had another entry there
    ],
)
def test_the_log_is_fitted_to_the_newest_snapshot(index: int, term: int, outcome: str) -> None:
    disk = VirtualDirectory(random.Random(1))
    filled(disk)
    journal = Journal(disk, FOUNDERS)
    journal.align(index, term, FOUNDERS, keep=2)
    if outcome == "keeps":
        assert journal[-1][1] == 11
        assert journal[0][1] == 3
    else:
        assert journal[:] == [(module.NO_OP, index, term)]
        assert Journal(disk, FOUNDERS)[:] == journal[:]


def test_a_missing_snapshot_is_refused() -> None:
    disk = VirtualDirectory(random.Random(1))
    filled(disk)
    journal = Journal(disk, FOUNDERS)
    journal.deleteEntriesTo(6)
    with pytest.raises(JournalDamaged, match="a snapshot file is missing"):
        journal.align(3, 1, FOUNDERS, keep=2)


def test_gaps_are_a_defect_of_ours() -> None:
    journal = filled(VirtualDirectory(random.Random(1)))
    with pytest.raises(InternalError):
        journal.add(b"\0", 99, 1)


Damage = Callable[[VirtualDirectory], None]


def test_a_sequence_number_never_comes_back() -> None:
    """Records behind a torn one must not be taken for new ones once the torn one is written again."""
    for seed in range(60):
        disk = VirtualDirectory(random.Random(seed))
        journal = filled(disk, 2)
        for index in range(4, 12):
            journal.add(b"\0old" + bytes(300), index, 1)
        journal._write_pending()
        disk.crash(power=True)
        found = Journal(disk, FOUNDERS)
        found.setCurrentTerm(2, None)
        found.deleteEntriesFrom(len(found) - 1) if len(found) > 3 else None
        found.add(b"\0new" + bytes(300), found[-1][1] + 1, 2)
        found.sync()
        disk.crash(power=True)
        assert entries(Journal(disk, FOUNDERS)) == entries(found)
