"""Entries and snapshots from the leader to the others (removes defects A, B, C, and the livelock of O).

Per peer the leader knows a `Progress`: at most one batch is in flight, every message carries a sequence number, and every
answer repeats it together with the term, so that a late answer of an earlier term or batch counts for nothing. Without a
batch to send, heartbeats carry the last index that is known to match, and prove the leadership for reads.

The follower changes its log only where it really differs from the leader's: entries that are there already stay. It
acknowledges what it compared *and* synced (answers wait for the end of the tick), and commits no further than what this
message verified.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from swarm.errors import InternalError
from swarm.v1 import raft_pb2 as pb

from orchestrator.raft import membership
from orchestrator.raft.disk import DiskFull
from orchestrator.raft.elections import Elections
from orchestrator.raft.engine import MemberNode, Role
from orchestrator.raft.snapshots import Snapshot

log = logging.getLogger(__name__)

BATCH_ENTRIES = 2000
BATCH_BYTES = 1 << 20
_FLIGHT_TIMEOUT_ELECTIONS = 3  # an answer that takes longer than so many election timeouts is taken for lost
_SNAPSHOT_RETRY = 2.0  # seconds without a sign that the member installs what it was sent


@dataclass
class Progress:
    """What the leader knows of one peer."""

    flight: int = 0  # sequence of the batch under way; 0: none
    flight_sent: float = 0.0
    flight_end: int = 0  # the last entry that it carries
    acknowledged: int = 0  # highest sequence that was answered in this term
    commit_told: int = 0
    transferring: bool = False  # a snapshot is on its way
    snapshot_not_before: float = 0.0


class Conflict(InternalError):
    """A leader contradicts a committed entry: the protocol's promise is broken, and going on would hide it."""


class Replication(Elections):
    """Replication, on the tick thread."""

    snapshot: Snapshot | None

    def __init__(self, *arguments: Any) -> None:
        self.progress: dict[str, Progress] = {}
        self.sequence = 0
        self._answers: list[tuple[str, pb.AppendResponse]] = []  # wait until the journal is synced
        super().__init__(*arguments)

    # ---- what the rest of the core answers

    def start_snapshot_transfer(self, node_id: str, snapshot: Snapshot) -> bool:
        raise NotImplementedError

    def configuration_appended(self, index: int, configuration: pb.RaftConfiguration) -> None:
        raise NotImplementedError

    def log_truncated(self, index: int) -> None:
        raise NotImplementedError

    # ---- the leader

    def _SyncObj__sendAppendEntries(self) -> None:
        """Sends each connected peer its next batch, or a heartbeat."""
        now = self.clock()
        self.set_next_heartbeat(now + self.timings.heartbeat)
        for node in self.peers():
            if node in self.connected:
                self._send_to(node, now)

    def _send_to(self, node: MemberNode, now: float) -> None:
        progress = self.progress.setdefault(node.id, Progress())
        if progress.flight and now - progress.flight_sent > self.timings.election_max * _FLIGHT_TIMEOUT_ELECTIONS:
            progress.flight = 0
        self.sequence += 1
        message = pb.AppendEntries(term=self.term, sequence=self.sequence, commit_index=self.commit_index)
        following, match = self.next_index[node], self.match_index.get(node, 0)
        if following <= self.base_index:
            self._offer_snapshot(node, progress, now)
        nothing_new = match == following - 1 == self.last_index
        if progress.flight or following <= self.base_index or nothing_new:
            self._fill_heartbeat(message, match)
            progress.commit_told = max(progress.commit_told, min(self.commit_index, match))
        else:
            previous = self.entry(following - 1)
            assert previous is not None
            message.previous_index, message.previous_term = previous[1], previous[2]
            for command, _, term in self.entries(following, BATCH_ENTRIES, BATCH_BYTES):
                message.commands.append(command)
                message.terms.append(term)
            progress.flight, progress.flight_sent = self.sequence, now
            progress.flight_end = following - 1 + len(message.terms)
            progress.commit_told = min(self.commit_index, progress.flight_end)
        self.send_message(node.id, pb.RaftMessage(append_entries=message))

    def _fill_heartbeat(self, message: pb.AppendEntries, match: int) -> None:
        known = self.entry(match)
        if known is None:
            message.presence_only = True
        else:
            message.previous_index, message.previous_term = known[1], known[2]

    def _offer_snapshot(self, node: MemberNode, progress: Progress, now: float) -> None:
        """The peer needs entries that the log has left behind."""
        if progress.transferring or now < progress.snapshot_not_before or self.snapshot is None:
            return
        progress.snapshot_not_before = now + _SNAPSHOT_RETRY
        progress.transferring = self.start_snapshot_transfer(node.id, self.snapshot)

    def snapshot_transfer_ended(self, node_id: str, delivered: bool) -> None:
        progress = self.progress.get(node_id)
        if progress is not None:
            progress.transferring = False
            progress.snapshot_not_before = self.clock() + _SNAPSHOT_RETRY

    def _on_append_response(self, node: MemberNode, answer: pb.AppendResponse) -> None:
        if self.role is not Role.LEADER or answer.term != self.term or node not in self.next_index:
            return
        progress = self.progress.setdefault(node.id, Progress())
        self.last_response[node] = self.clock()
        progress.acknowledged = max(progress.acknowledged, answer.sequence)
        ends_flight = progress.flight != 0 and answer.sequence >= progress.flight
        if ends_flight:
            progress.flight = 0
        before = self.match_index.get(node, 0)
        if answer.success:
            match = max(before, min(answer.match_index, self.last_index))
            self.match_index[node] = match
            self.next_index[node] = match + 1 if ends_flight else max(self.next_index[node], match + 1)
        elif answer.installing:
            progress.snapshot_not_before = self.clock() + _SNAPSHOT_RETRY
        elif answer.mismatch and ends_flight:
            self.next_index[node] = max(before + 1, min(answer.try_next, self.next_index[node]), 1)
        if ends_flight and (answer.mismatch or self._has_news_for(node, progress)):
            self.set_next_heartbeat(0.0)

    def _has_news_for(self, node: MemberNode, progress: Progress) -> bool:
        """Whether to send at once. A peer that did not take all (its disk is full) is asked again at the heartbeat's pace."""
        match = self.match_index.get(node, 0)
        behind = match >= progress.flight_end and self.next_index[node] <= self.last_index
        return behind or progress.commit_told < min(self.commit_index, match)

    # ---- the follower

    def _on_append_entries(self, node: MemberNode, message: pb.AppendEntries) -> None:
        if message.term < self.term:
            self._answer(node, pb.AppendResponse(term=self.term, sequence=message.sequence))
            return
        if self.role is Role.LEADER:
            raise Conflict(f"manager {node.id} leads term {message.term} as well as this one")
        self._heard_leader(node)
        answer = pb.AppendResponse(term=self.term, sequence=message.sequence)
        if self.is_installing():
            answer.installing = True
        elif not message.presence_only:
            verified = self._take(message, answer)
            self._commit_up_to(min(message.commit_index, verified))
        self._answer(node, answer)

    def _answer(self, node: MemberNode, answer: pb.AppendResponse) -> None:
        if self._answers and self._answers[-1][0] == node.id and answer.success and self._answers[-1][1].success:
            self._answers.pop()  # the later one says all that the earlier one says
        self._answers.append((node.id, answer))

    def _take(self, message: pb.AppendEntries, answer: pb.AppendResponse) -> int:
        """Compares and appends; fills the answer. Returns up to where the log is known to equal the leader's."""
        previous = message.previous_index
        if previous >= self.base_index and not self._matches(previous, message.previous_term, answer):
            return 0
        end = previous + len(message.terms)
        missing = self._first_difference(message)
        if missing <= end:
            try:
                self.journal.reserve(sum(map(len, message.commands)), len(message.commands))
            except DiskFull as error:
                log.warning("%s", error)
                end = missing - 1
            else:
                self._append_from(message, missing)
        # What the base of the log covers is committed, hence equal.
        verified = max(end, self.base_index)
        answer.success, answer.match_index = True, verified
        return verified

    def _matches(self, index: int, term: int, answer: pb.AppendResponse) -> bool:
        ours = self.entry(index)
        if ours is not None and ours[2] == term:
            return True
        answer.mismatch = True
        if ours is None:
            answer.try_next = self.last_index + 1
            return False
        # Skip the whole term that differs, down to what is committed and hence equal.
        while index > max(self.base_index, self.commit_index):
            before = self.entry(index - 1)
            if before is None or before[2] != ours[2]:
                break
            index -= 1
        answer.try_next = index
        return False

    def _first_difference(self, message: pb.AppendEntries) -> int:
        """The first entry of the message that our log does not hold."""
        index = message.previous_index
        for index, term in enumerate(message.terms, message.previous_index + 1):
            if index <= self.base_index:
                continue
            ours = self.entry(index)
            if ours is None or ours[2] != term:
                return index
        return index + 1

    def _append_from(self, message: pb.AppendEntries, first: int) -> None:
        if first <= self.last_index:
            if first <= self.commit_index:
                raise Conflict(f"the leader's entry {first} contradicts a committed one; this manager stops")
            self.log_truncated(first)
            self.journal.deleteEntriesFrom(first - self.base_index)
        start = first - message.previous_index - 1
        for offset, (command, term) in enumerate(zip(message.commands[start:], message.terms[start:], strict=True)):
            self.journal.add(command, first + offset, term)
            configuration = membership.decode(command)
            if configuration is not None:
                self.configuration_appended(first + offset, configuration)

    def _commit_up_to(self, index: int) -> None:
        if index > self.commit_index:
            self.set_commit_index(index)

    def _release_answers(self) -> None:
        """The journal is synced: what was compared may be acknowledged."""
        if not self._answers:
            return
        answers, self._answers = self._answers, []
        for node_id, answer in answers:
            if answer.term == self.term:
                self.send_message(node_id, pb.RaftMessage(append_response=answer))
