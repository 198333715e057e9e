"""What callers want written: taken into the leader's log, applied once it is committed, and answered (removes defects I, M).

Every proposal is ended exactly once: with the outcome at its index, with what became of it instead, or, where that cannot be
known any more, with just this.
"""

from __future__ import annotations

import logging
import queue

from swarm.errors import InternalError, NotLeader, SwarmError, Unavailable

from orchestrator.consensus import Committed, StateMachine
from orchestrator.raft import membership
from orchestrator.raft.disk import DiskFull
from orchestrator.raft.engine import Role
from orchestrator.raft.handover import Handover
from orchestrator.raft.proposals import Proposal, leadership_lost, overwritten

log = logging.getLogger(__name__)

_REGULAR, _NO_OP = 0, 1  # the library's command types
_APPLY_PER_TICK = 512
_TAKE_PER_TICK = 512
_TAKE_BYTES_PER_TICK = 4 << 20


class Commands(Handover):
    """Commands, on the tick thread but for `propose`."""

    machine: StateMachine

    # ---- what the core answers

    def _sync(self) -> None:
        raise NotImplementedError

    # ---- taking

    def propose(self, proposal: Proposal) -> None:
        """Queues a proposal. From any thread."""
        self._applyCommand(bytes([_REGULAR]) + proposal.command, proposal)
        self.links.post(_nothing)

    def _checkCommandsToApply(self) -> None:
        """The library's: takes queued commands. It would forward them to the leader and lose track of them (defect M)."""
        if self.is_handing_over() and self.role is Role.LEADER:
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

    def _append(self, command: bytes, proposal: Proposal) -> bool:
        if not proposal.begin():
            return False
        proposal.index = self.last_index + 1
        self.journal.add(command, proposal.index, self.term)
        self.waiting()[proposal.index].append((self.term, proposal))
        return True

    # ---- applying

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

    # ---- ending

    def _expire_proposals(self) -> None:
        """Whoever waits for an entry of a leadership that is over gets to know that nothing more will be known."""
        if self.role is Role.LEADER or not self.waiting():
            return
        now = self.clock()
        for index, waiting in list(self.waiting().items()):
            if all(proposal.deadline <= now for _, proposal in waiting):
                for _, proposal in self.waiting().pop(index):
                    proposal.end(leadership_lost())

    def _bound_waiting(self) -> None:
        """Leadership is lost: a while later nothing more will be known of what is in the log."""
        until = self.clock() + self.timings.afterlife
        for waiting in self.waiting().values():
            for _, proposal in waiting:
                proposal.deadline = min(proposal.deadline, until)

    def _end_commands(self) -> None:
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
