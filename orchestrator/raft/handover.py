"""Leadership goes to another voter: on demand, before a planned stop, and where the leader's disk is full.

The leader takes no commands while it hands over; they wait in their queue for who leads then. A write that our disk has no
room for is held until another one leads: its caller is told to ask there. What full disks mean is decided in `room`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from swarm.errors import FailedPrecondition, NotLeader, SwarmError, Unavailable
from swarm.v1 import raft_pb2 as pb

from orchestrator.raft import room
from orchestrator.raft.compaction import Compaction
from orchestrator.raft.disk import DiskFull
from orchestrator.raft.engine import MemberNode, Role
from orchestrator.raft.proposals import Proposal

log = logging.getLogger(__name__)

# Whoever is told to take over needs one round trip. Writes wait for it, so that one who stopped is not waited for for long.
_TAKE_OVER_ELECTIONS = 2


@dataclass
class _Transfer:
    """Leadership is being handed over."""

    target: MemberNode
    until: float
    done: Callable[[SwarmError | None], None]
    told_until: float | None = None  # it was told to take over, and should have by then


class Handover(Compaction):
    """Leadership transfer, on the tick thread."""

    def __init__(self, *arguments: Any) -> None:
        self._transfer: _Transfer | None = None
        self._held: list[tuple[Proposal, DiskFull]] = []  # wait for a leader whose disk has room
        self._no_hand_over_before = 0.0
        self.obstacle = ""  # why no majority can store a write now, where full disks are the reason
        super().__init__(*arguments)

    # ---- what the core answers

    def send_message(self, node_id: str, message: pb.RaftMessage) -> bool:
        raise NotImplementedError

    # ---- the transfer

    def is_handing_over(self) -> bool:
        return self._transfer is not None

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
        now = self.clock()
        if now > (transfer.until if transfer.told_until is None else transfer.told_until):
            self._transfer = None
            self._answer_held(handed_over=False)
            transfer.done(Unavailable(f"manager {transfer.target.id} did not take over leadership in time"))
        elif transfer.told_until is None and self.match_index.get(transfer.target, 0) == self.last_index:
            transfer.told_until = min(transfer.until, now + self.timings.election_max * _TAKE_OVER_ELECTIONS)
            self.send_message(transfer.target.id, pb.RaftMessage(timeout_now=pb.TimeoutNow(term=self.term)))

    def _handed_over(self) -> None:
        """This member leads no more, whoever does now."""
        if self._transfer is not None:
            transfer, self._transfer = self._transfer, None
            transfer.done(None)
        self._answer_held(handed_over=True)

    # ---- full disks

    def _watch_disks(self) -> None:
        full = self.role is Role.LEADER and any(progress.disk_full for progress in self.progress.values())
        self.obstacle = room.obstacle(self._voters()) if full else ""

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
