"""Who may lead (removes defects D, J's double vote together with the journal, and the election half of N).

The library starts an election whenever its deadline has passed. Here the deadline starts a *pre-vote* first: a question
that changes nobody's term. Only when a majority would vote for us, and has not heard of a leader lately, is the library
allowed to raise the term. So a member that returns from a partition never deposes a healthy leader.

* Votes are counted by voter, not by message, and each answer names the term that it answers.
* A leader whose connection broke is asked after at once, instead of at the election timeout: a killed process closes its
  connections. Pre-vote makes a false alarm harmless.
* A member that was itself not running (stopped, or starved of CPU) blames nobody for the silence and waits once more.
* A learner, a member that waits to be added, one that installs a snapshot and one whose disk has no room for a vote do not
  stand for election.
"""

from __future__ import annotations

import logging
from typing import Any

from swarm.v1 import raft_pb2 as pb

from orchestrator.raft import membership
from orchestrator.raft.engine import Engine, MemberNode, Role

log = logging.getLogger(__name__)

_STALL_HEARTBEATS = 2  # a tick that comes later than so many heartbeats says that we did not run

_TOUCH_ELECTIONS = 3  # a member that was not heard for so many election timeouts is out of touch


class Elections(Engine):
    """Elections, on the tick thread."""

    history: membership.History

    def __init__(self, *arguments: Any) -> None:
        self._prevotes: set[str] | None = None  # who would vote for us; None: not asking
        self._prevote_term = 0
        self._votes: set[str] = set()
        self._votes_term = 0
        self._may_raise_term = False
        self._told_to_stand_until = 0.0  # the leader hands over to us
        self._leader_heard = float("-inf")  # set at the start: a member that just came back deposes nobody
        self._leader_lost = False
        self._heard: dict[str, float] = {}  # when a request or a vote of a member came last
        self._last_tick: float | None = None
        self.elections_started = 0
        super().__init__(*arguments)
        self._leader_heard = self.clock()

    # ---- what the rest of the core answers

    def send_message(self, node_id: str, message: pb.RaftMessage) -> bool:
        raise NotImplementedError

    def installing(self) -> int | None:
        """The last entry of the snapshot that is being installed."""
        raise NotImplementedError

    def is_installing(self) -> bool:
        return self.installing() is not None

    def is_receiving(self) -> bool:
        """Whether messages of others would reach us now."""
        raise NotImplementedError

    # ---- standing for election

    def is_electable(self) -> bool:
        return (
            self.own_id in membership.voters(self.history.current)
            and not self.is_installing()
            and self.journal.has_margin()
        )

    def _reaches_majority(self) -> bool:
        """Whether enough voters would hear our request at once."""
        return (len(self.voter_nodes & self.connected) + 1) * 2 > len(self.voter_nodes) + 1

    def _decide_election(self, now: float) -> None:
        """Before each of the library's ticks: what its election deadline means."""
        self._forgive_own_stall(now)
        if self.role is Role.LEADER:
            return
        if now < self._told_to_stand_until:
            if self.is_electable() and self._reaches_majority():
                self._told_to_stand_until = 0.0
                self._allow_election()
            return
        if self._may_raise_term or now <= self.election_deadline:
            return
        if not self.is_receiving():
            # Not a whole timeout: on a busy host this may be so at each deadline, for seconds, while nobody leads.
            self.election_deadline = now + self.timings.heartbeat / 2
            return
        self._postpone_election(now)
        asks = self.is_electable()
        if self.leader_node is not None:
            silent = now - self._leader_heard
            log.info(
                "no word of leader %s for %.2f s%s", self.leader_node.id, silent, "; asking for votes" if asks else ""
            )
        self._leader_lost = True
        self.leader_node = None
        if asks:
            self._ask_prevotes()

    def _forgive_own_stall(self, now: float) -> None:
        last, self._last_tick = self._last_tick, now
        if last is None:
            return
        stall = now - last - self.timings.heartbeat
        if stall < self.timings.heartbeat * _STALL_HEARTBEATS:
            return
        if self.role is Role.LEADER:
            for node in self.last_response:
                self.last_response[node] = min(now, self.last_response[node] + stall)
        elif self.election_deadline <= now:
            self._postpone_election(now)

    def _postpone_election(self, now: float) -> None:
        self.election_deadline = now + self._SyncObj__generateRaftTimeout()

    def _ask_prevotes(self) -> None:
        self._prevote_term = self.term + 1
        self._prevotes = set()
        if not self.voter_nodes:
            self._allow_election()
            return
        request = pb.RequestVote(
            term=self._prevote_term,
            last_log_index=self.last_index,
            last_log_term=self.last_term,
            prevote=True,
        )
        for node in sorted(self.voter_nodes, key=lambda node: str(node.id)):
            self.send_message(node.id, pb.RaftMessage(request_vote=request))

    def _allow_election(self) -> None:
        """The library's next tick starts a real election."""
        self._prevotes = None
        self._may_raise_term = True
        self.election_deadline = 0.0

    def _SyncObj__connectedToAnyone(self) -> bool:
        """Asked by the library once its deadline has passed, as the last condition before it raises the term."""
        allowed, self._may_raise_term = self._may_raise_term, False
        if allowed:
            self.elections_started += 1
            self._votes, self._votes_term = set(), self.term + 1
        return allowed

    # ---- voting

    def _on_request_vote(self, node: MemberNode, request: pb.RequestVote) -> None:
        self._heard[node.id] = self.clock()
        up_to_date = (request.last_log_term, request.last_log_index) >= (self.last_term, self.last_index)
        if request.prevote:
            granted = (
                request.term > self.term
                and up_to_date
                and not self._has_live_leader()
                and self.journal.has_margin()  # for the vote that is asked for next
            )
            term = request.term if granted else self.term
        else:
            granted = (
                request.term == self.term
                and self.role is not Role.LEADER
                and self.voted_for in (None, node.id)
                and up_to_date
                and self.journal.has_margin()
            )
            term = self.term
            if granted:
                self.set_term(self.term, node.id)
                self._postpone_election(self.clock())
        vote = pb.Vote(term=term, granted=granted, prevote=request.prevote, asked_term=request.term)
        self.send_message(node.id, pb.RaftMessage(vote=vote))

    def _has_live_leader(self) -> bool:
        if self.role is Role.LEADER:
            return True
        return self.clock() - self._leader_heard < self.timings.election_min and not self._leader_lost

    def _on_vote(self, node: MemberNode, vote: pb.Vote) -> None:
        self._heard[node.id] = self.clock()
        if not vote.granted or node not in self.voter_nodes:
            return
        majority = (len(self.voter_nodes) + 1) // 2 + 1
        if vote.prevote:
            if self._prevotes is None or vote.asked_term != self._prevote_term or self.role is Role.LEADER:
                return
            self._prevotes.add(node.id)
            if self._prevote_term == self.term + 1 and len(self._prevotes) + 1 >= majority:
                self._allow_election()
        elif self.role is Role.CANDIDATE and vote.asked_term == self.term == self._votes_term:
            self._votes.add(node.id)
            if len(self._votes) + 1 >= majority:
                self._SyncObj__onBecomeLeader()

    def _on_timeout_now(self, node: MemberNode, message: pb.TimeoutNow) -> None:
        """The leader asks us to take over."""
        if message.term == self.term and node == self.leader_node:
            self._told_to_stand_until = self.clock() + self.timings.election_min

    def _heard_leader(self, node: MemberNode) -> None:
        """A message of the leader of our term has come."""
        now = self.clock()
        self._leader_heard, self._leader_lost, self._heard[node.id] = now, False, now
        self._prevotes, self._may_raise_term = None, False
        self._postpone_election(now)
        self.leader_node = node
        self.set_role(Role.FOLLOWER)

    def _adopt_term(self, term: int) -> None:
        """Somebody is in a later term than we."""
        self.set_term(term, None)
        self._prevotes, self._may_raise_term, self._told_to_stand_until = None, False, 0.0
        if self.role is Role.LEADER:
            self._postpone_election(self.clock())
        self.set_role(Role.FOLLOWER)
        self.leader_node = None

    # ---- connections

    def in_touch(self) -> frozenset[str]:
        """The members that a member which does not lead is in touch with. A process that is stopped keeps its connections: who
        asks for votes counts only who answered lately."""
        connected = frozenset(node.id for node in set(self.connected))
        if self._prevotes is None and self.role is not Role.CANDIDATE:
            return connected
        since = self.clock() - self.timings.election_max * _TOUCH_ELECTIONS
        return frozenset(node_id for node_id in connected if self._heard.get(node_id, since - 1) >= since)

    def _leader_connection_broke(self) -> None:
        if self._leader_lost:
            return
        self._leader_lost = True
        soon = self.clock() + self.rng.uniform(self.timings.lost_leader_min, self.timings.lost_leader_max)
        self.election_deadline = min(self.election_deadline, soon)
