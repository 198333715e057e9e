"""A replicated log of one member, in memory: `propose` applies at once. For tests of what stands upon the log."""

from __future__ import annotations

from collections.abc import Callable

from swarm.errors import Unavailable

from orchestrator.consensus import (
    Committed,
    ConsensusStatus,
    Leadership,
    Member,
    MemberStatus,
    StateMachine,
)


class LocalConsensus:
    """A `consensus.Consensus` that always leads, until `lose_leadership` is called."""

    def __init__(self, machine: StateMachine, *, node_id: str = "m1", address: str = "127.0.0.1:2378") -> None:
        self.machine = machine
        self.member = Member(node_id, address)
        self.index = 0
        self.entries: list[bytes] = []
        self.members = {node_id: self.member}
        self._leads = True
        self._term = 1
        self._callbacks: list[Callable[[Leadership], None]] = []

    async def start(self) -> None:
        self._announce()

    async def stop(self, *, transfer: bool = True) -> None:
        self.lose_leadership()

    async def propose(self, command: bytes, *, timeout: float) -> Committed:
        if not self._leads:
            raise Unavailable("this manager does not lead")
        self.index += 1
        self.entries.append(command)
        return Committed(self.index, self.machine.apply(self.index, command))

    async def read_barrier(self, *, timeout: float) -> int:
        if not self._leads:
            raise Unavailable("this manager does not lead")
        return self.index

    def leadership(self) -> Leadership:
        return Leadership(self._term, self.member.node_id if self._leads else "", self._leads, self._leads)

    def on_leadership(self, callback: Callable[[Leadership], None]) -> None:
        self._callbacks.append(callback)

    def lose_leadership(self) -> None:
        self._leads = False
        self._announce()

    def gain_leadership(self) -> None:
        self._leads, self._term = True, self._term + 1
        self._announce()

    def status(self) -> ConsensusStatus:
        members = tuple(
            MemberStatus(member, True, member.node_id == self.member.node_id and self._leads, self.index)
            for member in self.members.values()
        )
        role = "leader" if self._leads else "follower"
        return ConsensusStatus(role, self._term, self.leadership().leader_id, self.index, self.index, members)

    async def add_member(self, member: Member, *, timeout: float) -> None:
        self.members[member.node_id] = member

    async def remove_member(self, node_id: str, *, timeout: float) -> None:
        self.members.pop(node_id, None)

    async def transfer_leadership(self, node_id: str | None, *, timeout: float) -> None:
        self.lose_leadership()

    def _announce(self) -> None:
        for callback in self._callbacks:
            callback(self.leadership())
