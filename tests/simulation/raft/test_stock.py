"""The library as shipped, under the same simulation and the same rules: the rules see what it does wrong, and nothing where it
does nothing wrong.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from typing import Any

import pysyncobj.syncobj as library
import pytest
from pysyncobj import SyncObj

from tests.simulation.raft import world
from tests.simulation.raft.stock_host import Registers, StockHost
from tests.support.linearizability import violations

SEEDS = 30
STEPS = 1500
# Links as TCP's, disks that lose nothing, callers that behave, nobody hostile: partitions, pauses, slow and full disks, and
# members that are killed are left.
FRIENDLY = {"rough_links": False, "power_loss": False, "rude_callers": False, "hostile_bytes": False}
SORTS = {
    "an acknowledged entry is gone": r"acknowledged entry \d+ and came back",
    "members differ": r"(applied|committed) another entry|both lead|log matching|leader completeness|hold different states",
    "a leader is deposed for nothing": r"led with a majority at its side and was deposed",
    "an entry is applied twice": r"applied entry (\d+) after entry \1",
    "an entry stops the log": r"stopped: ValueError: this cannot be applied",
    "the disk is not read back": r"cannot start",
    "a peer runs code": r"ran as code",
    "a false belief": r"and believes that",
}


def run(seed: int, **options: Any) -> str | None:
    """What was found first."""
    kind = seed % 3
    try:
        world.run(seed, steps=STEPS, members=5 if kind == 1 else 3, change_members=kind == 2, host=StockHost, **options)
    except world.Violation as violation:
        return str(violation).splitlines()[0]
    return None


def sorts(**options: Any) -> Counter[str]:
    found = [run(seed, **options) for seed in range(SEEDS)]
    sorted_found = Counter(
        next((sort for sort, pattern in SORTS.items() if re.search(pattern, what)), "other") for what in found if what
    )
    print(dict(sorted_found))
    return sorted_found


def test_what_runs_is_the_library_as_shipped() -> None:
    assert Registers.__mro__ == (Registers, SyncObj, object)
    assert {name for name in vars(Registers) if not name.startswith("__")} == {"put", "put_v0"}
    with StockHost.surroundings():
        for method in vars(SyncObj).values():
            if inspect.isfunction(method):
                assert method.__code__.co_filename == library.__file__


def test_everything_at_once_is_too_much_for_it() -> None:
    found = sorts()
    assert found.total() == SEEDS
    assert {
        "an entry is applied twice",
        "an entry stops the log",
        "the disk is not read back",
        "a peer runs code",
    } <= set(found)


def test_it_fails_where_only_links_and_processes_fail() -> None:
    found = sorts(**FRIENDLY)
    assert found.total() > SEEDS * 3 / 4
    assert {"an acknowledged entry is gone", "members differ", "a leader is deposed for nothing"} <= set(found)


@pytest.mark.parametrize("seed", range(6))
def test_where_nothing_fails_it_keeps_its_promises(seed: int) -> None:
    """So what is found above is the library's doing, not that of what it is embedded in."""
    options = world.Options(members=5 if seed % 2 else 3, change_members=True, host=StockHost, **FRIENDLY)
    with world.small_scale(), StockHost.surroundings():
        made = world.World(seed, options)
        for number in range(1000):
            made.step(faults=False)
            if number % 100 == 99:
                made.faults.change_configuration()
        made.settle()
        made.rules.judge()
        leader = made.leader()
        assert leader is not None and leader.core.base_index > 100  # it has compacted its log meanwhile
        assert made.counts["member added"] > 0
        assert violations(made.history) == []
