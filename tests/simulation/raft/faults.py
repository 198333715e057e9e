"""What goes wrong, drawn from the seed: links, partitions, pauses, crashes, slow and full disks, clocks, members that come and
go, leadership that is handed over, hostile bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from swarm.v1 import raft_pb2 as pb

from orchestrator.consensus import Committed, Member
from orchestrator.raft import membership
from orchestrator.raft.proposals import Outcome, Proposal
from tests.simulation.raft.hosts import Host

if TYPE_CHECKING:
    from tests.simulation.raft.world import World

_BULK_SECONDS = 2.0  # what writing or reading a large state takes


class Faults:
    """See the module's description."""

    def __init__(self, world: World, spare: list[str]) -> None:
        self._world = world
        self._spare = spare
        self.ended = False  # what was drawn earlier and is due later does not happen any more

    def draw(self) -> None:
        world, rng = self._world, self._world.rng
        names = sorted(world.hosts)
        for chance, fault in (
            (0.012, self._reset),
            (0.01, self._slow_link),
            (0.006, self._partition),
            (0.006, self._pause),
            (0.004, self._jump_clock),
            (0.008, self._stop_at_the_disk),
            (0.003, self._slow_disk),
            (0.002, self._fill_disk),
            (0.002, self._send_hostile),
            (0.001, self._grow_state),
        ):
            if rng.random() < chance:
                fault(names)
        if world.options.rough_links and rng.random() < 0.005:
            world.network.rough = rng.choice((0.0, 0.0, 0.02, 0.08))
        if rng.random() < 0.004:
            self.transfer()
        if rng.random() < 0.003:
            self._cut_leader_with_minority()
        if world.options.change_members and rng.random() < 0.02:
            for _ in range(rng.choice((1, 1, 3))):
                self.change_configuration()

    # ---- links

    def _reset(self, names: list[str]) -> None:
        self._world.network.reset(*self._world.rng.sample(names, 2))
        self._world.counts["link reset"] += 1

    def _slow_link(self, names: list[str]) -> None:
        world = self._world
        one, other = world.rng.sample(names, 2)
        world.network.slow_until[one, other] = world.now + world.rng.uniform(0, 2)

    def _partition(self, names: list[str]) -> None:
        world, rng = self._world, self._world.rng
        group = set(rng.sample(names, rng.randint(1, max(1, len(names) // 2))))
        both = rng.random() < 0.6
        world.counts["partition" if both else "one-way partition"] += 1
        pairs = [(one, other) for one in sorted(group) for other in names if other not in group]
        for one, other in pairs:
            if both or rng.random() < 0.5:
                world.network.cut(one, other, both=both)
            else:
                world.network.cut(other, one, both=False)

        def heal() -> None:
            for one, other in pairs:
                world.network.heal(one, other)

        world.after(rng.uniform(0.1, 3.0), heal)

    def _send_hostile(self, names: list[str]) -> None:
        world = self._world
        source, target = world.rng.sample(names, 2)
        if world.options.hostile_bytes and world.hosts[target].core is not None:
            world.hosts[target].receive_hostile(source)
            world.network.reset(source, target)

    # ---- members

    def _pause(self, names: list[str]) -> None:
        world = self._world
        world.hosts[world.rng.choice(names)].paused_until = world.now + world.rng.uniform(0.05, 1.5)
        world.counts["member paused"] += 1

    def _jump_clock(self, names: list[str]) -> None:
        self._world.hosts[self._world.rng.choice(names)].skew += self._world.rng.uniform(0, 0.5)
        self._world.counts["clock jump"] += 1

    def _stop_at_the_disk(self, names: list[str]) -> None:
        """Between any two disk operations of the near future."""
        world = self._world
        host = world.hosts[world.rng.choice(names)]
        if sum(1 for other in world.hosts.values() if other.core is None) <= len(names) // 2:
            host.disk.fail_after(world.rng.randint(0, 12))

    def _slow_disk(self, names: list[str]) -> None:
        world = self._world
        world.hosts[world.rng.choice(names)].slow_disk_until = world.now + world.rng.uniform(0.2, 2.0)
        world.counts["disk slow"] += 1

    def _fill_disk(self, names: list[str]) -> None:
        world = self._world
        host = world.hosts[world.rng.choice(names)]
        host.disk.capacity = host.disk.used() + world.rng.randint(0, 1 << 16)
        world.counts["disk full"] += 1

        def room() -> None:
            host.disk.capacity = 1 << 60

        world.after(world.rng.uniform(0.2, 2.0), room)

    def _grow_state(self, _: list[str]) -> None:
        """For a while, a snapshot takes long to write and to read."""
        world = self._world
        world.counts["state large"] += 1
        world.bulk = _BULK_SECONDS

        def shrink() -> None:
            world.bulk = 0.0

        world.after(world.rng.uniform(0.5, 3.0), shrink)

    # ---- leadership

    def _cut_leader_with_minority(self) -> None:
        """A leader and as many others as make no majority take writes that the rest will overwrite; soon after, that
        leader is asked to lead again. What its followers once acknowledged is a lie by then."""
        world, rng = self._world, self._world.rng
        leader = world.leader()
        if leader is None:
            return
        voters = sorted(membership.voters(leader.core.history.current) - {leader.name})
        minority = [leader.name, *rng.sample(voters, max(0, (len(voters) - 1) // 2))]
        rest = [name for name in sorted(world.hosts) if name not in minority]
        world.counts["leader cut off with a minority"] += 1
        for one in minority:
            for other in rest:
                world.network.cut(one, other, both=True)
        for _ in range(3):
            world.clients.write(leader)

        late = world.network.copied = {(one, leader.name): [] for one in minority[1:]}

        def heal() -> None:
            world.network.copied = {}
            for one in minority:
                for other in rest:
                    world.network.heal(one, other)

        def lead_again() -> None:
            if self.ended:
                return
            self.transfer(leader.name)
            for (one, _), messages in late.items() if world.options.rough_links else ():
                world.network.slow_until[leader.name, one] = world.now + 1.0
                for data in messages:
                    world.counts["message duplicated"] += 1
                    world.after(
                        rng.uniform(0.0, 0.6), lambda one=one, data=data: world.network.arrive(one, leader.name, data)
                    )

        world.after(rng.uniform(0.5, 1.5), heal)
        for delay in (2.0, 2.5, 3.0, 4.0):
            world.after(delay, lead_again)

    def transfer(self, target: str | None = None) -> None:
        leader = self._world.leader()
        if leader is not None and leader.name != target:
            self._world.counts["leadership transfer"] += 1
            leader.links.post(leader.core.transfer_leadership, target, 0.5, lambda _: None)

    # ---- membership

    def change_configuration(self) -> None:
        world, rng = self._world, self._world.rng
        leader = world.leader()
        if leader is None:
            return
        members = [m.node_id for m in leader.core.history.current.members]
        if len(members) > 2 and rng.random() < 0.5:
            gone = rng.choice(members)
            if gone == leader.name:
                self._remove_leader(leader, members)
            else:
                self._remove(leader, gone, members)
        elif self._spare and len(members) < 6:
            name = self._spare.pop(0)
            world.hosts[name] = world.new_host(name, ())
            if rng.random() < 0.8:
                world.hosts[name].start()
            else:  # it comes up later
                world.after(rng.uniform(0.5, 3.0), world.hosts[name].restart)
            self._propose_change(
                leader, lambda now: membership.with_learner(now, Member(name, f"{name}:1")), "member added", name
            )

    def _remove(self, leader: Host, gone: str, members: list[str], what: str = "member removed") -> None:
        def without(now: pb.RaftConfiguration) -> pb.RaftConfiguration:
            return membership.without(now, gone, frozenset(members))

        self._propose_change(leader, without, what, gone)

    def _remove_leader(self, leader: Host, members: list[str]) -> None:
        """It hands leadership over, and asks its successor."""

        def handed_over(_: object) -> None:
            self._world.after(0.3, ask_successor)

        def ask_successor() -> None:
            successor = self._world.leader()
            if successor is not None and successor.name != leader.name and not self.ended:
                self._remove(successor, leader.name, members, "leader removed")

        leader.links.post(leader.core.transfer_leadership, None, 0.5, handed_over)

    def _propose_change(
        self, leader: Host, change: Callable[[pb.RaftConfiguration], pb.RaftConfiguration], what: str, name: str
    ) -> None:
        world = self._world
        world.note(f"{name}: {what}, by {leader.name}")

        def answer(outcome: Outcome) -> None:
            if isinstance(outcome, Committed):
                world.counts[what] += 1

        proposal = Proposal(b"", world.now + 5, answer)
        leader.links.post(leader.core.change_configuration, change, proposal)
        if world.rng.random() < 0.1:
            world.counts["change withdrawn"] += 1
            proposal.expire()  # its caller has gone before the leader comes to it: nothing is to change
