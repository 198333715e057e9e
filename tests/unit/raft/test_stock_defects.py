"""What the library does as shipped: each test pins one defect of docs/raft.md's table.

If one of them ever fails, the library has changed, and so may the reasons for what replaces it. That the replacement holds
is shown by the simulation (tests/simulation/raft), where each defect is also put back and found.
"""

from __future__ import annotations

import gzip
import io
import multiprocessing
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import pysyncobj.pickle as library_pickle
import pytest
from pysyncobj.journal import FIRST_RECORD_OFFSET, FileJournal
from pysyncobj.node import Node
from pysyncobj.tcp_connection import TcpConnection

from tests.unit.raft.stock import LEADER, Answers, StockCluster, trio


def put(cluster: StockCluster, name: str, key: Any, value: Any) -> Answers:
    answers = Answers()
    cluster.members[name].put(key, value, callback=answers)
    return answers


def test_a_snapshot_commits_a_tail_that_nobody_else_has() -> None:
    """A."""
    cluster = trio(logCompactionBatchSize=200)
    cluster.elect("c", "a", "b")
    for other in "ab":
        cluster.separate("c", other)
    lost = put(cluster, "c", "x", "nobody else has this")
    cluster.tick("c")
    tail = cluster.last("c")
    cluster.elect("a", "b")
    for number in range(20):
        put(cluster, "a", "x", number)
    cluster.run("a", "b")
    cluster.members["a"].forceLogCompaction()
    cluster.tick("a", "a")
    cluster.join("c", "a")
    while not lost:
        cluster.tick("a", seconds=0.05)
        cluster.deliver("a", "c", 1)
        cluster.tick("c", seconds=0)
        cluster.rest("c")
    assert lost == ["SUCCESS"]
    assert tail not in cluster.log("a") and tail not in cluster.log("b")


def test_a_late_duplicate_erases_acknowledged_entries() -> None:
    """B."""
    cluster = trio()
    for other in "ab":
        cluster.separate("c", other)
    cluster.run("a", "b")
    answers = [put(cluster, "a", number, "v" * 1000) for number in range(100)]
    cluster.tick("a", seconds=0.01)
    cluster.tick("a")
    message = cluster.links["a", "b"][0]
    cluster.run("a", "b")
    assert all(answer == ["SUCCESS"] for answer in answers)
    before = cluster.last("b")
    cluster.links["a", "b"].append(message)
    cluster.deliver("a", "b")
    assert cluster.last("b")[0] < before[0]


def test_an_acknowledgement_carries_no_term() -> None:
    """C."""
    cluster = trio()
    put(cluster, "a", 1, 1)
    cluster.tick("a", seconds=0.01)
    cluster.tick("a")
    cluster.deliver("a", "b")
    acknowledgements = [message for message in cluster.links["b", "a"] if message["type"] == "next_node_idx"]
    assert acknowledgements and all("term" not in message for message in acknowledgements)


def test_a_duplicated_vote_counts_twice() -> None:
    """D."""
    cluster = StockCluster()
    for name in "abcde":
        cluster.add(name, "abcde".replace(name, ""))
    cluster.members["a"]._SyncObj__raftElectionDeadline = 0
    cluster.tick("a")
    cluster.deliver("a", "b")
    vote = cluster.links["b", "a"][0]
    cluster.links["b", "a"].append(vote)
    cluster.deliver("b", "a")
    assert cluster.members["a"]._SyncObj__raftState == LEADER  # with one vote of four, and its own


def test_a_snapshot_that_is_newer_than_the_compaction_throws_the_journal_away(tmp_path: Path) -> None:
    """E."""
    options = {"journalFile": str(tmp_path / "b"), "fullDumpFile": str(tmp_path / "b.dump")}
    cluster = StockCluster()
    cluster.add("a", "bc")
    cluster.add("b", "ac", **options)
    cluster.add("c", "ab")
    cluster.elect("a", "b", "c")
    for number in range(50):
        put(cluster, "a", number, number)
    cluster.run("a", "b", "c")
    member = cluster.members["b"]
    # The dump is renamed into place, and the host stops before the journal is compacted.
    entries = member._SyncObj__getEntries(member.raftLastApplied - 1, 2)
    with gzip.open(tmp_path / "b.dump", "wb") as dump:
        pickle.dump(({"values": {}, "applied": []}, entries[1], entries[0], set()), dump)
    for number in range(50, 100):
        put(cluster, "a", number, number)
    cluster.run("a", "b", "c")
    before = cluster.last("b")
    cluster.add("b", "ac", **options)
    cluster.tick("b", seconds=0)
    assert cluster.last("b")[0] < before[0]


def _compact_and_die(path: str, ready: Any) -> None:
    journal = FileJournal(path)
    for index in range(1, 2001):
        journal.add(b"\0" + bytes(200), index, 1)
    before = journal.add

    def stop(*arguments: Any) -> None:
        before(*arguments)
        if len(journal) == 100:
            ready.send("compacting")
            ready.recv()

    journal.add = stop
    journal.deleteEntriesTo(10)


def test_killing_it_during_compaction_loses_most_of_the_log(tmp_path: Path) -> None:
    """F."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_compact_and_die, args=(str(tmp_path / "journal"), theirs)
    )
    process.start()
    assert ours.poll(30) and ours.recv() == "compacting"
    process.kill()
    process.join()
    assert len(FileJournal(str(tmp_path / "journal"))) == 100  # of 1990


def test_a_flipped_bit_is_served_as_data_and_offsets_have_32_bits(tmp_path: Path) -> None:
    """G."""
    path = tmp_path / "journal"
    journal = FileJournal(str(path))
    journal.add(b"\0" + b"x" * 100, 1, 1)
    journal.flush()
    data = bytearray(path.read_bytes())
    data[FIRST_RECORD_OFFSET + 50] ^= 0xFF
    path.write_bytes(data)
    assert FileJournal(str(path))[0][0] != b"\0" + b"x" * 100
    journal._FileJournal__currentOffset = (1 << 32) - 50
    journal._FileJournal__journalFile.write = lambda *_: None
    with pytest.raises(struct.error):
        journal._FileJournal__setLastRecordOffset(1 << 32)


def test_a_damaged_dump_gives_an_empty_member_that_takes_part(tmp_path: Path) -> None:
    """H."""
    (tmp_path / "dump").write_bytes(b"\x1f\x8bdamaged")
    cluster = StockCluster()
    member = cluster.add("b", "ac", fullDumpFile=str(tmp_path / "dump"))
    cluster.tick("b")  # no error
    assert member.values == {} and member.raftLastApplied == 1


def test_a_callback_that_raises_applies_an_entry_twice() -> None:
    """I."""
    cluster = trio()

    def broken(*_: object) -> None:
        raise RuntimeError

    cluster.members["a"].put("k", 1, callback=broken)
    for _ in range(6):
        try:
            cluster.tick("a")
        except RuntimeError:
            continue
        finally:
            cluster.flush()
    assert cluster.members["a"].applied == [("k", 1), ("k", 1)]


def test_a_lost_vote_is_given_again(tmp_path: Path) -> None:
    """J: the file of term and vote is not synced before it is renamed, and a damaged one is ignored."""

    def ask(cluster: StockCluster, candidate: str) -> bool:
        request = {"type": "request_vote", "term": 7, "last_log_index": 5, "last_log_term": 3}
        cluster.links[candidate, "v"].append(request)
        cluster.deliver(candidate, "v")
        return any(message["type"] == "response_vote" for message in cluster.links["v", candidate])

    cluster = StockCluster()
    options = {"journalFile": str(tmp_path / "v")}
    cluster.add("v", "bc", **options)
    assert ask(cluster, "b")
    (tmp_path / "v.meta").write_bytes(b"")  # what a power loss leaves of a rename without fsync
    cluster.add("v", "bc", **options)
    assert ask(cluster, "c")


def test_two_changes_of_the_members_at_once() -> None:
    """K."""
    cluster = StockCluster()
    for name, others in (("a", "bc"), ("b", "ac"), ("c", "ab")):
        cluster.add(name, others, dynamicMembershipChange=True)
    cluster.elect("a", "b", "c")
    cluster.run("a", "b", "c")
    for other in "bc":
        cluster.separate("a", other)
    for name in "de":
        cluster.add(name, "abc", dynamicMembershipChange=True)
        for other in "bc":
            cluster.separate(name, other)
    answers = [Answers(), Answers()]
    for name, answer in zip("de", answers, strict=True):
        cluster.members["a"].addNodeToCluster(Node(name), callback=answer)
    cluster.run("a", "d", "e", rounds=10)
    cluster.elect("b", "c")
    alone, others = put(cluster, "a", "k", "a, d and e"), put(cluster, "b", "k", "b and c")
    cluster.run("a", "d", "e")
    cluster.run("b", "c")
    assert alone == others == ["SUCCESS"]  # two majorities that do not meet


def test_a_leader_that_is_cut_off_goes_on_leading() -> None:
    """L."""
    cluster = trio()
    for other in "bc":
        cluster.separate("a", other)
    cluster.elect("b", "c")
    put(cluster, "b", "k", "new")
    cluster.run("b", "c")
    cluster.tick("a", seconds=10)
    assert cluster.members["a"]._isLeader()
    assert "k" not in cluster.members["a"].values


def test_a_forwarded_command_that_gets_lost_is_never_answered() -> None:
    """M."""
    cluster = trio()
    answers = put(cluster, "b", "k", 1)
    cluster.tick("b")
    cluster.separate("a", "b")
    cluster.join("a", "b")
    cluster.run("a", "b", "c", rounds=300)
    assert answers == []


def test_a_member_that_comes_back_deposes_a_healthy_leader() -> None:
    """N."""
    cluster = trio()
    for other in "ab":
        cluster.separate("c", other)
    cluster.members["c"]._SyncObj__raftCurrentTerm = 40  # as after its lonely elections
    for other in "ab":
        cluster.join("c", other)
    cluster.members["c"]._SyncObj__raftElectionDeadline = 0
    cluster.tick("c")
    cluster.deliver("c", "a")
    assert not cluster.members["a"]._isLeader()


def test_a_command_just_under_a_multiple_of_the_batch_raises() -> None:
    """O."""
    cluster = trio(appendEntriesBatchSizeBytes=1000)
    size = next(size for size in range(1500, 3000) if _splits_badly(size))
    cluster.members["a"]._applyCommand(b"\x01" + bytes(size), None)
    with pytest.raises((EOFError, pickle.UnpicklingError)):
        cluster.run("a", "b", "c")


def _splits_badly(size: int) -> bool:
    """The last piece is chosen by the command's length, the pieces are made of the longer, pickled entry."""
    command = b"\x01" + bytes(size)
    pickled = len(library_pickle.dumps((command, 3, 1)))
    return len(command) >= 1000 and (pickled - 1) // 1000 > (len(command) - 1) // 1000


def test_a_peer_that_can_connect_runs_code() -> None:
    """P."""
    message = io.BytesIO()
    pickle.dump(_Effect(), message)
    compressed = zlib.compress(message.getvalue())
    connection = TcpConnection.__new__(TcpConnection)
    connection.encryptor = None
    connection._TcpConnection__readBuffer = struct.pack("i", len(compressed)) + compressed
    connection._TcpConnection__recvRandKey = connection.recvRandKey = None
    connection._TcpConnection__processParseMessage()
    assert EFFECTS == ["ran"]


EFFECTS: list[str] = []


def _effect() -> None:
    EFFECTS.append("ran")


class _Effect:
    def __reduce__(self) -> tuple[Any, ...]:
        return _effect, ()
