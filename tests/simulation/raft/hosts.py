"""A member's disk, and its lives: started from the disk, ticked, killed, started again.

`Host` runs our `Core`; `stock_host.StockHost` runs the library as shipped in its place. Time that a member spends with its
disk counts: what its tick thread waits for keeps it silent, what runs in the background only comes later.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError
from swarm.errors import InvalidArgument
from swarm.v1 import raft_pb2 as pb

from orchestrator.consensus import Leadership, Member
from orchestrator.raft import framing, membership
from orchestrator.raft.config import CompactionPolicy, Timings
from orchestrator.raft.core import Core
from orchestrator.raft.disk import DiskFull
from orchestrator.raft.engine import MemberNode
from orchestrator.raft.journal import Journal
from orchestrator.raft.snapshots import Snapshot, SnapshotDamaged, SnapshotStore, file_name
from tests.simulation.raft.network import BOMB, Bytes, VirtualLinks
from tests.simulation.raft.virtual_disk import Crashed, VirtualDirectory

if TYPE_CHECKING:
    from tests.simulation.raft.world import World

TIMINGS = Timings(heartbeat=0.05, election_min=0.2, election_max=0.4, quorum=0.2)
COMPACTION = CompactionPolicy(entries=25, bytes=1 << 30, keep_entries=6, keep_bytes=1 << 20, catch_up_entries=80)
_PATIENCE = 10.0  # seconds that a member speaks for itself while its disk holds it, as `presence` does


class Violation(BaseException):
    """The protocol broke a promise."""


class RudeCaller(Exception):
    """What a caller's callback raised: the log must go on as if it had not."""


class Machine:
    """Registers. A command is `KEY VALUE …`, values are unique; one that begins with `!` cannot be applied by anybody."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._name = name
        self.registers: dict[str, str] = {}
        self.index = 0

    def apply(self, index: int, command: bytes) -> bytes:
        if index <= self.index:
            self._world.violated(f"{self._name} applied entry {index} after entry {self.index}")
        self._world.rules.applied(index, command, self._name)
        if command.startswith(b"!"):
            raise ValueError("this cannot be applied")
        self.index = index
        key, _, rest = command.decode().partition(" ")
        self.registers[key] = rest.split(" ")[0]
        return b"%d" % index

    def capture(self) -> Callable[[], Iterable[bytes]]:
        copy = dict(self.registers)

        def produce() -> Iterator[bytes]:
            self._take_long()
            for key in sorted(copy):
                yield f"{key} {copy[key]}\n".encode()

        return produce

    def restore(self, index: int, chunks: Iterable[bytes]) -> None:
        self._take_long()
        self.registers = dict(line.split(" ") for chunk in chunks for line in chunk.decode().splitlines())  # type: ignore[misc]
        self.index = index

    def _take_long(self) -> None:
        """As a state of 100 MB does."""
        self._world.hosts[self._name].spent += self._world.bulk


@dataclass
class Promises:
    """What others rely on."""

    stored: int = 0  # acknowledged: all entries up to here
    received: set[str] = field(default_factory=set)  # snapshots of leaders, which may replace what was acknowledged
    vote: tuple[int, str] = (0, "")

    def broken_by(self, core: Any) -> str | None:
        """What a member that came back no longer knows."""
        replaced = core.snapshot is not None and core.snapshot.name in self.received
        if core.last_index < self.stored and not (replaced and core.snapshot.index == core.last_index):
            return f"acknowledged entry {self.stored} and came back with entries up to {core.last_index}"
        term, candidate = self.vote
        if core.term < term or (core.term == term and (core.voted_for or "") != candidate):
            return f"voted for {candidate} in term {term} and came back in term {core.term}, vote {core.voted_for}"
        return None


class Host:
    """See the module's description."""

    def __init__(self, world: World, name: str, founders: tuple[str, ...]) -> None:
        self.world, self.name = world, name
        self.disk = VirtualDirectory(world.rng)
        self.disk.met, self.disk.spend = world.counts, self._disk_worked
        self.founders = founders
        self.core: Any = None
        self.machine: Any = Machine(world, name)
        self.links = VirtualLinks(world, name)
        self.paused_until = 0.0
        self.slow_disk_until = 0.0
        self.skew = 0.0
        self.spent = 0.0  # seconds that what runs now has taken so far
        self._held: tuple[list[str], pb.RaftMessage, float] | None = None
        self.leadership: Leadership | None = None
        self.promises = Promises()

    def clock(self) -> float:
        return self.world.now + self.skew + self.spent

    @staticmethod
    @contextmanager
    def surroundings() -> Iterator[None]:
        """What has to be about while such members run."""
        yield

    # ---- life

    def start(self) -> None:
        self.machine, self.links = Machine(self.world, self.name), VirtualLinks(self.world, self.name)
        try:
            self.core = self._open()
        except Crashed:
            self.crashed()
            return
        except DiskFull:
            self.world.counts["disk too full to start"] += 1
            self.world.after(self.world.rng.uniform(0.1, 1.0), self.restart)
            return
        except Violation:
            raise
        except Exception as error:  # noqa: BLE001 – whatever keeps a member from starting is a finding
            self.world.violated(f"{self.name} cannot start: {type(error).__name__}: {error}")
            return
        self._came_back()

    def _open(self) -> Any:
        world = self.world
        stored = CheckedJournal(self.disk, membership.founding(Member(name, f"{name}:1") for name in self.founders))
        stored.attach(world, self.name)
        core = CheckedCore(
            MemberNode(self.name, f"{self.name}:1"),
            journal=stored,
            snapshots=SnapshotStore(self.disk),
            machine=self.machine,
            links=self.links,
            background=self.background,
            observer=self,
            timings=TIMINGS,
            compaction=COMPACTION,
            clock=self.clock,
            rng=random.Random(world.rng.random()),
            queue_size=1000,
        )
        core.promises, core.counts = self.promises, world.counts
        return core

    def _came_back(self) -> None:
        world = self.world
        self.paused_until, self.spent = max(self.paused_until, world.now + self.spent), 0.0
        broken = self.promises.broken_by(self.core) or self._wrong_members()
        if broken:
            world.violated(f"{self.name} {broken}")
        for other in sorted(world.hosts):
            if other != self.name and self.name in world.hosts[other].links.peers:
                world.network.dial(other, self.name)

    def _wrong_members(self) -> str | None:
        """The newest list of members in the log is in force, before anything is applied again."""
        core = self.core
        base = core.snapshot.configuration if core.snapshot is not None else core.journal.base_configuration
        start = core.snapshot.index if core.snapshot is not None else core.base_index
        found = [membership.decode(command) for command, index, _ in core.journal[1:] if index > start]
        newest = next((known for known in reversed(found) if known is not None), base)
        return None if newest == core.history.current else "came back and does not go by the members in its log"

    def tick(self) -> None:
        if self.core is None or self.paused_until > self.world.now:
            return
        self.spent = 0.0
        try:
            self.core.tick(0)
        except Crashed:
            self.crashed()
        except Violation:
            raise
        except RudeCaller:
            self.world.counts["a caller raised"] += 1
        except Exception as error:  # noqa: BLE001 – whatever stops a member is a finding
            self.world.violated(f"{self.name} stopped: {type(error).__name__}: {error}")
        else:
            if self.disk.stopped_before is not None:
                self.crashed()  # whoever caught that: the process is gone
        if self.spent:
            self.paused_until = max(self.paused_until, self.world.now + self.spent)

    def crashed(self) -> None:
        """The member is gone; its disk is what is left."""
        world = self.world
        power = world.options.power_loss and world.rng.random() < 0.5
        world.counts["power loss" if power else "kill -9"] += 1
        self.core, self.spent, self._held = None, 0.0, None
        self.links = VirtualLinks(world, self.name)
        self.disk.crash(power=power)
        for other in sorted(world.hosts):
            world.network.up.discard((self.name, other))
            world.network.reset(other, self.name)
        world.after(world.rng.uniform(0.1, 2.0), self.restart)

    def restart(self) -> None:
        if self.core is None and self.name in self.world.hosts:
            self.start()

    def keep_whole_log(self) -> None:
        """From now on nothing is so far behind that it needs a snapshot."""
        self.core.compaction = replace(COMPACTION, entries=1 << 30)

    # ---- messages

    @staticmethod
    def encode(message: pb.RaftMessage) -> Bytes:
        return [frame.SerializeToString() for frame in framing.frames([message])]

    def deliver(self, source: str, data: Bytes) -> None:
        reassembly = framing.Reassembly()
        messages = [message for piece in data for message in reassembly.add(pb.RaftFrame.FromString(piece))]
        for message in messages:
            self.links.post(self.core.message_received, source, message)

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

    def receive_hostile(self, source: str) -> None:
        """Bytes of somebody who wants them to run: as a frame, as a message in a frame, as a snapshot."""
        for pieces in ([BOMB], [pb.RaftFrame(fragment=BOMB).SerializeToString()]):
            try:
                self.deliver(source, pieces)
            except (DecodeError, InvalidArgument):
                self.world.counts["hostile bytes refused"] += 1
            except Exception as error:  # noqa: BLE001 – what else bytes can bring about is a finding
                self.world.ran_no_code()
                self.world.violated(f"{self.name} met hostile bytes: {type(error).__name__}: {error}")
        try:
            with self.core.snapshots.receive(file_name(1 << 40, 1)) as incoming:
                incoming.add(BOMB)
                incoming.finish()
        except (SnapshotDamaged, DiskFull):
            self.world.counts["hostile bytes refused"] += 1
        except Crashed:
            self.crashed()

    # ---- Background

    def background(self, work: Callable[[], Any], done: Callable[[Any, Exception | None], None]) -> None:
        life = self.links

        def run() -> None:
            if self.links is not life or self.core is None:
                return
            before, self.spent = self.spent, 0.0
            result, failure = None, None
            try:
                result = work()
            except Crashed:
                self.crashed()
                return
            except Violation:
                raise
            except Exception as error:  # noqa: BLE001 – as the real background does
                failure = error
            took, self.spent = self.spent, before
            self.world.after(took, lambda: life.post(done, result, failure))

        self.world.after(self.world.rng.uniform(0.0, 0.4), run)

    def _disk_worked(self, operation: str) -> None:
        if self.slow_disk_until > self.world.now:
            self.spent += self.world.rng.uniform(0.0, 0.4 if operation.startswith("sync") else 0.005)

    # ---- Observer

    def leadership_changed(self, leadership: Leadership) -> None:
        self.leadership = leadership

    def disk_begins(self, peers: list[str], message: pb.RaftMessage) -> None:
        self._held = peers, message, self.spent

    def disk_ended(self) -> None:
        """`presence` has spoken for the tick thread meanwhile, on a thread of its own."""
        if self._held is None:
            return
        (peers, message, since), self._held = self._held, None
        said = since + TIMINGS.heartbeat
        while said < min(self.spent, since + _PATIENCE):
            self.world.counts["presence on a slow disk"] += 1
            for peer in peers:
                self.world.network.send(self.name, peer, self.encode(message), said)
            said += TIMINGS.heartbeat

    def configuration_changed(self, configuration: pb.RaftConfiguration) -> None:
        """Not needed here."""


class CheckedJournal(Journal):
    """Reports each entry that enters a log: equal (index, term) must mean equal command and equal predecessor."""

    _world: World | None = None

    def attach(self, world: World, name: str) -> None:
        self._world, self._name = world, name

    def add(self, command: bytes, idx: int, term: int) -> None:
        if self._world is not None:
            new = self._world.rules.logged(self._name, idx, term, command, self[-1][2])
            configuration = membership.decode(command)
            if new and configuration is not None:
                self._world.rules.change_begun(self._name, idx, configuration)
        super().add(command, idx, term)


class CheckedCore(Core):
    """Remembers what the member promised to others, which no crash may take back."""

    promises: Promises
    counts: Any

    def send_message(self, node_id: str, message: pb.RaftMessage) -> bool:
        sent = super().send_message(node_id, message)
        answer, vote = message.append_response, message.vote
        if answer.success:
            self.promises.stored = max(self.promises.stored, answer.match_index)
        if vote.granted and not vote.prevote:
            self.promises.vote = (vote.term, node_id)
        return sent

    def _compact(self, snapshot: Snapshot) -> None:
        self.counts["snapshot taken"] += 1
        super()._compact(snapshot)

    def _installed(self, snapshot: Snapshot) -> None:
        self.counts["snapshot installed"] += 1
        super()._installed(snapshot)
        self.promises.stored = min(self.promises.stored, self.last_index)

    def log_truncated(self, index: int) -> None:
        self.counts["entries truncated"] += 1
        self.promises.stored = min(self.promises.stored, index - 1)
        super().log_truncated(index)
