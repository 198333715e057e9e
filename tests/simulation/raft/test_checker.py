"""The checkers see: each defect that is put back is found, and so is a history that cannot be."""

from __future__ import annotations

import pytest

from tests.simulation.raft import world
from tests.simulation.raft.defects import DEFECTS
from tests.simulation.raft.test_simulation import run_kind
from tests.support.linearizability import Operation, violations

SEEDS = 150
# Where each was found last: begin there, for speed. When the core changes another seed may find it, and the search goes on.
HINTS = {"C": 10, "D": 4, "F": 23, "G": 25, "K": 2, "L": 3}


@pytest.mark.parametrize("letter", sorted(DEFECTS))
def test_a_defect_that_is_put_back_is_found(letter: str) -> None:
    hint = HINTS.get(letter, 0)
    for offset in range(SEEDS):
        seed = (hint + offset) % SEEDS
        with DEFECTS[letter]():
            found = violation(seed)
        if found is not None:
            print(letter, found)
            assert violation(seed) is None  # it is the defect that was found
            return
    pytest.fail(f"{SEEDS} seeds did not find it")


def violation(seed: int) -> str | None:
    try:
        run_kind(seed, 1500)
    except world.Violation as found:
        return str(found).splitlines()[0]
    return None


def write(value: str, called: float, returned: float = float("inf"), *, known: bool = True) -> Operation:
    return Operation("k", "write", value, called, returned, known)


def read(value: str | None, called: float, returned: float) -> Operation:
    return Operation("k", "read", value, called, returned)


def swap(expected: str | None, value: str, called: float, returned: float = float("inf")) -> Operation:
    return Operation("k", "swap", value, called, returned, returned < float("inf"), expected)


@pytest.mark.parametrize(
    "history",
    [
        [],
        [read(None, 0, 1), write("a", 2, 3), read("a", 4, 5)],
        [write("a", 0, 10), read(None, 1, 2), read("a", 3, 4)],
        [write("a", 0, 9), write("b", 1, 8), read("b", 10, 11)],
        [write("a", 0, 9), write("b", 1, 8), read("a", 10, 11)],
        [write("a", 0, known=False), read(None, 1, 2), read("a", 3, 4)],
        [write("a", 0, known=False), write("b", 1, 2), read("b", 3, 4)],
        [swap(None, "a", 0, 9), swap("a", "b", 0, 9), read("b", 10, 11)],
        [write("a", 0, 1), swap("a", "b", 2), swap("a", "c", 3, 4), read("c", 5, 6)],  # b never happened
    ],
)
def test_a_possible_history_is_accepted(history: list[Operation]) -> None:
    assert violations(history) == []


@pytest.mark.parametrize(
    "history",
    [
        [write("a", 0, 1), read(None, 2, 3)],  # a stale read
        [write("a", 0, 1), write("b", 2, 3), read("a", 4, 5)],  # a lost write
        [write("a", 0, 9), read("a", 1, 2), read(None, 3, 4)],  # time runs back
        [read("a", 0, 1), write("a", 2, known=False)],  # read before it was written
        [write("a", 0, 9), write("b", 0, 9), read("a", 10, 11), read("b", 12, 13)],
        [write("a", 0, 1), swap("a", "b", 2, 9), swap("a", "c", 2, 9)],  # both from one
        [write("a", 0, 1), swap("a", "b", 2, 3), read("a", 4, 5)],  # a lost swap
    ],
)
def test_an_impossible_history_is_refused(history: list[Operation]) -> None:
    assert violations(history) != []
