"""Snapshots in the life of a member: taken when the log has grown, installed when the log of others has moved on (removes the
stalls of defect O, and A for snapshots).

The tick thread only takes the state machine's copy-on-write view, and moves the log's base once a file is durable. Writing,
checking and restoring happen in the background, one at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from swarm.errors import InternalError, SwarmError
from swarm.v1 import raft_pb2 as pb

from orchestrator.consensus import StateMachine
from orchestrator.raft import membership
from orchestrator.raft.config import CompactionPolicy
from orchestrator.raft.configurations import Configurations
from orchestrator.raft.engine import MemberNode, Role
from orchestrator.raft.proposals import leadership_lost
from orchestrator.raft.snapshots import Snapshot, SnapshotStore
from orchestrator.raft.surroundings import Background

log = logging.getLogger(__name__)

_RETRY = 30.0  # seconds after a snapshot that could not be stored


class Compaction(Configurations):
    """Snapshots, on the tick thread."""

    machine: StateMachine
    snapshots: SnapshotStore
    compaction: CompactionPolicy
    _background: Background

    def __init__(self, *arguments: Any) -> None:
        self._snapshot_busy = False
        self._snapshot_not_before = float("-inf")
        self._kept_bytes = 0  # in the log when its base moved last
        self._installing: pb.RaftSnapshotOffer | None = None
        super().__init__(*arguments)

    # ---- what the core answers

    def _may_go_on_in(self, term: int) -> bool:
        raise NotImplementedError

    def _node(self, node_id: str) -> MemberNode:
        raise NotImplementedError

    # ---- taking

    def installing(self) -> int | None:
        return self._installing.index if self._installing is not None else None

    def start_snapshot_transfer(self, node_id: str, snapshot: Snapshot) -> bool:
        return self.links.transmit_snapshot(node_id, snapshot, self.term)

    def _SyncObj__tryLogCompaction(self) -> None:
        """The library's: takes a snapshot when the log has grown. Only the copy-on-write view is taken on this thread."""
        if self._snapshot_busy or self.is_installing() or self.clock() < self._snapshot_not_before:
            return
        covered = self.snapshot.index if self.snapshot else self.base_index
        grown = self.applied_index() - covered
        if grown > 0 and self.compaction.is_due(grown, self.journal.bytes_in_memory - self._kept_bytes):
            self.take_snapshot()

    def take_snapshot(self, done: Callable[[SwarmError | None], None] | None = None) -> None:
        """Stores the applied state, in the background."""
        index, term, configuration, produce = self.view()
        self._snapshot_busy = True

        def work() -> Snapshot:
            snapshot = self.snapshots.write(index, term, configuration, produce())
            self.snapshots.remove_older(index)
            return snapshot

        def stored(snapshot: Any, error: Exception | None) -> None:
            self._snapshot_busy = False
            if error is not None:
                log.warning("the snapshot at entry %d could not be stored, it is tried again later: %s", index, error)
                self._snapshot_not_before = self.clock() + _RETRY
            elif self.snapshot is None or snapshot.index > self.snapshot.index:
                self._compact(snapshot)
            if done is not None:
                done(error if isinstance(error, SwarmError) else None)

        self._background(work, stored)

    def view(self) -> tuple[int, int, pb.RaftConfiguration, Callable[[], Iterable[bytes]]]:
        """The applied state as it is now, for a file of its own: index, term, configuration, and what yields the state."""
        index = self.applied_index()
        entry = self.entry(index)
        assert entry is not None
        return index, entry[2], self.history.at(index), self.machine.capture()

    def _compact(self, snapshot: Snapshot) -> None:
        """The snapshot is durable: the log may forget what it covers, but for what keeps slow members off snapshots."""
        self.snapshot = snapshot
        self.history.compacted(snapshot.index)
        keep_from, kept_bytes = snapshot.index, 0
        while keep_from > self.base_index and snapshot.index - keep_from < self.compaction.keep_entries:
            entry = self.entry(keep_from)
            assert entry is not None
            kept_bytes += len(entry[0])
            if kept_bytes > self.compaction.keep_bytes:
                break
            keep_from -= 1
        if (
            self.last_index - self.base_index <= self.compaction.catch_up_entries
            and self.journal.bytes_in_memory <= self.compaction.catch_up_bytes
        ):
            keep_from = max(self.base_index, min(keep_from, self.behind_up_to()))
        self.journal.start_new_segment()
        self.journal.deleteEntriesTo(keep_from - self.base_index)
        self._kept_bytes = self.journal.bytes_in_memory

    # ---- installing

    def snapshot_received(self, node_id: str, offer: pb.RaftSnapshotOffer, name: str) -> None:
        """A leader's snapshot lies whole in a file. It replaces the state in the background, and then the log; nothing
        of our own tail is counted as committed by it (defect A)."""
        if not self._may_go_on_in(offer.term) or offer.term < self.term or self.is_installing():
            return
        self._heard_leader(self._node(node_id))
        if offer.index <= self.applied_index():
            self._answer_installed(self.applied_index())
            return
        self._installing = offer

        def work() -> Snapshot:
            snapshot = self.snapshots.received(name)
            self.machine.restore(snapshot.index, self.snapshots.chunks(snapshot))
            self.snapshots.remove_older(snapshot.index)
            return snapshot

        def installed(snapshot: Any, error: Exception | None) -> None:
            self._installing = None
            if error is not None:
                raise InternalError(f"the snapshot of manager {node_id} could not be installed: {error}") from error
            self._installed(snapshot)

        self._background(work, installed)

    def _installed(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        ours = self.entry(snapshot.index)
        if ours is None or ours[2] != snapshot.term:
            self.journal.reset(snapshot.index, snapshot.term, snapshot.configuration)
            self.history = membership.History(snapshot.index, snapshot.configuration)
        self.set_applied_index(snapshot.index)
        self.set_commit_index(max(self.commit_index, snapshot.index))
        for index in [known for known in self.waiting() if known <= snapshot.index]:
            for _, proposal in self.waiting().pop(index):
                proposal.end(leadership_lost())
        self._kept_bytes = self.journal.bytes_in_memory
        self._adopt_configuration()
        self._answer_installed(snapshot.index)

    def _answer_installed(self, index: int) -> None:
        """What is applied is committed, hence equal to the log of any leader of our term."""
        if self.leader_node is not None and self.role is Role.FOLLOWER:
            full = self._is_disk_full()
            answer = pb.AppendResponse(term=self.term, success=True, match_index=index, disk_full=full)
            self._answer(self.leader_node, answer)
