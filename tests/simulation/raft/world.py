"""A cluster of real `Core`s under one virtual clock: simulated disks, links and clients, faults drawn from one seed.

After every step the invariants of the protocol are checked; at the end everything heals, the members must agree, and the
history that the clients saw must be linearizable. `run(seed)` raises `Violation`, whose text names the seed that replays it.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from swarm.errors import OutcomeUnknown, SwarmError
from swarm.v1 import raft_pb2 as pb

from orchestrator.consensus import Committed, Leadership, Member
from orchestrator.raft import journal, membership
from orchestrator.raft.config import CompactionPolicy, Timings
from orchestrator.raft.core import Core
from orchestrator.raft.disk import DiskFull
from orchestrator.raft.engine import MemberNode, Role
from orchestrator.raft.journal import Journal
from orchestrator.raft.links import Links
from orchestrator.raft.proposals import Outcome, Proposal
from orchestrator.raft.snapshots import Snapshot, SnapshotStore, file_name
from tests.simulation.raft.virtual_disk import Crashed, VirtualDirectory
from tests.support.linearizability import Operation, violations

STEP = 0.015  # seconds of virtual time
KEYS = ("a", "b", "c", "d")
TIMINGS = Timings(heartbeat=0.05, election_min=0.2, election_max=0.4, quorum=0.2)
COMPACTION = CompactionPolicy(entries=25, bytes=1 << 30, keep_entries=6, keep_bytes=1 << 20)


class Violation(BaseException):
    """The protocol broke a promise."""


class Machine:
    """Registers. A command is `KEY VALUE`; values are unique."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._name = name
        self.registers: dict[str, str] = {}
        self.index = 0

    def apply(self, index: int, command: bytes) -> bytes:
        if index <= self.index:
            self._world.violated(f"{self._name} applied entry {index} after entry {self.index}")
        self._world.applied(index, command, self._name)
        self.index = index
        key, _, rest = command.decode().partition(" ")
        self.registers[key] = rest.split(" ")[0]
        return b"%d" % index

    def capture(self) -> Callable[[], Iterable[bytes]]:
        copy = dict(self.registers)

        def produce() -> Iterator[bytes]:
            for key in sorted(copy):
                yield f"{key} {copy[key]}\n".encode()

        return produce

    def restore(self, index: int, chunks: Iterable[bytes]) -> None:
        self.registers = dict(line.split(" ") for chunk in chunks for line in chunk.decode().splitlines())  # type: ignore[misc]
        self.index = index


class VirtualLinks(Links):
    """Links of one life of a member."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__()
        self.world, self.name = world, name
        self.peers: set[str] = set()

    def connect(self, node: MemberNode) -> None:
        self.peers.add(node.id)
        self.world.network.dial(self.name, node.id)

    def disconnect(self, node_id: str) -> None:
        self.peers.discard(node_id)
        self.world.network.hang_up(self.name, node_id)

    def transmit(self, node_id: str, message: pb.RaftMessage) -> bool:
        return self.world.network.send(self.name, node_id, message.SerializeToString())

    def transmit_snapshot(self, node_id: str, snapshot: Snapshot, term: int) -> bool:
        return self.world.network.send_snapshot(self.name, node_id, snapshot, term)


@dataclass(order=True)
class _Event:
    due: float
    number: int
    action: Callable[[], None] = field(compare=False)


class Network:
    """Links that delay, drop, duplicate, reorder and reset, and partitions, also in one direction only."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.rng
        self._cut: set[tuple[str, str]] = set()
        self._last_due: dict[tuple[str, str], float] = defaultdict(float)
        self.up: set[tuple[str, str]] = set()
        self.slow_until: dict[tuple[str, str], float] = {}
        self.copied: dict[tuple[str, str], list[bytes]] = {}  # links whose messages will come once more, much later
        self.rough = 0.0  # chance of a drop, duplicate or reordering

    def dial(self, source: str, target: str) -> None:
        self._world.after(self._rng.uniform(0.005, 0.05), lambda: self._establish(source, target))

    def hang_up(self, source: str, target: str) -> None:
        self.up.discard((source, target))

    def _establish(self, source: str, target: str) -> None:
        host, other = self._world.hosts.get(source), self._world.hosts.get(target)
        if host is None or host.core is None or target not in host.links.peers or (source, target) in self.up:
            return
        if other is None or other.core is None or self._is_cut(source, target):
            self.dial(source, target)
            return
        self.up.add((source, target))
        host.links.post(host.core.link_up, target)

    def _is_cut(self, source: str, target: str) -> bool:
        return (source, target) in self._cut or (target, source) in self._cut

    def send(self, source: str, target: str, data: bytes) -> bool:
        rng = self._rng
        if (source, target) in self._cut:
            self._world.counts["message lost in a partition"] += 1
            return True
        chance = rng.random()
        if chance < self.rough:
            self._world.counts["message dropped"] += 1
            return True
        if (source, target) in self.copied:
            self.copied[source, target].append(data)
        delay = rng.uniform(0.0005, 0.012)
        if self.slow_until.get((source, target), 0.0) > self._world.now:
            delay += rng.uniform(0, 0.6)
        due = self._world.now + delay
        if chance > 1 - self.rough:
            self._world.counts["message reordered"] += 1
            due += rng.uniform(0, 0.3)
        else:
            due = self._last_due[source, target] = max(due, self._last_due[source, target])
        self._world.at(due, lambda: self.arrive(source, target, data))
        if self.rough < chance < 2 * self.rough:
            self._world.counts["message duplicated"] += 1
            self._world.at(due + rng.uniform(0, 1.0), lambda: self.arrive(source, target, data))
        return True

    def arrive(self, source: str, target: str, data: bytes) -> None:
        host = self._world.hosts.get(target)
        if host is None or host.core is None or (source, target) in self._cut:
            return
        host.links.post(host.core.message_received, source, pb.RaftMessage.FromString(data))

    def send_snapshot(self, source: str, target: str, snapshot: Snapshot, term: int) -> bool:
        host, other = self._world.hosts[source], self._world.hosts.get(target)
        assert host.core is not None
        offer = pb.RaftSnapshotOffer(term=term, index=snapshot.index, index_term=snapshot.term)
        data = host.disk.contents(snapshot.name) if snapshot.name in host.disk.names() else b""

        def deliver() -> None:
            life = other.core if other is not None else None
            arrived = bool(data) and life is not None and not self._is_cut(source, target) and self._rng.random() < 0.9
            if arrived and other is not None:
                self._world.counts["snapshot sent"] += 1
                arrived = other.receive_snapshot(source, offer, data)
            if host.core is not None:
                host.links.post(host.core.snapshot_transfer_ended, target, arrived)

        self._world.after(self._rng.uniform(0.02, 0.5), deliver)
        return True

    # ---- faults

    def reset(self, one: str, other: str) -> None:
        for source, target in ((one, other), (other, one)):
            if (source, target) in self.up:
                self.up.discard((source, target))
                host = self._world.hosts.get(source)
                if host is not None and host.core is not None:
                    host.links.post(host.core.link_down, target)
                self.dial(source, target)

    def cut(self, one: str, other: str, *, both: bool) -> None:
        """Silence, as a cut cable gives: nobody is told."""
        self._cut.add((one, other))
        if both:
            self._cut.add((other, one))

    def heal(self, one: str, other: str) -> None:
        for pair in ((one, other), (other, one)):
            if pair in self._cut:
                self._cut.discard(pair)
                self.reset(one, other)

    def heal_all(self) -> None:
        for one, other in sorted(self._cut):
            self.heal(one, other)
        self.slow_until.clear()
        self.rough = 0.0


@dataclass
class Promises:
    """What others rely on."""

    stored: int = 0  # acknowledged: all entries up to here
    received: set[str] = field(default_factory=set)  # snapshots of leaders, which may replace what was acknowledged
    vote: tuple[int, str] = (0, "")

    def broken_by(self, core: Core) -> str | None:
        """What a member that came back no longer knows."""
        replaced = core.snapshot is not None and core.snapshot.name in self.received
        if core.last_index < self.stored and not (replaced and core.snapshot.index == core.last_index):
            return f"acknowledged entry {self.stored} and came back with entries up to {core.last_index}"
        term, candidate = self.vote
        if core.term < term or (core.term == term and (core.voted_for or "") != candidate):
            return f"voted for {candidate} in term {term} and came back in term {core.term}, vote {core.voted_for}"
        return None


class Host:
    """A member's disk, and its lives."""

    def __init__(self, world: World, name: str, founders: tuple[str, ...]) -> None:
        self.world, self.name = world, name
        self.disk = VirtualDirectory(world.rng)
        self.founders = founders
        self.core: CheckedCore | None = None
        self.machine = Machine(world, name)
        self.links = VirtualLinks(world, name)
        self.paused_until = 0.0
        self.skew = 0.0
        self.leadership: Leadership | None = None
        self.promises = Promises()

    def start(self) -> None:
        world = self.world
        self.machine, self.links = Machine(world, self.name), VirtualLinks(world, self.name)
        try:
            stored = CheckedJournal(self.disk, membership.founding(Member(name, f"{name}:1") for name in self.founders))
            stored.attach(world, self.name)
            self.core = CheckedCore(
                MemberNode(self.name, f"{self.name}:1"),
                journal=stored,
                snapshots=SnapshotStore(self.disk),
                machine=self.machine,
                links=self.links,
                background=self.background,
                observer=self,
                timings=TIMINGS,
                compaction=COMPACTION,
                clock=lambda: world.now + self.skew,
                rng=random.Random(world.rng.random()),
                queue_size=1000,
            )
        except Crashed:
            self.crashed()
        except SwarmError as error:
            world.violated(f"{self.name} cannot start: {error}")
            return
        if self.core is not None:
            self.core.promises = self.promises
            broken = self.promises.broken_by(self.core)
            if broken:
                world.violated(f"{self.name} {broken}")
            for other in sorted(world.hosts):
                if other != self.name and self.name in world.hosts[other].links.peers:
                    world.network.dial(other, self.name)

    def background(self, work: Callable[[], Any], done: Callable[[Any, Exception | None], None]) -> None:
        life = self.links

        def run() -> None:
            if self.links is not life or self.core is None:
                return
            try:
                result = work()
            except Crashed:
                self.crashed()
            except Violation:
                raise
            except Exception as error:  # noqa: BLE001 – as the real background does
                life.post(done, None, error)
            else:
                life.post(done, result, None)

        self.world.after(self.world.rng.uniform(0.0, 0.4), run)

    def receive_snapshot(self, source: str, offer: pb.RaftSnapshotOffer, data: bytes) -> bool:
        assert self.core is not None
        name = file_name(offer.index, offer.index_term)
        self.promises.received.add(name)
        try:
            with self.core.snapshots.receive(name) as incoming:
                incoming.add(data)
                incoming.finish()
        except Crashed:
            self.crashed()
            return False
        except DiskFull:
            return False
        self.links.post(self.core.snapshot_received, source, offer, name)
        return True

    def tick(self) -> None:
        if self.core is None or self.paused_until > self.world.now:
            return
        try:
            self.core.tick(0)
        except Crashed:
            self.crashed()
        except Violation:
            raise
        except Exception as error:  # noqa: BLE001 – whatever stops a member is a finding
            self.world.violated(f"{self.name} stopped: {type(error).__name__}: {error}")

    def crashed(self) -> None:
        """The member is gone; its disk is what is left."""
        world = self.world
        power = world.rng.random() < 0.5
        world.counts["power loss" if power else "kill -9"] += 1
        self.core = None
        self.links = VirtualLinks(world, self.name)
        self.disk.crash(power=power)
        for other in sorted(world.hosts):
            world.network.up.discard((self.name, other))
            world.network.reset(other, self.name)
        world.after(world.rng.uniform(0.1, 2.0), self.restart)

    def restart(self) -> None:
        if self.core is None and self.name in self.world.hosts:
            self.start()

    # ---- Observer

    def leadership_changed(self, leadership: Leadership) -> None:
        self.leadership = leadership

    def disk_begins(self, peers: list[str], message: pb.RaftMessage) -> None:
        """Not needed here."""

    def disk_ended(self) -> None:
        """Not needed here."""

    def configuration_changed(self, configuration: pb.RaftConfiguration) -> None:
        """Not needed here."""


class CheckedJournal(Journal):
    """Reports each entry that enters a log: equal (index, term) must mean equal command and equal predecessor."""

    _world: World | None = None

    def attach(self, world: World, name: str) -> None:
        self._world, self._name = world, name

    def add(self, command: bytes, idx: int, term: int) -> None:
        if self._world is not None:
            self._world.logged(self._name, idx, term, command, self[-1][2])
        super().add(command, idx, term)


class CheckedCore(Core):
    """Remembers what the member promised to others, which no crash may take back."""

    promises: Promises

    def send_message(self, node_id: str, message: pb.RaftMessage) -> bool:
        sent = super().send_message(node_id, message)
        answer, vote = message.append_response, message.vote
        if answer.success:
            self.promises.stored = max(self.promises.stored, answer.match_index)
        if vote.granted and not vote.prevote:
            self.promises.vote = (vote.term, node_id)
        return sent

    def _installed(self, snapshot: Snapshot) -> None:
        super()._installed(snapshot)
        self.promises.stored = min(self.promises.stored, self.last_index)

    def log_truncated(self, index: int) -> None:
        self.promises.stored = min(self.promises.stored, index - 1)
        super().log_truncated(index)


class World:
    """See the module's description."""

    def __init__(self, seed: int, members: int, *, change_members: bool = False) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = 1000.0
        self.counts: Counter[str] = Counter()
        self.hosts: dict[str, Host] = {}
        self.network = Network(self)
        self._events: list[_Event] = []
        self._event_number = 0
        self._log_matching: dict[tuple[int, int], tuple[bytes, int]] = {}
        self._applied: dict[int, bytes] = {}
        self._committed: dict[int, tuple[int, bytes]] = {}
        self._committed_in: dict[int, int] = {}  # the term in which it was first seen committed
        self._commit_seen: dict[str, int] = defaultdict(int)
        self._leaders: dict[int, str] = {}
        self._acknowledged: dict[bytes, int] = {}
        self._refused: set[bytes] = set()
        self._trace: deque[str] = deque(maxlen=30)
        self.history: list[Operation] = []
        self._values = 0
        self._change_members = change_members
        self._spare = [f"m{number}" for number in range(members, members + 12)]
        founders = tuple(f"m{number}" for number in range(members))
        for name in founders:
            self.hosts[name] = Host(self, name, founders)
        for host in list(self.hosts.values()):
            host.start()

    def violated(self, what: str) -> None:
        trace = "\n  ".join(self._trace)
        raise Violation(f"seed {self.seed}, {self.now - 1000:.2f} s: {what}\n  {trace}")

    def note(self, what: str) -> None:
        self._trace.append(f"{self.now - 1000:8.3f} {what}")

    # ---- time

    def at(self, due: float, action: Callable[[], None]) -> None:
        self._event_number += 1
        heapq.heappush(self._events, _Event(due, self._event_number, action))

    def after(self, delay: float, action: Callable[[], None]) -> None:
        self.at(self.now + delay, action)

    def step(self, faults: bool) -> None:
        self.now += STEP
        if faults:
            self._draw_faults()
        self._draw_clients()
        while self._events and self._events[0].due <= self.now:
            heapq.heappop(self._events).action()
        for name in sorted(self.hosts):
            self.hosts[name].tick()
        self._check()

    # ---- faults

    def _draw_faults(self) -> None:
        rng = self.rng
        names = sorted(self.hosts)
        if rng.random() < 0.012:
            self.network.reset(*rng.sample(names, 2))
            self.counts["link reset"] += 1
        if rng.random() < 0.01:
            one, other = rng.sample(names, 2)
            self.network.slow_until[one, other] = self.now + rng.uniform(0, 2)
            self.counts["link slowed"] += 1
        if rng.random() < 0.006:
            self._partition(names)
        if rng.random() < 0.006:
            name = rng.choice(names)
            self.hosts[name].paused_until = self.now + rng.uniform(0.05, 1.5)
            self.counts["member paused"] += 1
        if rng.random() < 0.004:
            self.hosts[rng.choice(names)].skew += rng.uniform(0, 0.5)
            self.counts["clock jump"] += 1
        if rng.random() < 0.008:
            # Between any two disk operations of the near future.
            host = self.hosts[rng.choice(names)]
            if sum(1 for other in self.hosts.values() if other.core is None) <= len(names) // 2:
                host.disk.fail_after(rng.randint(0, 12))
        if rng.random() < 0.005:
            self.network.rough = rng.choice((0.0, 0.0, 0.02, 0.08))
        if rng.random() < 0.002:
            host = self.hosts[rng.choice(names)]
            host.disk.capacity = host.disk.used() + rng.randint(0, 1 << 16)
            self.counts["disk full"] += 1

            def room() -> None:
                host.disk.capacity = 1 << 60

            self.after(rng.uniform(0.2, 2.0), room)
        if rng.random() < 0.004:
            self._transfer()
        if rng.random() < 0.003:
            self._cut_leader_with_minority()
        if self._change_members and rng.random() < 0.02:
            for _ in range(rng.choice((1, 1, 3))):
                self._change_configuration()

    def _partition(self, names: list[str]) -> None:
        rng = self.rng
        group = set(rng.sample(names, rng.randint(1, max(1, len(names) // 2))))
        both = rng.random() < 0.6
        self.counts["partition" if both else "one-way partition"] += 1
        pairs = [(one, other) for one in sorted(group) for other in names if other not in group]
        for one, other in pairs:
            if both or rng.random() < 0.5:
                self.network.cut(one, other, both=both)
            else:
                self.network.cut(other, one, both=False)

        def heal() -> None:
            for one, other in pairs:
                self.network.heal(one, other)

        self.after(rng.uniform(0.1, 3.0), heal)

    def _leader(self) -> Host | None:
        leading = [host for host in self.hosts.values() if host.core is not None and host.core.role is Role.LEADER]
        return self.rng.choice(sorted(leading, key=lambda host: host.name)) if leading else None

    def _cut_leader_with_minority(self) -> None:
        """A leader and as many others as make no majority take writes that the rest will overwrite; soon after, that
        leader is asked to lead again. What its followers once acknowledged is a lie by then."""
        leader, rng = self._leader(), self.rng
        if leader is None or leader.core is None:
            return
        voters = sorted(membership.voters(leader.core.history.current) - {leader.name})
        minority = [leader.name, *rng.sample(voters, max(0, (len(voters) - 1) // 2))]
        rest = [name for name in sorted(self.hosts) if name not in minority]
        self.counts["leader cut off with a minority"] += 1
        for one in minority:
            for other in rest:
                self.network.cut(one, other, both=True)
        for _ in range(3):
            self._write(leader)

        late = self.network.copied = {(one, leader.name): [] for one in minority[1:]}

        def heal() -> None:
            self.network.copied = {}
            for one in minority:
                for other in rest:
                    self.network.heal(one, other)

        def lead_again() -> None:
            self._transfer(leader.name)
            for (one, _), messages in late.items():
                self.network.slow_until[leader.name, one] = self.now + 1.0
                for data in messages:
                    self.counts["message duplicated"] += 1
                    self.after(
                        rng.uniform(0.0, 0.6), lambda one=one, data=data: self.network.arrive(one, leader.name, data)
                    )

        self.after(rng.uniform(0.5, 1.5), heal)
        for delay in (2.0, 2.5, 3.0, 4.0):
            self.after(delay, lead_again)

    def _transfer(self, target: str | None = None) -> None:
        leader = self._leader()
        if leader is not None and leader.core is not None and leader.name != target:
            self.counts["leadership transfer"] += 1
            leader.links.post(leader.core.transfer_leadership, target, 0.5, lambda _: None)

    def _change_configuration(self) -> None:
        leader = self._leader()
        if leader is None or leader.core is None:
            return
        core, rng = leader.core, self.rng
        members = [m.node_id for m in core.history.current.members]
        if len(members) > 2 and rng.random() < 0.5:
            gone = rng.choice([name for name in members if name != leader.name])

            def without(now: pb.RaftConfiguration) -> pb.RaftConfiguration:
                return membership.without(now, gone, frozenset(members))

            self._propose_change(leader, without, "removed", gone)
        elif self._spare and len(members) < 6:
            name = self._spare.pop(0)
            host = self.hosts[name] = Host(self, name, ())
            host.start()
            self._propose_change(
                leader, lambda now: membership.with_learner(now, Member(name, f"{name}:1")), "added", name
            )

    def _propose_change(
        self, leader: Host, change: Callable[[pb.RaftConfiguration], pb.RaftConfiguration], what: str, name: str
    ) -> None:
        assert leader.core is not None
        self.note(f"{name} to be {what} by {leader.name}")

        def answer(outcome: Outcome) -> None:
            if isinstance(outcome, Committed):
                self.counts[f"member {what}"] += 1

        proposal = Proposal(b"", self.now + 5, answer)
        leader.links.post(leader.core.change_configuration, change, proposal)

    # ---- clients

    def _draw_clients(self) -> None:
        rng = self.rng
        if rng.random() < 0.35:
            host = self.hosts[rng.choice(sorted(self.hosts))]
            leader = self._leader()
            if leader is not None and rng.random() < 0.8:
                host = leader
            if host.core is not None and host.paused_until <= self.now:
                (self._write if rng.random() < 0.6 else self._read)(host)

    def _write(self, host: Host) -> None:
        assert host.core is not None
        self._values += 1
        key, value = self.rng.choice(KEYS), f"v{self._values}"
        command = f"{key} {value} {'x' * self.rng.choice((0, 10, 300, 900))}".encode()
        operation = Operation(key, "write", value, self.now, known=False)

        def answer(outcome: Outcome) -> None:
            if isinstance(outcome, Committed):
                operation.known, operation.returned = True, self.now
                self._acknowledged[command] = outcome.index
            elif not isinstance(outcome, OutcomeUnknown):
                self._refused.add(command)
                self.history.remove(operation)
            self.counts[f"write: {type(outcome).__name__}"] += 1

        self.history.append(operation)
        proposal = Proposal(command, self.now + 2.0, answer)
        host.core.propose(proposal)

        def expire() -> None:
            if proposal.stage.name != "ENDED":
                answer(proposal.expire())

        self.after(2.0, expire)

    def _read(self, host: Host) -> None:
        assert host.core is not None
        machine, called, key = host.machine, self.now, self.rng.choice(KEYS)

        def done(index: int | None) -> None:
            if index is not None:
                self.counts["read"] += 1
                self.history.append(Operation(key, "read", machine.registers.get(key), called, self.now))

        host.links.post(host.core.read, done)

    # ---- invariants

    def logged(self, name: str, index: int, term: int, command: bytes, previous_term: int) -> None:
        known = self._log_matching.setdefault((index, term), (command, previous_term))
        if known != (command, previous_term):
            self.violated(f"log matching: {name} has another entry ({index}, term {term}) than others had")

    def applied(self, index: int, command: bytes, name: str) -> None:
        if self._applied.setdefault(index, command) != command:
            self.violated(f"{name} applied another entry {index} than others did")
        if command in self._refused:
            self.violated(f"entry {index} was applied, although its client was told that nothing was written")

    def _check(self) -> None:
        for name in sorted(self.hosts):
            core = self.hosts[name].core
            if core is None:
                continue
            if core.role is Role.LEADER:
                self._check_leader(name, core)
            self._check_committed(name, core)

    def _check_leader(self, name: str, core: Core) -> None:
        before = self._leaders.setdefault(core.term, name)
        if before != name:
            self.violated(f"election safety: {before} and {name} both lead term {core.term}")
        for node, match in core.match_index.items():
            self._check_match(name, core, node.id, match)

    def _check_match(self, name: str, core: Core, peer: str, match: int) -> None:
        """What a leader believes of a member's log is true, unless a later leader has changed that log since."""
        other = self.hosts[peer].core
        if other is None or other.term > core.term or match <= max(other.base_index, core.base_index):
            return
        theirs, ours = other.entry(match), core.entry(match)
        if theirs is None or ours is None or theirs[2] != ours[2]:
            self.violated(
                f"{name} leads term {core.term} and believes that {peer} holds its entry {match}: it does not"
            )

    def _check_committed(self, name: str, core: Core) -> None:
        commit = core.commit_index
        start = max(self._commit_seen[name] + 1, core.base_index + 1)
        if commit < self._commit_seen[name]:
            start = core.base_index + 1  # a restart may begin with an older hint
        for index in range(start, commit + 1):
            entry = core.entry(index)
            if entry is None:
                self.violated(f"{name} committed entry {index}, which its log does not hold")
                return
            self._committed_in.setdefault(index, core.term)
            if self._committed.setdefault(index, (entry[2], entry[0])) != (entry[2], entry[0]):
                self.violated(f"{name} committed another entry {index} than others did")
        self._commit_seen[name] = commit
        if core.role is Role.LEADER and self.hosts[name].leadership is not None:
            self._check_complete(name, core)

    def _check_complete(self, name: str, core: Core) -> None:
        """Leader completeness, looked at once per leadership: the leader holds all that was committed in earlier terms
        (an old entry that a later leader commits is not among them)."""
        if self._complete_checked.get(core.term) == name:
            return
        self._complete_checked[core.term] = name
        for index, (term, command) in self._committed.items():
            if index <= core.base_index or self._committed_in[index] >= core.term:
                continue
            entry = core.entry(index)
            if entry is None or (entry[2], entry[0]) != (term, command):
                self.violated(f"leader completeness: {name} leads term {core.term} without committed entry {index}")

    @property
    def _complete_checked(self) -> dict[int, str]:
        return self.__dict__.setdefault("_complete", {})

    # ---- a whole run

    def run(self, steps: int) -> None:
        for _ in range(60):
            self.step(faults=False)
        for _ in range(steps):
            self.step(faults=True)
        self._settle()
        self._judge()

    def _settle(self) -> None:
        self.network.heal_all()
        for host in self.hosts.values():
            host.disk.fail_after(None)
            host.disk.capacity = 1 << 60
            host.paused_until = 0.0
        for _ in range(1500):
            self.step(faults=False)
            if self._agreed():
                return
        status = {
            name: (host.core.role.name, host.core.term, host.core.commit_index, host.core.applied_index())
            for name, host in sorted(self.hosts.items())
            if host.core is not None
        }
        self.violated(f"the members do not agree after everything healed: {status}")

    def _agreed(self) -> bool:
        if any(host.core is None for host in self.hosts.values()):
            return False
        leading = [host.core for host in self.hosts.values() if host.core is not None and host.core.role is Role.LEADER]
        if len(leading) != 1 or not leading[0]._is_ready():
            return False
        wanted = {m.node_id for m in leading[0].history.current.members}
        inside = [self.hosts[name].core for name in wanted]
        return (
            len(self._acknowledged) > 0
            and all(core is not None and core.applied_index() == leading[0].commit_index for core in inside)
            and leading[0].commit_index == leading[0].last_index
        )

    def _judge(self) -> None:
        leader = next(h for h in self.hosts.values() if h.core is not None and h.core.role is Role.LEADER)
        assert leader.core is not None
        for m in leader.core.history.current.members:
            if self.hosts[m.node_id].machine.registers != leader.machine.registers:
                self.violated(f"{m.node_id} and {leader.name} applied the same entries and hold different states")
        for command, index in self._acknowledged.items():
            if self._applied.get(index) != command:
                self.violated(f"the acknowledged write {command[:20]!r} at entry {index} is lost")
        if len(set(self._applied.values())) != len(self._applied):
            self.violated("a command was applied twice")
        for sentence in violations(self.history):
            self.violated(sentence)


@contextmanager
def small_segments() -> Iterator[None]:
    """Segments so small that a run starts and removes many of them."""
    before = journal.SEGMENT_BYTES, journal.ALLOCATION_STEP, journal._SMALL_SEGMENT
    journal.SEGMENT_BYTES, journal.ALLOCATION_STEP, journal._SMALL_SEGMENT = 8192, 4096, 1024
    try:
        yield
    finally:
        journal.SEGMENT_BYTES, journal.ALLOCATION_STEP, journal._SMALL_SEGMENT = before


def run(seed: int, *, members: int = 3, steps: int = 3000, change_members: bool = False) -> World:
    """One run. Raises Violation."""
    with small_segments():
        world = World(seed, members, change_members=change_members)
        world.run(steps)
    return world
