"""What must hold after every step: one leader a term, log matching, leader completeness, equal applied entries, true beliefs
of leaders about their followers, no vote for who has nothing; and at the end, that nothing acknowledged is lost.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from swarm.v1 import raft_pb2 as pb

from orchestrator.raft import membership
from orchestrator.raft.engine import Role

if TYPE_CHECKING:
    from tests.simulation.raft.world import World

_MAY_LACK = 128  # entries that a learner may be behind when it gets its vote: twice what the leader allows


class Rules:
    """See the module's description."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._log_matching: dict[tuple[int, int], tuple[bytes, int]] = {}
        self._applied: dict[int, bytes] = {}
        self._committed: dict[int, tuple[int, bytes]] = {}
        self._committed_in: dict[int, int] = {}  # the term in which it was first seen committed
        self._commit_seen: dict[str, int] = defaultdict(int)
        self._leaders: dict[int, str] = {}
        self._complete_checked: dict[int, str] = {}
        self.acknowledged: dict[bytes, int] = {}
        self.refused: set[bytes] = set()

    # ---- told by the members

    def logged(self, name: str, index: int, term: int, command: bytes, previous_term: int) -> bool:
        """True where nobody had this entry before."""
        known = self._log_matching.setdefault((index, term), (command, previous_term))
        if known != (command, previous_term):
            self._world.violated(f"log matching: {name} has another entry ({index}, term {term}) than others had")
        return known[0] is command

    def change_begun(self, name: str, index: int, configuration: pb.RaftConfiguration) -> None:
        """A leader begins a change: nobody gets a vote before it holds the log, or it could take the quorum away."""
        before = self._world.hosts[name].core.history.current
        for voter in sorted(membership.voters(configuration) - membership.voters(before)):
            host = self._world.hosts.get(voter)
            stored = host.promises.stored if host is not None else 0
            if stored == 0 or stored + _MAY_LACK < index:
                self._world.violated(f"{voter} gets a vote by entry {index} and holds entries up to {stored}")

    def applied(self, index: int, command: bytes, name: str) -> None:
        if self._applied.setdefault(index, command) != command:
            self._world.violated(f"{name} applied another entry {index} than others did")
        if command in self.refused:
            self._world.violated(f"entry {index} was applied, although its client was told that nothing was written")

    # ---- after each step

    def check(self) -> None:
        for name in sorted(self._world.hosts):
            core = self._world.hosts[name].core
            if core is None:
                continue
            if core.role is Role.LEADER:
                self._check_leader(name, core)
            self._check_members(name, core)
            self._check_committed(name, core)

    def _check_members(self, name: str, core: Any) -> None:
        """A member goes by a configuration that its log holds."""
        index, covered = core.history.current_index, core.snapshot.index if core.snapshot is not None else 0
        entry = core.entry(index) if index > max(core.base_index, covered) else None
        if entry is not None and membership.decode(entry[0]) != core.history.current:
            self._world.violated(f"{name} goes by members that entry {index} of its log does not name")

    def _check_leader(self, name: str, core: Any) -> None:
        before = self._leaders.setdefault(core.term, name)
        if before != name:
            self._world.violated(f"election safety: {before} and {name} both lead term {core.term}")
        for node, match in core.match_index.items():
            self._check_match(name, core, node.id, match)

    def _check_match(self, name: str, core: Any, peer: str, match: int) -> None:
        """What a leader believes of a member's log is true, unless a later leader has changed that log since."""
        other = self._world.hosts[peer].core
        if other is None or other.term > core.term or match <= max(other.base_index, core.base_index):
            return
        theirs, ours = other.entry(match), core.entry(match)
        if theirs is None or ours is None or theirs[2] != ours[2]:
            self._world.violated(
                f"{name} leads term {core.term} and believes that {peer} holds its entry {match}: it does not"
            )

    def _check_committed(self, name: str, core: Any) -> None:
        commit = core.commit_index
        start = max(self._commit_seen[name] + 1, core.base_index + 1)
        if commit < self._commit_seen[name]:
            start = core.base_index + 1  # a restart may begin with an older hint
        for index in range(start, commit + 1):
            entry = core.entry(index)
            if entry is None:
                self._world.violated(f"{name} committed entry {index}, which its log does not hold")
                return
            self._committed_in.setdefault(index, core.term)
            if self._committed.setdefault(index, (entry[2], entry[0])) != (entry[2], entry[0]):
                self._world.violated(f"{name} committed another entry {index} than others did")
        self._commit_seen[name] = commit
        if core.role is Role.LEADER and self._world.hosts[name].leadership is not None:
            self._check_complete(name, core)

    def _check_complete(self, name: str, core: Any) -> None:
        """Leader completeness, looked at once per leadership: the leader holds all that was committed in earlier terms
        (an old entry that a later leader commits is not among them)."""
        if self._complete_checked.get(core.term) == name:
            return
        self._complete_checked[core.term] = name
        for index, (term, command) in self._committed.items():
            if index <= core.base_index or self._committed_in[index] >= core.term:
                continue
            entry = core.entry(index)
            if entry is None or (entry[2], entry[0]) != (term, command):
                self._world.violated(
                    f"leader completeness: {name} leads term {core.term} without committed entry {index}"
                )

    # ---- at the end

    def judge(self) -> None:
        world = self._world
        leader = next(h for h in world.hosts.values() if h.core is not None and h.core.role is Role.LEADER)
        for m in leader.core.history.current.members:
            if world.hosts[m.node_id].machine.registers != leader.machine.registers:
                world.violated(f"{m.node_id} and {leader.name} applied the same entries and hold different states")
        for command, index in self.acknowledged.items():
            if self._applied.get(index) != command:
                world.violated(f"the acknowledged write {command[:20]!r} at entry {index} is lost")
        if len(set(self._applied.values())) != len(self._applied):
            world.violated("a command was applied twice")
