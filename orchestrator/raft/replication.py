"""Entries and snapshots from the leader to the others (removes defects A, B, C, and the livelock of O).

Per peer the leader knows a `Progress`. Every message carries a sequence number, and every answer repeats it together with
the term, so that a late answer of an earlier term or attempt counts for nothing. Until it is known where the logs part, one
batch is on its way at a time; then a few. Without a batch to send, heartbeats carry the last index that is known to match,
and prove the leadership for reads.

The follower changes its log only where it really differs from the leader's: entries that are there already stay. It
acknowledges what it compared *and* synced (answers wait for the end of the tick), and commits no further than what this
message verified.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
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
_FLIGHTS = 4  # batches on their way to one peer
# An answer is taken for lost when nothing has come for so many election timeouts; for twice as many the next time, as a link
# that is merely slow would only be fed the same entries again and again.
_FLIGHT_TIMEOUT_ELECTIONS = 3
_PATIENCE_DOUBLED = 5  # times, at most
# Who knows already that its entries are stored needs to hear of their commit, but nobody waits for that: it travels with the
# next entries where they come soon, and by itself after this long. It spares half of all messages.
_COMMIT_NEWS_WAIT = 0.002
_SNAPSHOT_RETRY = 2.0  # seconds without a sign that the member installs what it was sent


@dataclass(frozen=True)
class _Flight:
    """A batch on its way."""

    sequence: int
    end: int  # its last entry
    sent: float


@dataclass
class Progress:
    """What the leader knows of one peer."""

    flights: deque[_Flight] = field(default_factory=deque)
    progressed: float = 0.0  # when its log was last known to have grown, or was asked anew
    asked_anew: int = 0  # times since then
    probing: bool = True  # where the logs part is not known yet: one batch at a time
    ignore_until: int = 0  # answers to messages up to this sequence say nothing new of a mismatch
    acknowledged: int = 0  # highest sequence that was answered in this term
    commit_told: int = 0
    disk_full: bool = False  # it says that it has no room
    transferring: int = 0  # the last entry of the snapshot that is on its way; 0: none is
    snapshot_sent: int = 0  # the last entry of the snapshot that is on its way or being installed
    snapshot_not_before: float = 0.0


class Conflict(InternalError):
    """A leader contradicts a committed entry: the protocol's promise is broken, and going on would hide it."""


class Replication(Elections):
    """Replication, on the tick thread."""

    snapshot: Snapshot | None

    def __init__(self, *arguments: Any) -> None:
        self.progress: dict[str, Progress] = {}
        self.sequence = 0
        self.commit_news_at = float("inf")  # when the followers are told of a new commit index
        self._commit_told = 0  # the commit index when entries were sent last
        self._answers: list[tuple[str, pb.AppendResponse]] = []  # wait until the journal is synced
        self._no_room_for: tuple[int, int] | None = None  # bytes and number of the entries that the disk refused last
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
        self.commit_news_at, self._commit_told = float("inf"), self.commit_index
        for node in self.peers():
            if node in self.connected:
                self._send_to(node, now)

    def _send_to(self, node: MemberNode, now: float) -> None:
        progress = self.progress.setdefault(node.id, Progress())
        patience = (
            self.timings.election_max * _FLIGHT_TIMEOUT_ELECTIONS * 2 ** min(progress.asked_anew, _PATIENCE_DOUBLED)
        )
        if progress.flights and now - max(progress.flights[0].sent, progress.progressed) > patience:
            progress.progressed, progress.asked_anew = now, progress.asked_anew + 1
            self._send_again(node, progress)
        following, match = self.next_index[node], self.match_index.get(node, 0)
        if following <= self.base_index:
            self._offer_snapshot(node, progress, now)
        full = len(progress.flights) >= (1 if progress.probing else _FLIGHTS)
        nothing_new = following > self.last_index and (bool(progress.flights) or match == following - 1)
        self.sequence += 1
        message = pb.AppendEntries(term=self.term, sequence=self.sequence, commit_index=self.commit_index)
        if full or nothing_new or following <= self.base_index:
            self._fill_heartbeat(message, match)
            progress.commit_told = max(progress.commit_told, min(self.commit_index, match))
        else:
            self._fill_batch(message, node, progress, now)
        self.send_message(node.id, pb.RaftMessage(append_entries=message))

    def _fill_batch(self, message: pb.AppendEntries, node: MemberNode, progress: Progress, now: float) -> None:
        following = self.next_index[node]
        previous = self.entry(following - 1)
        assert previous is not None
        message.previous_index, message.previous_term = previous[1], previous[2]
        for command, _, term in self.entries(following, BATCH_ENTRIES, BATCH_BYTES):
            message.commands.append(command)
            message.terms.append(term)
        end = following - 1 + len(message.terms)
        progress.flights.append(_Flight(self.sequence, end, now))
        progress.commit_told = min(self.commit_index, end)
        if not progress.probing:
            self.next_index[node] = end + 1

    def _send_again(self, node: MemberNode, progress: Progress) -> None:
        """What was on its way is lost. Who has not answered in this term yet is asked at the same entry again: it holds most
        of the log, as a rule, and beginning at the first entry would cost it a snapshot."""
        match = self.match_index.get(node, 0)
        self._start_over(node, progress, match + 1 if match else self.next_index[node])

    def _start_over(self, node: MemberNode, progress: Progress, following: int) -> None:
        """What is on its way is given up; its answers are old news from now on."""
        progress.flights.clear()
        progress.probing = True
        progress.ignore_until = self.sequence
        self.next_index[node] = following

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
        begun = self.start_snapshot_transfer(node.id, self.snapshot)
        progress.transferring = progress.snapshot_sent = self.snapshot.index if begun else 0

    def snapshot_transfer_ended(self, node_id: str, term: int, index: int, delivered: bool) -> None:
        """A transfer of the leadership in `term`, of the snapshot up to entry `index`; an earlier one says nothing now."""
        progress = self.progress.get(node_id)
        if progress is not None and term == self.term and index == progress.transferring:
            progress.transferring = 0
            progress.snapshot_not_before = self.clock() + _SNAPSHOT_RETRY
            if not delivered:
                progress.snapshot_sent = 0

    def behind_up_to(self) -> int:
        """The last entry that every connected member holds, or will hold when the snapshot it was sent is installed: what
        follows it, somebody still needs. For a member that does not lead, or knows nothing of the others yet: all."""
        if self.role is not Role.LEADER:
            return self.last_index
        held = [self.last_index]
        for node in self.peers():
            progress = self.progress.get(node.id)
            if node in self.connected and progress is not None:
                held.append(max(progress.snapshot_sent, self.match_index.get(node, 0)) or self.last_index)
        return min(held)

    def _on_append_response(self, node: MemberNode, answer: pb.AppendResponse) -> None:
        if self.role is not Role.LEADER or answer.term != self.term or node not in self.next_index:
            return
        progress = self.progress.setdefault(node.id, Progress())
        self.last_response[node] = self.clock()
        progress.acknowledged = max(progress.acknowledged, answer.sequence)
        if answer.disk_full != progress.disk_full:
            progress.disk_full = answer.disk_full
            log.warning("manager %s %s", node.id, "has no room on its disk" if answer.disk_full else "has room again")
        if answer.installing:
            progress.snapshot_not_before = self.clock() + _SNAPSHOT_RETRY
            progress.snapshot_sent = answer.match_index  # perhaps by the leader before
        before = self.match_index.get(node, 0)
        sent_up_to = self._landed(progress, answer.sequence)
        if answer.success:
            match = self.match_index[node] = max(before, min(answer.match_index, self.last_index))
            if progress.snapshot_sent and match >= progress.snapshot_sent:
                # Installed. Should the log have left it behind once more, the next one need not wait.
                progress.snapshot_sent, progress.snapshot_not_before = 0, 0.0
            if match > before:
                progress.progressed, progress.asked_anew = self.clock(), max(0, progress.asked_anew - 1)
            if sent_up_to > match:
                # It did not take all: its disk is full. It is asked again at the heartbeat's pace.
                self._start_over(node, progress, match + 1)
                return
            if sent_up_to or match > before:
                progress.probing = False
            self.next_index[node] = max(self.next_index[node], match + 1)
        elif answer.mismatch and answer.sequence > progress.ignore_until:
            self._start_over(node, progress, max(before + 1, min(answer.try_next, self.next_index[node])))
        if not (sent_up_to or answer.mismatch):
            return
        if self.base_index < self.next_index[node] <= self.last_index:
            self.set_next_heartbeat(0.0)
        elif progress.commit_told < min(self.commit_index, self.match_index.get(node, 0)):
            self._tell_commit_soon()

    @staticmethod
    def _landed(progress: Progress, sequence: int) -> int:
        """Takes the flights that an answer settles; returns the last entry that they carried, 0 where there were none."""
        end = 0
        while progress.flights and progress.flights[0].sequence <= sequence:
            end = progress.flights.popleft().end
        return end

    def _commit_news_due(self) -> bool:
        """Whether the followers should hear of the commit index now."""
        if self.commit_index != self._commit_told:
            self._tell_commit_soon()
        return self.commit_news_at <= self.clock()

    def _tell_commit_soon(self) -> None:
        self.commit_news_at = min(self.commit_news_at, self.clock() + _COMMIT_NEWS_WAIT)

    # ---- the follower

    def _on_append_entries(self, node: MemberNode, message: pb.AppendEntries) -> None:
        if message.term < self.term:
            self._answer(node, pb.AppendResponse(term=self.term, sequence=message.sequence))
            return
        if self.role is Role.LEADER:
            raise Conflict(f"manager {node.id} leads term {message.term} as well as this one")
        self._heard_leader(node)
        answer = pb.AppendResponse(term=self.term, sequence=message.sequence)
        if (installing := self.installing()) is not None:
            answer.installing, answer.match_index = True, installing
        elif not message.presence_only:
            verified = self._take(message, answer)
            self._commit_up_to(min(message.commit_index, verified))
        answer.disk_full = self._is_disk_full()
        self._answer(node, answer)

    def _answer(self, node: MemberNode, answer: pb.AppendResponse) -> None:
        if self._answers and answer.success:
            asker, waiting = self._answers[-1]
            if asker == node.id and waiting.success and waiting.term == answer.term:
                # One answer says what both say: they compare with the log of the same leader.
                answer.match_index = max(answer.match_index, waiting.match_index)
                self._answers.pop()
        self._answers.append((node.id, answer))

    def _take(self, message: pb.AppendEntries, answer: pb.AppendResponse) -> int:
        """Compares and appends; fills the answer. Returns up to where the log is known to equal the leader's."""
        previous = message.previous_index
        if previous >= self.base_index and not self._matches(previous, message.previous_term, answer):
            return 0
        end = previous + len(message.terms)
        missing = self._first_difference(message)
        if missing <= end:
            needed = (sum(map(len, message.commands)), len(message.commands))
            try:
                self.journal.reserve(*needed)
            except DiskFull as error:
                if self._no_room_for is None:
                    log.warning("%s", error)
                self._no_room_for, end = needed, missing - 1
            else:
                self._append_from(message, missing)
        # What the base of the log covers is committed, hence equal.
        verified = max(end, self.base_index)
        answer.success, answer.match_index = True, verified
        return verified

    def _is_disk_full(self) -> bool:
        """Whether there is still no room for what was refused last: a leader that was told so sends nothing to find out."""
        if self._no_room_for is not None:
            try:
                self.journal.reserve(*self._no_room_for)
                self._no_room_for = None
            except DiskFull:
                return True
        return False

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
