"""Many seeds through the simulated cluster; each must keep every promise. A failure names the seed that replays it.

`SWARM_RAFT_SEEDS` sets the number of seeds (150 where CI is set), pytest's summary tells which faults they met, and
`./dev soak` runs on.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import pytest

from tests.simulation.raft import world

SEEDS = int(os.environ.get("SWARM_RAFT_SEEDS", "150" if os.environ.get("CI") else "45"))
GROUP = 5
STEPS = 3000

# What a run of all seeds must have met, or the faults are not what this test believes.
KINDS = {
    "message delayed", "message dropped", "message duplicated", "message reordered", "message lost in a partition",
    "link reset",
    "partition", "one-way partition", "leader cut off with a minority", "member paused", "clock jump", "hostile bytes refused",
    "kill -9", "power loss", "unsynced write lost", "unsynced write torn", "unsynced change of names lost",
    "stopped before create", "stopped before write", "stopped before allocate", "stopped before truncate",
    "stopped before sync", "stopped before rename", "stopped before remove", "stopped before sync of names",
    "disk full", "disk slow", "presence on a slow disk", "leadership transfer", "return of a member",
    "member added", "member removed", "leader removed", "change withdrawn",
    "state large", "snapshot taken", "snapshot sent", "snapshot installed", "entries truncated",
    "a caller raised", "write that cannot be applied: InternalError",
    "read", "write: Committed", "write: OutcomeUnknown", "write: NotLeader", "write: Unavailable", "write: DiskFull",
}  # fmt: skip


def run_kind(seed: int, steps: int = STEPS) -> Counter[str]:
    """Three members, five members, and changing members take turns."""
    kind = seed % 3
    return world.run(seed, members=5 if kind == 1 else 3, steps=steps, change_members=kind == 2).counts


@pytest.mark.parametrize("first", range(0, SEEDS, GROUP))
def test_every_promise_holds_under_faults(first: int, record_property: Callable[[str, object], None]) -> None:
    met: Counter[str] = Counter()
    for seed in range(first, first + GROUP):
        met.update(run_kind(seed))
    record_property("raft", {"seeds": GROUP, **met})
    assert met["write: Committed"] > 0


@pytest.mark.parametrize("seed", [6071, 11569])
def test_seeds_that_found_a_defect_in_the_soak(seed: int) -> None:
    """6071: the entry that removed the last other voter was committed before it was synced, told to a learner, and lost.
    11569: the log was shortened again and again while a member installed a snapshot, which then needed the next one."""
    run_kind(seed)


def test_the_faults_happen() -> None:
    met: Counter[str] = Counter()
    for seed in range(1000, 1040):
        met.update(run_kind(seed, 1500))
    assert KINDS - set(met) == set()


def test_a_seed_replays() -> None:
    first, again = (world.run(7, steps=600) for _ in range(2))
    assert first.history == again.history
    assert first.counts == again.counts
