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
import queue
import random
from collections.abc import Callable
from dataclasses import dataclass

from swarm.errors import FailedPrecondition, InternalError, NotLeader, SwarmError, Unavailable
from swarm.v1 import raft_pb2 as pb

from orchestrator.consensus import Committed, Leadership, StateMachine
from orchestrator.raft import membership, room
from orchestrator.raft.compaction import Compaction
from orchestrator.raft.config import CompactionPolicy, Timings
from orchestrator.raft.disk import DiskFull
from orchestrator.raft.engine import MemberNode, Role, ticking
from orchestrator.raft.journal import Journal
from orchestrator.raft.links import Links
from orchestrator.raft.proposals import Proposal, leadership_lost, overwritten
from orchestrator.raft.reads import Done, Reads
from orchestrator.raft.snapshots import SnapshotStore
from orchestrator.raft.surroundings import Background, Observer

log = logging.getLogger(__name__)

_REGULAR, _NO_OP = 0, 1  # the library's command types
_APPLY_PER_TICK = 512
_TAKE_PER_TICK = 512
_TAKE_BYTES_PER_TICK = 4 << 20
_LONGEST_WAIT = 0.1


@dataclass
class _Transfer:
    """Leadership is being handed over."""

    target: MemberNode
    until: float
    done: Callable[[SwarmError | None], None]
    told: bool = False


class _Wait:
    """Stands in the place of the library's socket poller: the end of a tick waits here."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def poll(self, timeout: float) -> None:
        self._core.wait(timeout)


class Core(Compaction):
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
        self._transfer: _Transfer | None = None
        self._held: list[tuple[Proposal, DiskFull]] = []  # wait for a leader whose disk has room
        self._no_hand_over_before = 0.0
        self.obstacle = ""  # why no majority can store a write now, where full disks are the reason
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
        if alone_behind or self.applied_index() < self.commit_index or self._reads.waiting or self.journal.dirty:
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
        full = self.role is Role.LEADER and any(progress.disk_full for progress in self.progress.values())
        self.obstacle = room.obstacle(self._voters()) if full else ""
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
            message = pb.RaftMessage(append_response=pb.AppendResponse(term=self.term))
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
        if self._transfer is not None:
            transfer, self._transfer = self._transfer, None
            transfer.done(None)
        self._answer_held(handed_over=True)
        until = self.clock() + self.timings.afterlife
        for waiting in self.waiting().values():
            for _, proposal in waiting:
                proposal.deadline = min(proposal.deadline, until)

    def transfer_leadership(
        self, node_id: str | None, timeout: float, done: Callable[[SwarmError | None], None]
    ) -> None:
        """Hands leadership to a voter that has caught up; `done` is told once this member leads no more, or why not."""
        if self.role is not Role.LEADER:
            done(Unavailable("this manager does not lead"))
            return
        if self._transfer is not None:
            done(FailedPrecondition("leadership is being handed over already"))
            return
        candidates = [node for node in self.peers() if node in self.voter_nodes and node in self.connected]
        if node_id is not None:
            candidates = [node for node in candidates if node.id == node_id]
        if not candidates:
            done(FailedPrecondition("there is no other manager that could lead now"))
            return
        able = {voter.node_id for voter in self._voters() if voter.can_write}
        target = max(
            candidates,
            key=lambda node: (node.id in able, self.match_index.get(node, 0), self.last_response.get(node, 0.0)),
        )
        self._transfer = _Transfer(target, self.clock() + timeout, done)
        self._watch_transfer()

    def _watch_transfer(self) -> None:
        transfer = self._transfer
        if transfer is None:
            return
        if self.clock() > transfer.until:
            self._transfer = None
            self._answer_held(handed_over=False)
            transfer.done(Unavailable(f"manager {transfer.target.id} did not take over leadership in time"))
        elif not transfer.told and self.match_index.get(transfer.target, 0) == self.last_index:
            transfer.told = True
            self.send_message(transfer.target.id, pb.RaftMessage(timeout_now=pb.TimeoutNow(term=self.term)))

    # ---- commands

    def propose(self, proposal: Proposal) -> None:
        """Queues a proposal. From any thread."""
        self._applyCommand(bytes([_REGULAR]) + proposal.command, proposal)
        self.links.post(_nothing)

    def _checkCommandsToApply(self) -> None:
        """The library's: takes queued commands. It would forward them to the leader and lose track of them (defect M)."""
        if self._transfer is not None and self.role is Role.LEADER:
            return  # they wait: whoever leads after this tick answers them
        commands, taken = self.command_queue(), 0
        for _ in range(_TAKE_PER_TICK):
            try:
                command, proposal = commands.get_nowait()
            except queue.Empty:
                return
            self._take_command(command, proposal)
            taken += len(command)
            if taken > _TAKE_BYTES_PER_TICK:
                break
        self.links.post(_nothing)  # there may be more

    def _take_command(self, command: bytes, proposal: Proposal) -> None:
        if self.role is not Role.LEADER:
            leader = self.leader_node
            where = f"manager {leader.id} does" if leader is not None else "no leader is known at the moment"
            proposal.end(NotLeader(f"this manager does not lead, {where}; nothing was written, repeat it"))
        elif self.obstacle:
            proposal.end(DiskFull(f"{self.obstacle}; nothing was written"))
        else:
            try:
                self.journal.reserve(len(command))
            except DiskFull as error:
                self._no_room(proposal, error)
            else:
                self._append(command, proposal)

    def _no_room(self, proposal: Proposal, error: DiskFull) -> None:
        """Our disk is full: somebody else should lead, where that helps. The caller waits for that."""
        if self._transfer is None and self.clock() >= self._no_hand_over_before:
            target = room.successor(self._voters(), self.own_id)
            if target is not None:
                log.warning("%s; leadership is handed to manager %s", error, target)
                self.transfer_leadership(target, self.timings.quorum, lambda _: None)
        if self._transfer is None:
            proposal.end(error)
        else:
            self._held.append((proposal, error))

    def _answer_held(self, *, handed_over: bool) -> None:
        held, self._held = self._held, []
        if held and not handed_over:
            self._no_hand_over_before = self.clock() + room.RETRY
        for proposal, error in held:
            proposal.end(
                NotLeader("this manager handed leadership over; nothing was written") if handed_over else error
            )

    def _voters(self) -> list[room.Voter]:
        """All voters, with what a leader knows of their disks."""
        answering = self.reachable()
        return [
            room.Voter(
                member.node_id,
                member.address,
                answers=member.node_id in answering,
                full=(progress := self.progress.get(member.node_id)) is not None and progress.disk_full,
                match_index=self.match_index.get(MemberNode(member.node_id), 0),
            )
            for member in self.history.current.members
            if not member.learner
        ]

    def _append(self, command: bytes, proposal: Proposal) -> None:
        if not proposal.begin():
            return
        proposal.index = self.last_index + 1
        self.journal.add(command, proposal.index, self.term)
        self.waiting()[proposal.index].append((self.term, proposal))

    def _SyncObj__applyLogEntries(self) -> bool:
        """The library's: applies what is committed. The index moves before anybody is told, so that nothing that a
        listener does can make an entry apply twice (defect I); and a tick applies a bounded number."""
        if self.role is not Role.LEADER:
            # The leader waits for these answers, and for a majority of them its client; nobody waits for what is applied.
            self._sync()
            self._release_answers()
        end = min(self.commit_index, self.applied_index() + _APPLY_PER_TICK)
        while not self.is_installing() and self.applied_index() < end:
            index = self.applied_index() + 1
            entry = self.entry(index)
            if entry is None:
                raise InternalError(f"entry {index} is committed but not in the log")
            outcome = self._apply(entry[0], index)
            self.set_applied_index(index)
            for term, proposal in self.waiting().pop(index, ()):
                proposal.end(outcome if term == entry[2] else overwritten())
        self._expire_proposals()
        return False

    def _apply(self, command: bytes, index: int) -> Committed | SwarmError:
        kind = command[0]
        if kind == _REGULAR:
            return self._apply_command(command[1:], index)
        if kind == _NO_OP or membership.decode(command) is not None:
            return Committed(index, b"")
        raise InternalError(
            f"entry {index} is of kind {kind}, which this version does not know; start this manager with the newer version"
        )

    def _apply_command(self, command: bytes, index: int) -> Committed | SwarmError:
        """A state machine that meets what it must not apply raises a SwarmError, and this member stops. Any other
        exception is a defect in a deterministic function: it happens on every member alike, so that going on keeps them
        equal, while stopping would stop the whole cluster at this entry for good."""
        try:
            return Committed(index, self.machine.apply(index, command))
        except (SwarmError, MemoryError):
            raise
        except Exception as error:
            log.exception("entry %d could not be applied", index)
            return InternalError(f"the write at entry {index} was committed but could not be applied: {error}")

    def _expire_proposals(self) -> None:
        """Whoever waits for an entry of a leadership that is over gets to know that nothing more will be known."""
        if self.role is Role.LEADER or not self.waiting():
            return
        now = self.clock()
        for index, waiting in list(self.waiting().items()):
            if all(proposal.deadline <= now for _, proposal in waiting):
                for _, proposal in self.waiting().pop(index):
                    proposal.end(leadership_lost())

    def read(self, done: Done) -> None:
        """A linearizable read; see reads.py."""
        if self.role is Role.LEADER:
            self._reads.add(done)
        else:
            done(None)

    def stop(self) -> None:
        """Ends what waits; nothing is lost by that."""
        self._reads.fail()
        self._answer_held(handed_over=False)
        for waiting in list(self.waiting().values()):
            for _, proposal in waiting:
                proposal.end(leadership_lost())
        self.waiting().clear()
        self._fail_queued()

    def _fail_queued(self) -> None:
        while True:
            try:
                _, proposal = self.command_queue().get_nowait()
            except queue.Empty:
                return
            proposal.end(Unavailable("this manager stops; nothing was written, repeat it"))


def _nothing() -> None:
    """Wakes the tick thread."""
