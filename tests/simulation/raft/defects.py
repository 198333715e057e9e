"""The library's defects, put back one at a time, so that the checker can be checked.

Each is a context manager under which the corrected members make the mistake of docs/raft.md's letter again. A simulation that
does not notice would prove nothing when it is green.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

from swarm.errors import Unavailable
from swarm.v1 import raft_pb2 as pb

from orchestrator.raft import records, snapshots
from orchestrator.raft.core import Core
from orchestrator.raft.elections import Elections
from orchestrator.raft.engine import MemberNode, Role
from orchestrator.raft.journal import Journal
from orchestrator.raft.proposals import Proposal
from orchestrator.raft.replication import Replication
from orchestrator.raft.snapshots import Snapshot, SnapshotDamaged, SnapshotStore
from tests.simulation.raft import more_defects as more
from tests.simulation.raft.virtual_disk import VirtualDirectory, VirtualFile


def _patched(target: Any, name: str, replacement: Any) -> AbstractContextManager[Any]:
    return mock.patch.object(target, name, replacement)


@contextmanager
def commit_over_unverified_tail() -> Iterator[None]:
    """A: the leader's commit index counts for whatever the own log holds there."""

    def take_all(self: Replication, index: int) -> None:
        if self.leader_commit > self.commit_index:  # type: ignore[attr-defined]
            self.set_commit_index(min(self.leader_commit, self.last_index))  # type: ignore[attr-defined]

    original = Replication._on_append_entries

    def remember(self: Replication, node: MemberNode, message: pb.AppendEntries) -> None:
        self.leader_commit = message.commit_index  # type: ignore[attr-defined]
        original(self, node, message)
        if message.term == self.term and self.role is Role.FOLLOWER:
            take_all(self, 0)

    with _patched(Replication, "_on_append_entries", remember):
        yield


@contextmanager
def always_truncate() -> Iterator[None]:
    """B: everything after the previous entry is deleted, also where it matches."""

    def first(self: Replication, message: pb.AppendEntries) -> int:
        return max(message.previous_index, self.base_index) + 1

    def append(self: Replication, message: pb.AppendEntries, first: int) -> None:
        if first <= self.last_index:
            self.log_truncated(first)
            self.journal.deleteEntriesFrom(first - self.base_index)
        start = first - message.previous_index - 1
        for offset, (command, term) in enumerate(zip(message.commands[start:], message.terms[start:], strict=True)):
            self.journal.add(command, first + offset, term)

    def take(self: Replication, message: pb.AppendEntries, answer: pb.AppendResponse) -> int:
        end = message.previous_index + len(message.terms)
        if message.previous_index >= self.base_index and not self._matches(
            message.previous_index, message.previous_term, answer
        ):
            return 0
        append(self, message, first(self, message))
        answer.success, answer.match_index = True, max(end, self.base_index)
        return max(end, self.base_index)

    with _patched(Replication, "_take", take):
        yield


@contextmanager
def answers_without_term() -> Iterator[None]:
    """C: an answer of an earlier term counts in this one."""
    original = Replication._on_append_response

    def any_term(self: Replication, node: MemberNode, answer: pb.AppendResponse) -> None:
        forged = pb.AppendResponse()
        forged.CopyFrom(answer)
        forged.term = self.term
        original(self, node, forged)

    with _patched(Replication, "_on_append_response", any_term):
        yield


@contextmanager
def votes_by_message() -> Iterator[None]:
    """D: a vote that arrives twice counts twice, and so does one of an earlier election."""
    original = Elections._on_vote

    def counted(self: Elections, node: MemberNode, vote: pb.Vote) -> None:
        if self.role is Role.CANDIDATE and vote.granted and not vote.prevote:
            self.vote_messages = getattr(self, "vote_messages", 0) + 1  # type: ignore[attr-defined]
            self._votes.add(f"message {self.vote_messages}")  # type: ignore[attr-defined]
        original(self, node, vote)

    with _patched(Elections, "_on_vote", counted):
        yield


@contextmanager
def journal_thrown_away() -> Iterator[None]:
    """E: at the start the snapshot replaces the log unless the log begins exactly there."""

    def align(self: Journal, index: int, term: int, configuration: pb.RaftConfiguration, keep: int) -> None:
        if self[0][1] != index:
            self.reset(index, term, configuration)
        self.base_configuration = configuration

    with _patched(Journal, "align", align):
        yield


@contextmanager
def compaction_in_place() -> Iterator[None]:
    """F: the log is cleared and written again, so that a crash between loses it."""
    original = Journal.deleteEntriesTo

    def rewrite(self: Journal, entryTo: int) -> None:
        original(self, entryTo)
        kept = self[1:]
        if kept:
            self.deleteEntriesFrom(1)
            self.sync()
            for command, index, term in kept:
                self._entries.append((command, index, term))
                self._record(records.Kind.ENTRY, command, index, term)

    with _patched(Journal, "deleteEntriesTo", rewrite):
        yield


@contextmanager
def no_checksums() -> Iterator[None]:
    """G: a record whose bytes were only partly written is taken for good."""
    original = records._decode

    def trusting(data: Any, offset: int) -> Any:
        if offset + records.HEADER_BYTES > len(data):
            return None
        magic, length, _, kind, _, _, sequence, synced, index, term = records._HEADER.unpack_from(data, offset)
        end = offset + records.HEADER_BYTES + length
        if magic != records._MAGIC or end > len(data):
            return original(data, offset)
        return records.Record(
            records.Kind(kind), sequence, synced, index, term, bytes(data[offset + records.HEADER_BYTES : end])
        )

    with _patched(records, "_decode", trusting):
        yield


@contextmanager
def damaged_snapshot_ignored() -> Iterator[None]:
    """H: snapshots are renamed before they are synced, and one that cannot be read is an empty state."""
    original = SnapshotStore.chunks

    def forgiving(self: SnapshotStore, snapshot: Snapshot) -> Iterator[bytes]:
        try:
            yield from original(self, snapshot)
        except SnapshotDamaged:
            return

    def finish(self: snapshots.IncomingSnapshot) -> None:
        self._file = None
        self._directory.rename(self._temporary, self._name)
        self._directory.sync()

    with _patched(SnapshotStore, "chunks", forgiving), _patched(snapshots.IncomingSnapshot, "finish", finish):
        yield


@contextmanager
def nothing_synced() -> Iterator[None]:
    """J: term, vote and entries are in the page cache when they are revealed."""

    def file_sync(self: VirtualFile) -> None:
        self._directory.step()

    def directory_sync(self: VirtualDirectory) -> None:
        self.step()

    with _patched(VirtualFile, "sync", file_sync), _patched(VirtualDirectory, "sync", directory_sync):
        yield


@contextmanager
def two_changes_at_once() -> Iterator[None]:
    """K: nothing keeps a second change of the members from beginning before the first is committed."""
    original = Core._begin_change

    def begin(self: Core, change: Any, proposal: Proposal) -> None:
        with (
            mock.patch.object(type(self.history), "current_index", 0),
            mock.patch.object(Core, "_is_ready", lambda _: True),
        ):
            original(self, change, proposal)

    with _patched(Core, "_begin_change", begin):
        yield


@contextmanager
def reads_without_proof() -> Iterator[None]:
    """L: who believes to lead answers from its own state."""

    def read(self: Core, done: Callable[[int | None], None]) -> None:
        done(self.applied_index() if self.role is Role.LEADER else None)

    with _patched(Core, "read", read):
        yield


@contextmanager
def wrong_answers() -> Iterator[None]:
    """M: whoever loses leadership tells its clients that nothing was written."""
    original = Core._lost_leadership

    def lost(self: Core) -> None:
        for waiting in self.waiting().values():
            for _, proposal in waiting:
                proposal.end(Unavailable("leadership changed"))
        original(self)

    with _patched(Core, "_lost_leadership", lost):
        yield


DEFECTS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "A": commit_over_unverified_tail,
    "B": always_truncate,
    "C": answers_without_term,
    "D": votes_by_message,
    "E": journal_thrown_away,
    "F": compaction_in_place,
    "G": no_checksums,
    "H": damaged_snapshot_ignored,
    "I, callbacks": more.applied_after_the_callbacks,
    "I, machine": more.machine_stops_the_log,
    "J": nothing_synced,
    "K": two_changes_at_once,
    "L": reads_without_proof,
    "M": wrong_answers,
    "N, pre-vote": more.no_prevote,
    "N, learners": more.no_learners,
    "N, boot": more.members_known_when_applied,
    "O, batches": more.batches_reset_one_another,
    "O, pieces": more.last_piece_by_another_length,
    "O, tick thread": more.snapshots_on_the_tick_thread,
    "O, fork": more.snapshots_by_fork,
    "O, install": more.snapshots_sent_anew,
    "P, wire": more.pickle_on_the_wire,
    "P, disk": more.pickle_on_the_disk,
}
