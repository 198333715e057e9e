"""Whom an agent still takes for a manager."""

from __future__ import annotations

import pytest
from swarm.identity import JOINING_GRACE, Peer, Role

from agent.node.callers import is_stranger


@pytest.mark.parametrize(
    ("role", "managers", "age", "turned_away"),
    [
        (Role.MANAGER, {"m1", "m2"}, 1000.0, False),
        (Role.MANAGER, {"m2"}, 1000.0, True),  # it was one once
        (Role.MANAGER, {"m2"}, JOINING_GRACE / 2, False),  # it may have just become one
        (Role.MANAGER, set(), 1000.0, False),  # nobody has said yet who they are
        (Role.ADMIN, {"m2"}, 1000.0, False),  # the table of roles says what others may
    ],
)
def test_a_manager_that_is_none_any_more_is_turned_away(
    role: Role, managers: set[str], age: float, turned_away: bool
) -> None:
    now = 1e9
    assert is_stranger(Peer("m1", role, "c", issued_at=now - age), managers, now) is turned_away
