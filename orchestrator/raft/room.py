"""What full disks mean for the leadership. Pure: the leader's core keeps the facts and acts.

A write needs room on a majority of the voters' disks. A leader that cannot store a write itself hands over to a voter that
can, where a majority without it has room: until then the writes that came wait, and their callers ask the next leader. Where
so many disks are full, or so many other members away, that no majority could store a write, it is refused at once, with the
names: taken into the log it would only have an unknown outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RETRY = 5.0  # seconds after a hand-over that did not happen


@dataclass(frozen=True)
class Voter:
    """A voter as the leader sees it; the leader itself is one."""

    node_id: str
    address: str
    answers: bool
    full: bool  # it said, or we found, that its disk had no room for what it was given last
    match_index: int = 0

    @property
    def can_write(self) -> bool:
        return self.answers and not self.full


def successor(voters: Sequence[Voter], leader: str) -> str | None:
    """Who should lead in place of `leader`, whose disk is full; None where no write would get through with another one."""
    able = [voter for voter in voters if voter.can_write and voter.node_id != leader]
    if len(able) * 2 <= len(voters):
        return None
    return max(able, key=lambda voter: voter.match_index).node_id


def obstacle(voters: Sequence[Voter]) -> str:
    """Why no majority could store a write now, where that is because of full disks; else nothing."""
    full = [voter for voter in voters if voter.answers and voter.full]
    if not full or sum(voter.can_write for voter in voters) * 2 > len(voters):
        return ""
    away = [voter for voter in voters if not voter.answers]
    also = f", {_named(away)} cannot be reached" if away else ""
    able = sum(voter.can_write for voter in voters)
    return (
        f"there is no room on the disk of {_named(full)}{also}: of {len(voters)} managers only {able} could store a write "
        f"and {len(voters) // 2 + 1} are needed; free some space there"
    )


def _named(voters: Sequence[Voter]) -> str:
    names = " and ".join(f"{voter.node_id} ({voter.address})" for voter in voters)
    return f"manager{'s' if len(voters) > 1 else ''} {names}"
