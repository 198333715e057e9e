"""Who should lead, and what is said, when disks are full."""

from __future__ import annotations

import pytest

from orchestrator.raft.room import Voter, obstacle, successor


def voters(states: str) -> list[Voter]:
    """One letter for each of m1, m2, …: well (w), full (f), away (a). The later, the further its log."""
    return [
        Voter(f"m{n}", f"10.0.0.{n}:2378", answers=state != "a", full=state == "f", match_index=n)
        for n, state in enumerate(states, 1)
    ]


@pytest.mark.parametrize(
    ("states", "expected"),
    [("fww", "m3"), ("fwf", None), ("fwa", None), ("f", None), ("fw", None), ("fwwwa", "m4"), ("fwwfa", None)],
)
def test_the_next_leader_has_room_and_a_majority_without_the_first(states: str, expected: str | None) -> None:
    assert successor(voters(states), "m1") == expected


@pytest.mark.parametrize("states", ["www", "wwa", "waa", "wwf", "fww"])
def test_nothing_is_in_the_way_where_a_majority_can_write_or_disks_are_not_the_reason(states: str) -> None:
    assert obstacle(voters(states)) == ""


def test_the_full_disks_and_the_absent_managers_are_named_with_the_numbers() -> None:
    assert obstacle(voters("wfa")) == (
        "there is no room on the disk of manager m2 (10.0.0.2:2378), manager m3 (10.0.0.3:2378) cannot be reached: of 3 "
        "managers only 1 could store a write and 2 are needed; free some space there"
    )
    assert "of managers m2 (10.0.0.2:2378) and m3 (10.0.0.3:2378): of 3" in obstacle(voters("wff"))
