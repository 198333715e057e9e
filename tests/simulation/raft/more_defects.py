"""The defects I, N, O and P put back (see `defects`): each is several mistakes, so a letter stands here more than once."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from pysyncobj import serializer
from swarm.v1 import raft_pb2 as pb

from orchestrator.consensus import Committed, Member
from orchestrator.raft import framing, membership
from orchestrator.raft.core import Core
from orchestrator.raft.elections import Elections
from orchestrator.raft.engine import MemberNode
from orchestrator.raft.journal import Journal
from orchestrator.raft.proposals import overwritten
from orchestrator.raft.replication import Progress, Replication
from orchestrator.raft.snapshots import IncomingSnapshot


@contextmanager
def applied_after_the_callbacks() -> Iterator[None]:
    """I: the applied index moves once everybody has been told, so that a callback that raises applies an entry again."""

    def apply(self: Core) -> bool:
        while not self.is_installing() and self.applied_index() < self.commit_index:
            index = self.applied_index() + 1
            entry = self.entry(index)
            assert entry is not None
            outcome = self._apply(entry[0], index)
            for term, proposal in self.waiting().pop(index, ()):
                proposal.end(outcome if term == entry[2] else overwritten())
            self.set_applied_index(index)
        self._expire_proposals()
        return False

    with mock.patch.object(Core, "_SyncObj__applyLogEntries", apply):
        yield


@contextmanager
def machine_stops_the_log() -> Iterator[None]:
    """I: what the state machine raises ends the applying, at this entry, on every member, for good."""

    def apply(self: Core, command: bytes, index: int) -> Committed:
        return Committed(index, self.machine.apply(index, command))

    with mock.patch.object(Core, "_apply_command", apply):
        yield


@contextmanager
def no_prevote() -> Iterator[None]:
    """N: whoever has not heard of a leader raises the term, at once."""
    with mock.patch.object(Elections, "_ask_prevotes", Elections._allow_election):
        yield


@contextmanager
def no_learners() -> Iterator[None]:
    """N: a new member has a vote before it holds anything."""

    def with_voter(configuration: pb.RaftConfiguration, new: Member) -> pb.RaftConfiguration:
        changed = original(configuration, new)
        present = membership.member(changed, new.node_id)
        assert present is not None
        present.learner = False
        return changed

    original = membership.with_learner
    with mock.patch.object(membership, "with_learner", with_voter):
        yield


@contextmanager
def members_known_when_applied() -> Iterator[None]:
    """N: after a start, a change of the members counts once its entry is applied, not because it is in the log."""

    def read(self: Core, journal: Journal) -> membership.History:
        return membership.History(self.snapshot.index if self.snapshot else journal[0][1], journal.base_configuration)

    def apply(self: Core, command: bytes, index: int) -> Any:
        configuration = membership.decode(command)
        if configuration is not None and index > self.history.current_index:
            self.configuration_appended(index, configuration)
        return original(self, command, index)

    original = Core._apply
    with mock.patch.object(Core, "_read_history", read), mock.patch.object(Core, "_apply", apply):
        yield


@contextmanager
def batches_reset_one_another() -> Iterator[None]:
    """O: batches go out whatever is on its way; each that does not fit makes the leader begin elsewhere, and the member asks
    for one entry earlier, or for what follows its own last."""

    def send(self: Replication, node: MemberNode, now: float) -> None:
        progress = self.progress.setdefault(node.id, Progress())
        following = self.next_index[node]
        if following <= self.base_index:
            self._offer_snapshot(node, progress, now)
            return
        self.sequence += 1
        message = pb.AppendEntries(term=self.term, sequence=self.sequence, commit_index=self.commit_index)
        self._fill_batch(message, node, Progress(), now)
        self.next_index[node] = self.last_index + 1
        self.send_message(node.id, pb.RaftMessage(append_entries=message))

    def respond(self: Replication, node: MemberNode, answer: pb.AppendResponse) -> None:
        original(self, node, answer)
        if answer.term == self.term and answer.mismatch and node in self.next_index:
            self.next_index[node] = answer.try_next

    def matches(self: Replication, index: int, term: int, answer: pb.AppendResponse) -> bool:
        ours = self.entry(index)
        if ours is not None and ours[2] == term:
            return True
        answer.mismatch, answer.try_next = True, self.last_index + 1 if ours is None else index
        return False

    original = Replication._on_append_response
    with (
        mock.patch.object(Replication, "_on_append_response", respond),
        mock.patch.object(Replication, "_send_to", send),
        mock.patch.object(Replication, "_matches", matches),
    ):
        yield


@contextmanager
def last_piece_by_another_length() -> Iterator[None]:
    """O: the pieces are made of the encoded message, and which is the last one is told by the length of its command."""

    def frames(messages: list[pb.RaftMessage]) -> Iterator[pb.RaftFrame]:
        data = pb.RaftBatch(messages=messages).SerializeToString()
        length = sum(len(command) for message in messages for command in message.append_entries.commands) or len(data)
        for start in range(0, len(data), framing.FRAME_BYTES):
            end = start + framing.FRAME_BYTES
            yield pb.RaftFrame(fragment=data[start:end], more=end < length)

    with mock.patch.object(framing, "frames", frames):
        yield


@contextmanager
def snapshots_on_the_tick_thread() -> Iterator[None]:
    """O: the whole state is written while nothing else happens."""

    def take(self: Core, done: Any = None) -> None:
        index, term, configuration, produce = self.view()
        snapshot = self.snapshots.write(index, term, configuration, produce())
        self.snapshots.remove_older(index)
        self._compact(snapshot)

    with mock.patch.object(Core, "take_snapshot", take):
        yield


@contextmanager
def snapshots_by_fork() -> Iterator[None]:
    """O: the library's serializer writes the state in a fork of a process that has threads and gRPC in it."""

    def take(self: Core, done: Any = None) -> None:
        serializer.Serializer("state", 1 << 16, True, None, None, None).serialize(b"state", self.applied_index())

    with mock.patch.object(Core, "take_snapshot", take):
        yield


@contextmanager
def snapshots_sent_anew() -> Iterator[None]:
    """O: nobody notes that a snapshot is on its way or being installed, so that each heartbeat starts it over."""

    def offer(self: Replication, node: MemberNode, progress: Progress, now: float) -> None:
        if self.snapshot is not None:
            self.start_snapshot_transfer(node.id, self.snapshot)

    def received(self: Core, node_id: str, offered: pb.RaftSnapshotOffer, name: str) -> None:
        self._installing, self.attempt = None, getattr(self, "attempt", 0) + 1  # type: ignore[attr-defined]
        attempt = self.attempt  # type: ignore[attr-defined]
        background = self._background

        def newest_only(work: Any, done: Any) -> None:
            background(work, lambda *result: done(*result) if self.attempt == attempt else None)  # type: ignore[attr-defined]

        with mock.patch.object(self, "_background", newest_only):
            original(self, node_id, offered, name)

    original = Core.snapshot_received
    with (
        mock.patch.object(Replication, "_offer_snapshot", offer),
        mock.patch.object(Core, "snapshot_received", received),
    ):
        yield


@contextmanager
def pickle_on_the_wire() -> Iterator[None]:
    """P: what comes from a peer is unpickled."""

    def frames(messages: list[pb.RaftMessage]) -> Iterator[pb.RaftFrame]:
        yield pb.RaftFrame(fragment=pickle.dumps([message.SerializeToString() for message in messages]))

    def add(self: framing.Reassembly, frame: pb.RaftFrame) -> list[pb.RaftMessage]:
        return [pb.RaftMessage.FromString(data) for data in pickle.loads(frame.fragment)]

    with mock.patch.object(framing, "frames", frames), mock.patch.object(framing.Reassembly, "add", add):
        yield


@contextmanager
def pickle_on_the_disk() -> Iterator[None]:
    """P: a snapshot that comes is unpickled as it goes to the disk."""

    def add(self: Any, data: bytes) -> None:
        if data[:1] == pickle.PROTO:
            pickle.loads(data)
        original(self, data)

    original = IncomingSnapshot.add
    with mock.patch.object(IncomingSnapshot, "add", add):
        yield
