"""What a member of the log is told at its start.

`Timings` holds every wait of the protocol in seconds; the defaults suit a Python process on a host that has other things
to do. They were chosen by measurement (docs/raft.md): a killed leader is noticed by its closed connection, long before the
election timeout, so that the timeout may be generous enough for two busy cores.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from swarm.clock import Clock, SystemClock
from swarm.identity import TlsMaterial

from orchestrator.consensus import Member

MAX_COMMAND_BYTES = 32 << 20  # a larger entry would hold up everything behind it


@dataclass(frozen=True)
class Timings:
    """Seconds."""

    heartbeat: float = 0.1  # each costs a member about 1 ms of CPU
    election_min: float = 0.35
    election_max: float = 0.60
    # After the leader's connection broke (its process died, most likely): wait this long, at random, then ask for votes.
    lost_leader_min: float = 0.02
    lost_leader_max: float = 0.12
    # A leader that a majority has not answered for this long stops leading. Longer than the others take to elect: their
    # event loops may be busy, and until then it neither commits nor answers reads anyway.
    quorum: float = 0.8
    # After losing leadership, how long a proposal in the log may still learn what became of it.
    afterlife: float = 1.0

    def __post_init__(self) -> None:
        if not self.heartbeat * 3 < self.election_min < self.election_max:
            raise ValueError("the election timeout must be longer than three heartbeats, and a range")


@dataclass(frozen=True)
class CompactionPolicy:
    """When the log is replaced by a snapshot, and how much of it stays for members that are behind: a little for those that
    may come back, and more for those that are connected. Without the latter a member that installs a large snapshot while
    the log moves on would need another one at its end, and never arrive."""

    entries: int = 40_000
    bytes: int = 16 << 20
    keep_entries: int = 4_000
    keep_bytes: int = 4 << 20
    catch_up_entries: int = 160_000  # of the whole log
    catch_up_bytes: int = 64 << 20

    def is_due(self, entries: int, bytes_: int) -> bool:
        """Whether so much new log is worth a snapshot: it costs as much as the state is large, so that a few large entries
        wait for one another."""
        return (
            entries >= self.entries
            or (bytes_ >= self.bytes and entries >= self.entries // 20)
            or bytes_ >= self.catch_up_bytes
        )


@dataclass(frozen=True)
class RaftConfig:
    """`initial_members` counts only where the state directory is empty: (self,) founds a cluster, () waits to be added to
    one (see `admission.join_cluster`). What the directory says wins otherwise."""

    state_directory: Path
    member: Member
    tls: Callable[[], TlsMaterial]
    initial_members: tuple[Member, ...] = ()
    data_key: Path | None = None  # file of the key that seals what is stored; made where it is missing
    timings: Timings = field(default_factory=Timings)
    compaction: CompactionPolicy = field(default_factory=CompactionPolicy)
    clock: Clock = field(default_factory=SystemClock)
    rng: random.Random = field(default_factory=random.Random)
    feature_level: int = 1  # what this member's program supports, told to who asks
    required_level: Callable[[], int] = lambda: 1  # what a new member must support
    queue_size: int = 20_000  # proposals waiting for the tick thread
