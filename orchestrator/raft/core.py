"""One member of the log: the corrected library object, its state machine and its snapshots (removes defects E, H, I, K).

Everything here runs on one thread, in ticks. A tick is the library's own (`SyncObj._onTick`), framed by ours:

1. deliver what came meanwhile; decide whether the election deadline means an election (elections.py);
2. the library: start an election if allowed, count commits, check the quorum, apply, send heartbeats, take commands;
3. the end of the tick: send what is new, *then* sync the journal, *then* release acknowledgements and count ourselves
   (the leader's followers write at the same time as the leader does); settle reads; tell who leads;
4. wait for the next event, or for the next deadline.

The order in 3 is what makes acknowledgements true: nothing that depends on a record is said before the record is synced.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

from swarm.v1 import raft_pb2 as pb

from orchestrator.consensus import Leadership, StateMachine
from orchestrator.raft import membership
from orchestrator.raft.commands import Commands
from orchestrator.raft.config import CompactionPolicy, Timings
from orchestrator.raft.engine import MemberNode, Role, ticking
from orchestrator.raft.journal import Journal
from orchestrator.raft.links import Links
from orchestrator.raft.reads import Done, Reads
from orchestrator.raft.snapshots import SnapshotStore
from orchestrator.raft.surroundings import Background, Observer

log = logging.getLogger(__name__)

_LONGEST_WAIT = 0.1


class _Wait:
    """Stands in the place of the library's socket poller: the end of a tick waits here."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def poll(self, timeout: float) -> None:
        self._core.wait(timeout)


class Core(Commands):
    """See the module's description."""

    def __init__(
        self,
        own: MemberNode,
        *,
        journal: Journal,
        snapshots: SnapshotStore,
        machine: StateMachine,
        links: Links,
        background: Background,
        observer: Observer,
        timings: Timings,
        compaction: CompactionPolicy,
        clock: Callable[[], float],
        rng: random.Random,
        queue_size: int,
    ) -> None:
        """Restores the state from the newest snapshot, and gets ready to tick. Raises InternalError where the journal or
        the snapshot is damaged: a member must not take part with less than it once acknowledged."""
        self.machine = machine
        self.snapshots = snapshots
        self.links = links
        self.compaction = compaction
        self._background = background
        self._observer = observer
        self._reads = Reads()
        self._last_sent = 0  # the last index when entries were sent last
        self._published: tuple[int, str, bool, bool] | None = None
        self.snapshot = snapshots.newest()
        if self.snapshot is not None:
            found = self.snapshot
            journal.align(found.index, found.term, found.configuration, compaction.keep_entries)
            machine.restore(found.index, snapshots.chunks(found))
        self.history = self._read_history(journal)
        super().__init__(own, journal, links, timings, clock, rng, queue_size)
        journal.sync()
        self.set_applied_index(self.snapshot.index if self.snapshot else self.base_index)
        self.set_commit_index(max(self.commit_index, self.applied_index()))
        self._poller = _Wait(self)
        links.receiver = self
        self.addOnTickCallback(self._end_of_tick)
        self._adopt_configuration()
        if membership.voters(self.history.current) == {own.id}:
            self.election_deadline = 0.0  # nobody to wait for

    def _read_history(self, journal: Journal) -> membership.History:
        start = self.snapshot.index if self.snapshot else journal[0][1]
        history = membership.History(start, journal.base_configuration)
        for command, index, _ in journal[:]:
            if index > start and (configuration := membership.decode(command)) is not None:
                history.appended(index, configuration)
        return history

    # ---- the tick

    def tick(self, wait: float) -> None:
        """One tick; waits for at most `wait` seconds at its end."""
        with ticking(self.clock):
            self.links.deliver(0)
            self._decide_election(self.clock())
            if self.role is Role.LEADER and not self.voter_nodes:
                self._sync()  # nobody else vouches for what the library commits now, as the entry that made this voter the last
            self.doTick(wait)

    def wait(self, longest: float) -> None:
        """Until something happens, or is due."""
        now = self.clock()
        due = min(self.next_heartbeat(), self.commit_news_at) if self.role is Role.LEADER else self.election_deadline
        alone_behind = self.role is Role.LEADER and not self.voter_nodes and self.commit_index < self.last_index
        may_apply = self.applied_index() < self.commit_index and not self.is_installing()
        may_ask = self._reads.waiting and self._is_ready()
        if alone_behind or may_apply or may_ask or self.journal.dirty:
            due = now
        self.links.deliver(max(0.0, min(longest, due - now, _LONGEST_WAIT)))

    def _end_of_tick(self) -> None:
        if self.role is Role.LEADER:
            self._lead()
        else:
            self._reads.fail()
        self._sync()
        self._release_answers()
        if self.role is Role.LEADER:
            self._reads.settle(self._proven_sequence(), self.applied_index())
        self._watch_disks()
        self._watch_transfer()
        self._publish()

    def _sync(self) -> None:
        """The tick thread turns to the disk; for as long as that takes others are told that this member is there."""
        if not self.journal.dirty:
            return
        leader = self.leader_node
        if self.role is Role.LEADER:
            peers = [node.id for node in self.peers()]
            message = pb.RaftMessage(append_entries=pb.AppendEntries(term=self.term, presence_only=True))
        else:
            peers = [leader.id] if leader is not None and not self.journal.hard_state_dirty else []
            full = self._no_room_for is not None
            message = pb.RaftMessage(append_response=pb.AppendResponse(term=self.term, disk_full=full))
        self._observer.disk_begins(peers, message)
        try:
            self.journal.sync()
        finally:
            self._observer.disk_ended()

    def _lead(self) -> None:
        if self._reads.waiting and self._is_ready():
            self._reads.ask(self.sequence + 1, self.commit_index)
            self._SyncObj__sendAppendEntries()
        self._promote_learners()
        if self.last_index != self._last_sent or self._commit_news_due():
            self._last_sent = self.last_index
            self._SyncObj__sendAppendEntries()

    def _proven_sequence(self) -> int:
        """The highest sequence number that a majority has answered in this term."""
        others = sorted((self._acknowledged(node) for node in self.voter_nodes), reverse=True)
        needed = (len(others) + 1) // 2  # besides ourselves
        return others[needed - 1] if needed else self.sequence + 1

    def _acknowledged(self, node: MemberNode) -> int:
        progress = self.progress.get(node.id)
        return progress.acknowledged if progress else 0

    def _is_ready(self) -> bool:
        own_entry = self.own_entry_index()
        return self.role is Role.LEADER and own_entry is not None and self.applied_index() >= own_entry

    def _publish(self) -> None:
        leader = self.leader_node
        now = (self.term, leader.id if leader is not None else "", self.role is Role.LEADER, self._is_ready())
        if now != self._published:
            self._published = now
            self._observer.leadership_changed(Leadership(*now))

    # ---- messages

    def message_received(self, node_id: str, message: pb.RaftMessage) -> None:
        node = self._node(node_id)
        match message.WhichOneof("kind"):
            case "request_vote":
                request = message.request_vote
                if request.prevote or self._may_go_on_in(request.term):
                    self._on_request_vote(node, request)
            case "vote":
                vote = message.vote
                # A granted pre-vote names a term that nobody has yet.
                if (vote.prevote and vote.granted) or self._may_go_on_in(vote.term):
                    self._on_vote(node, vote)
            case "append_entries":
                if self._may_go_on_in(message.append_entries.term):
                    self._on_append_entries(node, message.append_entries)
            case "append_response":
                if self._may_go_on_in(message.append_response.term):
                    self._on_append_response(node, message.append_response)
            case "timeout_now":
                self._on_timeout_now(node, message.timeout_now)
            case unknown:
                log.warning("a message of kind %s from manager %s was ignored", unknown, node_id)

    def _may_go_on_in(self, term: int) -> bool:
        """Adopts a later term. False where the disk has no room to store that: the message is as good as lost then."""
        if term > self.term:
            if not self.journal.has_margin():
                return False
            self._adopt_term(term)
        return True

    def send_message(self, node_id: str, message: pb.RaftMessage) -> bool:
        """Every message reveals the term, and some a vote: both are durable first."""
        if self.journal.hard_state_dirty:
            self.journal.sync()
        return self.links.transmit(node_id, message)

    def _node(self, node_id: str) -> MemberNode:
        for node in self.peers():
            if node.id == node_id:
                return node
        return MemberNode(node_id)

    def link_up(self, node_id: str) -> None:
        node = self._node(node_id)
        if node in self.voter_nodes or node in self.learner_nodes:
            self.connected.add(node)
            self._forget_flight(node_id)
            if self.role is Role.LEADER:
                self.set_next_heartbeat(0.0)

    def link_down(self, node_id: str) -> None:
        self.connected.discard(MemberNode(node_id))
        self._forget_flight(node_id)
        self.peer_gone(node_id)

    def peer_alive(self, node_id: str) -> None:
        """A part of a large message has come: who sends it is there, although its heartbeats wait behind that message."""
        if self.leader_node is not None and self.leader_node.id == node_id and self.role is Role.FOLLOWER:
            self._heard_leader(self.leader_node)

    def peer_reading(self, node_id: str) -> None:
        """A peer takes a large message in, and cannot answer before it has all of it. That is enough for the check of the
        quorum, and for nothing else."""
        node = self._node(node_id)
        if self.role is Role.LEADER and node in self.last_response:
            self.last_response[node] = self.clock()

    def peer_gone(self, node_id: str) -> None:
        """The link that another member keeps to us broke."""
        if self.leader_node is not None and self.leader_node.id == node_id and self.role is Role.FOLLOWER:
            self._leader_connection_broke()

    def _forget_flight(self, node_id: str) -> None:
        """What was under way on a broken link is lost."""
        progress, node = self.progress.get(node_id), self._node(node_id)
        if progress is not None and progress.flights and node in self.next_index:
            self._send_again(node, progress)

    def is_receiving(self) -> bool:
        return self.links.is_receiving()

    # ---- leadership

    def _role_changed(self, old: int, new: int) -> None:
        if old == Role.LEADER:
            self._lost_leadership()

    def _SyncObj__onBecomeLeader(self) -> None:
        self.progress.clear()
        self._last_sent = 0
        self.journal.sync()
        super()._SyncObj__onBecomeLeader()
        self.journal.sync()
        log.info("this manager leads term %d", self.term)

    def _lost_leadership(self) -> None:
        log.info("this manager leads no more (term %d)", self.term)
        self._postpone_election(self.clock())
        self.progress.clear()
        self._reads.fail()
        self._handed_over()
        self._bound_waiting()

    def read(self, done: Done) -> None:
        """A linearizable read; see reads.py."""
        if self.role is Role.LEADER:
            self._reads.add(done)
        else:
            done(None)

    def stop(self) -> None:
        """Ends what waits; nothing is lost by that."""
        self._reads.fail()
        self._end_commands()
