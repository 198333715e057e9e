"""A cluster under one virtual clock: simulated disks, links and clients, faults drawn from one seed.

After every step the rules of the protocol are checked. At the end everything heals: the members must agree, nothing may be
lost, the history that the clients saw must be linearizable; and while all is well but for one member that is away, its
return deposes nobody. `run(seed)` raises `Violation`, whose text names the seed that replays it.
"""

from __future__ import annotations

import heapq
import logging
import os
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from orchestrator.raft import framing, journal, membership
from orchestrator.raft.engine import Role
from tests.simulation.raft.clients import Clients
from tests.simulation.raft.faults import Faults
from tests.simulation.raft.hosts import Host, Violation
from tests.simulation.raft.network import Network, bomb_went_off
from tests.simulation.raft.rules import Rules
from tests.support.linearizability import Operation, violations

__all__ = ["Options", "Violation", "World", "run"]

STEP = 0.015  # seconds of virtual time
_LATE = 150  # steps after which the last message has come
_AWAY = 100  # steps for which a member is cut off while all else is well
_BACK = 70  # steps after its return
_STORED = 200  # steps after which every snapshot that was begun is stored
_LOST_WRITES = 100
_CATCH_UP = 100  # steps within which a former leader has caught up
_LARGE_STATE = 2.0  # seconds


@dataclass(frozen=True)
class Options:
    """What a run is about."""

    members: int = 3
    change_members: bool = False
    rough_links: bool = (
        True  # messages may be lost, doubled and out of order on a link that stays up: TCP does none of that
    )
    power_loss: bool = True
    rude_callers: bool = True  # callbacks that raise, commands that cannot be applied
    hostile_bytes: bool = True
    host: type[Host] = Host


@dataclass(order=True)
class _Event:
    due: float
    number: int
    action: Callable[[], None] = field(compare=False)


class World:
    """See the module's description."""

    def __init__(self, seed: int, options: Options) -> None:
        self.seed, self.options = seed, options
        self.rng = random.Random(seed)
        self.now = 1000.0
        self.counts: Counter[str] = Counter()
        self.bulk = 0.0  # seconds that a snapshot takes to write or to read
        self.hosts: dict[str, Host] = {}
        self.rules = Rules(self)
        self.clients = Clients(self)
        self.network = Network(self)
        self._events: list[_Event] = []
        self._event_number = 0
        self._trace: deque[str] = deque(maxlen=30)
        self.faults = Faults(self, [f"m{number}" for number in range(options.members, options.members + 12)])
        founders = tuple(f"m{number}" for number in range(options.members))
        for name in founders:
            self.hosts[name] = self.new_host(name, founders)
        for host in list(self.hosts.values()):
            host.start()

    def new_host(self, name: str, founders: tuple[str, ...]) -> Host:
        return self.options.host(self, name, founders)

    @property
    def history(self) -> list[Operation]:
        return self.clients.history

    def violated(self, what: str) -> None:
        trace = "\n  ".join(self._trace)
        raise Violation(f"seed {self.seed}, {self.now - 1000:.2f} s: {what}\n  {trace}")

    def note(self, what: str) -> None:
        self._trace.append(f"{self.now - 1000:8.3f} {what}")

    def leader(self) -> Host | None:
        """One of those who believe to lead."""
        leading = [host for host in self.hosts.values() if host.core is not None and host.core.role is Role.LEADER]
        return self.rng.choice(sorted(leading, key=lambda host: host.name)) if leading else None

    # ---- time

    def at(self, due: float, action: Callable[[], None]) -> None:
        self._event_number += 1
        heapq.heappush(self._events, _Event(due, self._event_number, action))

    def after(self, delay: float, action: Callable[[], None]) -> None:
        self.at(self.now + delay, action)

    def step(self, *, faults: bool, clients: bool = True) -> None:
        self.now += STEP
        if faults:
            self.faults.draw()
        if clients:
            self.clients.draw()
        while self._events and self._events[0].due <= self.now:
            heapq.heappop(self._events).action()
        for name in sorted(self.hosts):
            self.hosts[name].tick()
        self.ran_no_code()
        self.rules.check()

    def ran_no_code(self) -> None:
        if bomb_went_off():
            self.violated("bytes that came from a peer ran as code")

    # ---- a whole run

    def run(self, steps: int) -> None:
        for _ in range(60):
            self.step(faults=False)
        for _ in range(steps):
            self.step(faults=True)
        self.settle()
        self.rules.judge()
        self._go_away_and_come_back()
        self._depose_and_catch_up()
        for sentence in violations(self.history):
            self.violated(sentence)

    def settle(self) -> None:
        self.network.heal_all()
        self.faults.ended, self.bulk = True, 0.0
        for host in self.hosts.values():
            host.disk.fail_after(None)
            host.disk.capacity = 1 << 60
            host.paused_until = host.slow_disk_until = 0.0
        for number in range(1500):
            self.step(faults=False)
            if number > _LATE and self._agreed():
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
        leading = [host.core for host in self.hosts.values() if host.core.role is Role.LEADER]
        if len(leading) != 1 or not leading[0]._is_ready():
            return False
        inside = [self.hosts[m.node_id].core for m in leading[0].history.current.members]
        return (
            len(self.rules.acknowledged) > 0
            and all(core.applied_index() == leading[0].commit_index for core in inside)
            and leading[0].commit_index == leading[0].last_index
        )

    def _go_away_and_come_back(self) -> None:
        """All is well, the state is large and a snapshot of it is taken, one follower is cut off and comes back: whoever
        leads goes on to lead."""
        leader = next(host for host in self.hosts.values() if host.core.role is Role.LEADER)
        voters = membership.voters(leader.core.history.current)
        if len(voters) < 3:
            return
        self.bulk = _LARGE_STATE
        term, away = leader.core.term, self.rng.choice(sorted(voters - {leader.name}))
        still_heard = self.rng.random() < 0.5
        self.counts["return of a member"] += 1
        leader.links.post(_take_snapshot, leader.core)
        for other in sorted(self.hosts):
            if other != away:
                self.network.cut(other, away, both=not still_heard)
        for number in range(_AWAY + _BACK):
            if number == _AWAY:
                self.network.heal_all()
            self.step(faults=False)
            if leader.core.role is not Role.LEADER or leader.core.term != term:
                self.violated(
                    f"{leader.name} led with a majority at its side and was deposed when {away} was cut off or came back"
                )

    def _depose_and_catch_up(self) -> None:
        """A leader is cut off with entries that nobody else gets. When it is back it soon holds the log of its successor."""
        for host in self.hosts.values():
            host.keep_whole_log()
        for _ in range(_STORED):
            self.step(faults=False)
        former = next(host for host in self.hosts.values() if host.core.role is Role.LEADER)
        if len(membership.voters(former.core.history.current)) < 3:
            return
        self.counts["return of a leader"] += 1
        for other in sorted(self.hosts):
            if other != former.name:
                self.network.cut(other, former.name, both=True)
        for _ in range(_LOST_WRITES):
            self.clients.write(former)
        for _ in range(_AWAY):
            self.step(faults=False)
        self.network.heal_all()
        leader = next((host for host in self.hosts.values() if host.core.role is Role.LEADER), former)
        wanted = leader.core.commit_index
        for _ in range(_CATCH_UP):
            self.step(faults=False)
            if former.core.applied_index() >= wanted:
                return
        self.violated(
            f"{former.name} led, was cut off, came back, and holds entries up to {former.core.applied_index()} of {wanted}"
        )


def _take_snapshot(core: Any) -> None:
    if core.applied_index() > core.base_index:
        core.take_snapshot()


def _no_fork() -> int:
    raise Violation("the process of a member forked")


@contextmanager
def _silence() -> Iterator[None]:
    """A run logs thousands of warnings, which say nothing to anybody."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def small_scale() -> Iterator[None]:
    """Segments and frames so small that a run starts many of them; and what nobody may do."""
    with (
        _silence(),
        mock.patch.multiple(journal, SEGMENT_BYTES=8192, ALLOCATION_STEP=4096, _SMALL_SEGMENT=1024),
        mock.patch.object(framing, "FRAME_BYTES", 256),
        mock.patch.object(os, "fork", _no_fork),
    ):
        yield


def run(seed: int, *, steps: int = 3000, **options: Any) -> World:
    """One run. Raises Violation."""
    chosen = Options(**options)
    with small_scale(), chosen.host.surroundings():
        world = World(seed, chosen)
        world.run(steps)
    return world
