"""Which nodes are alive: the leader's judgement, as a pure state machine over heard signs of life.

Every node beats once a period; the leader hears it directly or through the manager that holds the node's session. A node
that was silent for `MISSED_PERIODS` periods is down. Silence only counts while the leader itself could hear:

* a new leader gives every node a full allowance before it judges, and a further grace to find another manager, except to
  the node of the leader before it, whose silence is what one expects;
* the nodes behind a manager that went away get the same grace;
* where the judge itself was not run for a while (a stopped or starved process), that time is nobody's silence.

Times are monotonic seconds, handed in.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

MINIMUM_PERIOD = 1.0  # seconds
MAXIMUM_PERIOD = 60.0
MAXIMUM_BEATS_PER_SECOND = 200.0  # of all nodes together
MISSED_PERIODS = 3
# How long an agent may need to notice a silent manager (keepalive: 3.5 s) and to open a session with another one.
RECONNECT_GRACE = 5.0
# A judge that comes later than this many of its own ticks was not running: it cannot tell silence from its own absence.
LATE_TICKS = 3.0


def heartbeat_period(nodes: int, configured: float = 0.0) -> float:
    """The period in seconds at which each of `nodes` nodes beats, in steps of half a second, so that it seldom changes.
    `configured` may make it longer, and never so short that all together are more than 200 a second."""
    needed = math.ceil(nodes / MAXIMUM_BEATS_PER_SECOND * 2) / 2
    return min(MAXIMUM_PERIOD, max(MINIMUM_PERIOD, configured, needed))


def judge_tick(period: float) -> float:
    """How often to judge, and how often a follower relays whom it heard: a quarter of a period."""
    return min(period, 4.0) / 4


@dataclass
class Liveness:
    """The leader's knowledge of who was heard when."""

    period: float
    started: float  # when this leader began to judge
    _deadlines: dict[str, float] = field(default_factory=dict)
    _via: dict[str, str] = field(default_factory=dict)
    _lost: set[str] = field(default_factory=set)  # managers whose nodes have got their grace
    _judged: float | None = None

    @property
    def allowance(self) -> float:
        return MISSED_PERIODS * self.period

    def expect(self, node_ids: Iterable[str], *, suspects: Collection[str] = ()) -> None:
        """At the start of a leadership: `node_ids` were alive, as far as the store says. `suspects` get no grace."""
        for node_id in node_ids:
            grace = 0.0 if node_id in suspects else RECONNECT_GRACE
            self._deadlines.setdefault(node_id, self.started + self.allowance + grace)

    def heard(self, node_id: str, now: float, via: str = "") -> None:
        """A sign of life from `node_id`, through the manager `via` (empty: this one)."""
        self._deadlines[node_id] = now + self.allowance
        self._via[node_id] = via
        self._lost.discard(via)

    def manager_lost(self, manager_id: str, now: float) -> None:
        """The connection to a follower broke: its nodes may need to find another manager first. The follower's own node
        gets nothing extra, its silence is what one expects. Once only, until the manager is heard again."""
        if manager_id in self._lost:
            return
        self._lost.add(manager_id)
        for node_id, via in self._via.items():
            if via == manager_id and node_id != manager_id and node_id in self._deadlines:
                extended = now + self.allowance + RECONNECT_GRACE
                self._deadlines[node_id] = max(self._deadlines[node_id], extended)

    def known(self) -> list[str]:
        """The nodes that are judged."""
        return list(self._deadlines)

    def forget(self, node_id: str) -> None:
        """The node is no longer part of the swarm."""
        self._deadlines.pop(node_id, None)
        self._via.pop(node_id, None)

    def change_period(self, period: float, now: float) -> None:
        """From now on nodes beat at `period`. Nobody is called down for having beaten at the old one."""
        longer = MISSED_PERIODS * max(period, self.period)
        self.period = period
        for node_id, deadline in self._deadlines.items():
            self._deadlines[node_id] = max(deadline, now + longer)

    def judge(self, now: float) -> list[str]:
        """The nodes whose allowance ended since the last call, each named once until it is heard again."""
        if self._judged is not None:
            absence = now - self._judged - LATE_TICKS * judge_tick(self.period)
            if absence > 0:
                self._deadlines = {node_id: at + absence for node_id, at in self._deadlines.items()}
        self._judged = now
        down = [node_id for node_id, deadline in self._deadlines.items() if deadline <= now]
        for node_id in down:
            self.forget(node_id)
        return sorted(down)


LEADERLESS_PERIODS = 2.0  # of silence after which a manager counts itself as cut off; nodes are called down after three
LEADERLESS_CHECKS = 8  # a period


@dataclass
class LeaderContact:
    """A follower's view of its leader: when it was heard, and whether that is too long ago."""

    _heard: float = -math.inf
    _checked: float | None = None

    def heard(self, now: float) -> None:
        self._heard = max(self._heard, now)

    def is_fresh(self, now: float, period: float) -> bool:
        """Whether the leader was heard within the last two heartbeat periods."""
        return now - self._heard <= LEADERLESS_PERIODS * period

    def check(self, now: float, period: float) -> bool:
        """As `is_fresh`; to be called LEADERLESS_CHECKS times a period. A call that comes late tells that this process did
        not run, so that it could not have heard the leader: that time does not count."""
        tick = period / LEADERLESS_CHECKS
        if self._checked is not None and now - self._checked > LATE_TICKS * tick:
            self._heard += now - self._checked - tick
        self._checked = now
        return self.is_fresh(now, period)
