"""The simulated links: they delay, drop, duplicate, reorder and reset, and partitions cut them, also in one direction only.

What travels are bytes, as each kind of member makes and reads them (`Host.encode`, `Host.deliver`). Some come from nobody
that speaks the protocol: a pickle that runs code in whoever unpickles it.
"""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError
from swarm.errors import InvalidArgument
from swarm.v1 import raft_pb2 as pb

from orchestrator.raft.engine import MemberNode
from orchestrator.raft.links import Links
from orchestrator.raft.snapshots import Snapshot

if TYPE_CHECKING:
    from tests.simulation.raft.world import World

Bytes = Sequence[bytes]  # one message, in the pieces that it travels in

_ran: list[str] = []


def _effect() -> None:
    _ran.append("ran")


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return _effect, ()


BOMB = pickle.dumps(_Bomb(), protocol=2)


def bomb_went_off() -> bool:
    """Whether somebody has unpickled `BOMB` since this was asked last."""
    went_off = bool(_ran)
    _ran.clear()
    return went_off


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
        host = self.world.hosts[self.name]
        return self.world.network.send(self.name, node_id, host.encode(message), host.spent)

    def transmit_snapshot(self, node_id: str, snapshot: Snapshot, term: int) -> bool:
        return self.world.network.send_snapshot(self.name, node_id, snapshot, term)


class Network:
    """See the module's description."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.rng
        self._cut: set[tuple[str, str]] = set()
        self._last_due: dict[tuple[str, str], float] = defaultdict(float)
        self._lives: dict[tuple[str, str], int] = defaultdict(int)  # how often a link was broken
        self.up: set[tuple[str, str]] = set()
        self.slow_until: dict[tuple[str, str], float] = {}
        self.copied: dict[tuple[str, str], list[Bytes]] = {}  # links whose messages will come once more, much later
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

    def send(self, source: str, target: str, data: Bytes, later: float = 0.0) -> bool:
        """`later`: seconds until the sender, which is busy with its disk, gets to it."""
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
        delay = later + rng.uniform(0.0005, 0.012)
        if self.slow_until.get((source, target), 0.0) > self._world.now:
            self._world.counts["message delayed"] += 1
            delay += rng.uniform(0, 0.6)
        due = self._world.now + delay
        if chance > 1 - self.rough:
            self._world.counts["message reordered"] += 1
            due += rng.uniform(0, 0.3)
        else:
            due = self._last_due[source, target] = max(due, self._last_due[source, target])
        life = self._lives[source, target]
        self._world.at(due, lambda: self.arrive(source, target, data, life))
        if self.rough < chance < 2 * self.rough:
            self._world.counts["message duplicated"] += 1
            self._world.at(due + rng.uniform(0, 1.0), lambda: self.arrive(source, target, data, life))
        return True

    def arrive(self, source: str, target: str, data: Bytes, life: int | None = None) -> None:
        """`life`: of the link that the message was sent on. Where links are as TCP's, it is lost with that link."""
        host = self._world.hosts.get(target)
        if host is None or host.core is None or (source, target) in self._cut:
            return
        if not self._world.options.rough_links and life != self._lives[source, target]:
            return
        try:
            host.deliver(source, data)
        except (DecodeError, InvalidArgument) as error:
            self._world.violated(f"{target} cannot read what {source} sent: {error}")

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
                host.links.post(host.core.snapshot_transfer_ended, target, term, snapshot.index, arrived)

        self._world.after(self._rng.uniform(0.02, 0.5), deliver)
        return True

    # ---- faults

    def reset(self, one: str, other: str) -> None:
        """Both ends learn of it. What is under way may arrive all the same, but not where links are as TCP's."""
        for source, target in ((one, other), (other, one)):
            if (source, target) in self.up:
                self.up.discard((source, target))
                self._lives[source, target] += 1
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
