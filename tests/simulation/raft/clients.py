"""Clients that write and read, mostly through the leader; some call badly. What they saw is the history to explain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swarm.errors import OutcomeUnknown

from orchestrator.consensus import Committed
from orchestrator.raft.proposals import Outcome, Proposal
from tests.simulation.raft.hosts import Host, RudeCaller
from tests.support.linearizability import Operation

if TYPE_CHECKING:
    from tests.simulation.raft.world import World

KEYS = ("a", "b", "c", "d")
_SIZES = (0, 10, 300, 900)
_PATIENCE = 2.0


class Clients:
    """See the module's description."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._values = 0
        self.history: list[Operation] = []

    def draw(self) -> None:
        world, rng = self._world, self._world.rng
        if rng.random() < 0.35:
            host = world.hosts[rng.choice(sorted(world.hosts))]
            leader = world.leader()
            if leader is not None and rng.random() < 0.8:
                host = leader
            if host.core is not None and host.paused_until <= world.now:
                (self.write if rng.random() < 0.6 else self._read)(host)
        if world.options.rude_callers and rng.random() < 0.003 and (leader := world.leader()) is not None:
            self._write_nonsense(leader)

    def write(self, host: Host) -> None:
        world, rng = self._world, self._world.rng
        self._values += 1
        key, value = rng.choice(KEYS), f"v{self._values}"
        command = f"{key} {value} {'x' * rng.choice(_SIZES)}".encode()
        operation = Operation(key, "write", value, world.now, known=False)
        rude = world.options.rude_callers and rng.random() < 0.02

        def note(outcome: Outcome) -> None:
            if isinstance(outcome, Committed):
                operation.known, operation.returned = True, world.now
                world.rules.acknowledged[command] = outcome.index
            elif not isinstance(outcome, OutcomeUnknown):
                world.rules.refused.add(command)
                self.history.remove(operation)
            world.counts[f"write: {type(outcome).__name__}"] += 1

        def answer(outcome: Outcome) -> None:
            note(outcome)
            if rude:
                raise RudeCaller

        self.history.append(operation)
        self._send(host, Proposal(command, world.now + _PATIENCE, answer), note)

    def _write_nonsense(self, leader: Host) -> None:
        """A command that no member can apply: its proposer is told, and the log goes on."""
        self._values += 1

        def note(outcome: Outcome) -> None:
            self._world.counts[f"write that cannot be applied: {type(outcome).__name__}"] += 1
            if isinstance(outcome, Committed):
                self._world.violated("what could not be applied was acknowledged")

        self._send(leader, Proposal(b"! v%d" % self._values, self._world.now + _PATIENCE, note), note)

    def _send(self, host: Host, proposal: Proposal, note: Any) -> None:
        host.core.propose(proposal)

        def expire() -> None:
            if proposal.stage.name != "ENDED":
                note(proposal.expire())

        self._world.after(_PATIENCE, expire)

    def _read(self, host: Host) -> None:
        machine, called, key = host.machine, self._world.now, self._world.rng.choice(KEYS)

        def done(index: int | None) -> None:
            if index is not None:
                self._world.counts["read"] += 1
                self.history.append(Operation(key, "read", machine.registers.get(key), called, self._world.now))

        host.links.post(host.core.read, done)
