"""Who belongs to the log (removes defect K, and the membership half of N).

A configuration is a whole list, stored in the log like any entry, in force from the moment it is appended, and taken back
when its entry is truncated. Rules, each checked where a change is begun:

* one change at a time: the next may begin only when the last one is committed, and the leader has committed an entry of its
  own term;
* a change adds, promotes, removes or re-addresses one member, so that the majorities of before and after overlap;
* a new member is a learner first and gets its vote when it has caught up, so that a member that never comes up cannot take
  the quorum away;
* a leader never removes itself: it hands leadership over first (`RaftNode.remove_member`).

Pure functions over `RaftConfiguration`; `History` remembers which entry brought which list.
"""

from __future__ import annotations

from collections.abc import Iterable

from swarm.errors import FailedPrecondition, NotFound
from swarm.v1 import raft_pb2 as pb

from orchestrator.consensus import Member

TYPE = b"\x02"  # the library's command type for membership entries
_MAX_REMEMBERED = 256


def founding(members: Iterable[Member]) -> pb.RaftConfiguration:
    """The configuration that a cluster starts with: all of them voters."""
    return pb.RaftConfiguration(members=[pb.RaftMember(node_id=m.node_id, address=m.address) for m in members])


def encode(configuration: pb.RaftConfiguration) -> bytes:
    """The log's command that puts `configuration` in force."""
    return TYPE + configuration.SerializeToString(deterministic=True)


def decode(command: bytes) -> pb.RaftConfiguration | None:
    """The configuration that a log's command carries, or None for other commands."""
    return pb.RaftConfiguration.FromString(command[1:]) if command[:1] == TYPE else None


def voters(configuration: pb.RaftConfiguration) -> frozenset[str]:
    return frozenset(m.node_id for m in configuration.members if not m.learner)


def member(configuration: pb.RaftConfiguration, node_id: str) -> pb.RaftMember | None:
    return next((m for m in configuration.members if m.node_id == node_id), None)


def with_learner(configuration: pb.RaftConfiguration, new: Member) -> pb.RaftConfiguration:
    """Adds `new` as a learner, or changes the address of a member that is there."""
    changed = pb.RaftConfiguration()
    changed.CopyFrom(configuration)
    present = member(changed, new.node_id)
    if present is not None:
        present.address = new.address
    else:
        changed.members.add(node_id=new.node_id, address=new.address, learner=True)
        kept = [node_id for node_id in changed.removed if node_id != new.node_id]
        del changed.removed[:]
        changed.removed.extend(kept)
    return changed


def with_vote(configuration: pb.RaftConfiguration, node_id: str) -> pb.RaftConfiguration:
    """Gives a learner its vote."""
    changed = pb.RaftConfiguration()
    changed.CopyFrom(configuration)
    present = member(changed, node_id)
    if present is None:
        raise NotFound(f"manager {node_id} is not a member of the log")
    present.learner = False
    return changed


def without(configuration: pb.RaftConfiguration, node_id: str, reachable: frozenset[str]) -> pb.RaftConfiguration:
    """Removes a member. Raises NotFound, and FailedPrecondition where the rest would have no quorum."""
    gone = member(configuration, node_id)
    if gone is None:
        raise NotFound(f"manager {node_id} is not a member of the log")
    changed = pb.RaftConfiguration()
    changed.CopyFrom(configuration)
    del changed.members[:]
    changed.members.extend(m for m in configuration.members if m.node_id != node_id)
    changed.removed.append(node_id)
    del changed.removed[:-_MAX_REMEMBERED]
    if not gone.learner:
        rest = voters(changed)
        alive = len(rest & reachable)
        if not rest:
            raise FailedPrecondition(f"manager {node_id} is the last one; a swarm cannot be without a manager")
        if alive <= len(rest) // 2:
            raise FailedPrecondition(
                f"without manager {node_id} there would be {len(rest)} managers, of which {alive} can be reached and "
                f"{len(rest) // 2 + 1} are needed; bring others back first"
            )
    return changed


class History:
    """The configurations of the log's entries, oldest first; the last one is in force."""

    def __init__(self, base_index: int, base: pb.RaftConfiguration) -> None:
        self._known: list[tuple[int, pb.RaftConfiguration]] = [(base_index, base)]

    @property
    def current(self) -> pb.RaftConfiguration:
        return self._known[-1][1]

    @property
    def current_index(self) -> int:
        """The entry that brought the configuration in force."""
        return self._known[-1][0]

    def at(self, index: int) -> pb.RaftConfiguration:
        """What was in force at entry `index`."""
        return next(
            (configuration for brought, configuration in reversed(self._known) if brought <= index), self._known[0][1]
        )

    def appended(self, index: int, configuration: pb.RaftConfiguration) -> None:
        self._known.append((index, configuration))

    def truncated(self, index: int) -> None:
        """Entries from `index` on are gone."""
        while len(self._known) > 1 and self._known[-1][0] >= index:
            self._known.pop()

    def compacted(self, index: int) -> None:
        """Entries up to `index` are in a snapshot."""
        while len(self._known) > 1 and self._known[1][0] <= index:
            self._known.pop(0)
