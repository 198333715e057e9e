"""`pysyncobj` seen through readable names, and pinned to the version that was audited.

The library is the engine: tick loop, roles, command queue, commit counting. Its state lives in name-mangled attributes;
here, and only here, they get names (`term`, `role`, `election_deadline`…), so that the corrected parts above read like the
protocol. `check_library` refuses any other source than the one that the corrections were written against.

The library asks one global function for the time. `ticking` gives each member a clock of its own, which is also what lets a
simulation run several in one process.
"""

from __future__ import annotations

import enum
import hashlib
import random
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pysyncobj import SyncObj, SyncObjConf
from pysyncobj import syncobj as library
from pysyncobj.node import Node
from swarm.errors import InternalError

from orchestrator.raft.config import Timings
from orchestrator.raft.journal import Entry, Journal, install_in_library

# SHA-256 of the library's files (0.3.17) that hold what is replaced or relied upon.
AUDITED = {
    "syncobj.py": "e8bdf06797085d734df86e24ab4802fe87893dff77268565ec036f7ad4a1cfe4",
    "transport.py": "0c9d89f9c4781ec9772df8011d7975a1a4a1a5f541357e12eae85a813e92b50b",
    "node.py": "e4a3f027cd8291f558334bb9c977e952f6b6989e7e1fa1588d3005ef0b990e2c",
    "fast_queue.py": "8477fe5fdf36d9766df933310d3d66ee953d1afc195b1e6482b3a1498fc517bd",
    "journal.py": "9cf1eaf6acc704581a4cf7d3de330a404403913107adc91c929778b7e3f35edf",
    "config.py": "fbbc7ff9f18e4d15a7fd563376e42f5bd192956879d4b810b056d5248b955698",
}

_current = threading.local()


class Role(enum.IntEnum):
    """The library's numbers."""

    FOLLOWER = 0
    CANDIDATE = 1
    LEADER = 2


_ROLES = tuple(Role)  # an enumeration's own look-up is slow, and the role is asked for often


class MemberNode(Node):  # type: ignore[misc]
    """A member as the library knows it: equal by id; the address is where it is now."""

    def __init__(self, node_id: str, address: str = "") -> None:
        super().__init__(node_id)
        self.address = address
        # A stable hash: sets of members have the same order in every process, so that a simulation's seed replays.
        self._hash = zlib.crc32(node_id.encode())

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MemberNode) and self.id == other.id


def check_library(directory: Path | None = None) -> None:
    """Raises InternalError unless the installed library is the audited one."""
    directory = directory or Path(library.__file__).parent
    for name, digest in AUDITED.items():
        if hashlib.sha256((directory / name).read_bytes()).hexdigest() != digest:
            raise InternalError(
                f"pysyncobj's {name} is not the one of version 0.3.17 that swarmctl corrects; "
                "install pysyncobj==0.3.17 unmodified"
            )


def _now() -> float:
    clock: Callable[[], float] = getattr(_current, "clock", time.monotonic)
    return clock()


@contextmanager
def ticking(clock: Callable[[], float]) -> Iterator[None]:
    """Within, the library reads the time of this member."""
    before = getattr(_current, "clock", time.monotonic)
    _current.clock = clock
    try:
        yield
    finally:
        _current.clock = before


def prepare_library() -> None:
    """Checks the library, and gives it our journal and our clock. Repeating it changes nothing."""
    check_library()
    install_in_library(library)
    library.monotonicTime = _now


class Engine(SyncObj):  # type: ignore[misc]
    """The library's object with its state under readable names. Everything runs on the tick thread."""

    journal: Journal

    def __init__(  # noqa: PLR0917 – handed through by the classes above
        self,
        own: MemberNode,
        journal: Journal,
        transport: Any,
        timings: Timings,
        clock: Callable[[], float],
        rng: random.Random,
        queue_size: int,
    ) -> None:
        prepare_library()
        self.journal = journal
        self.timings = timings
        self.clock = clock
        self.rng = rng
        conf = SyncObjConf(
            autoTick=False,
            journalFile=journal,
            useFork=False,  # defect O: forking aborts in a process that uses gRPC
            dynamicMembershipChange=False,  # our own, see membership.py
            commandsQueueSize=queue_size,
            appendEntriesUseBatch=True,  # sending is eager anyway, see Core._end_of_tick
            appendEntriesPeriod=timings.heartbeat,
            raftMinTimeout=timings.election_min,
            raftMaxTimeout=timings.election_max,
            leaderFallbackTimeout=timings.quorum,  # check-quorum: defect L's cut-off leader
            connectionTimeout=timings.election_max * 10,
            onStateChanged=self._role_changed,
        )
        with ticking(clock):
            super().__init__(own, [], conf, nodeClass=MemberNode, transport=transport)

    def _role_changed(self, old: int, new: int) -> None:
        raise NotImplementedError

    # ---- names for the library's state. The constructor evaluates all properties: each must work at once.

    @property
    def term(self) -> int:
        return int(self._SyncObj__raftCurrentTerm)

    def set_term(self, term: int, voted_for: str | None) -> None:
        self._SyncObj__setCurrentTerm(term, voted_for)

    @property
    def voted_for(self) -> str | None:
        return self._SyncObj__votedForNodeId  # type: ignore[no-any-return]

    @property
    def role(self) -> Role:
        return _ROLES[self._SyncObj__raftState]

    def set_role(self, role: Role) -> None:
        self._SyncObj__setState(int(role))

    @property
    def leader_node(self) -> MemberNode | None:
        return self._SyncObj__raftLeader

    @leader_node.setter
    def leader_node(self, node: MemberNode | None) -> None:
        self._SyncObj__raftLeader = node

    @property
    def own_id(self) -> str:
        return str(self.selfNode.id)

    @property
    def election_deadline(self) -> float:
        return float(self._SyncObj__raftElectionDeadline)

    @election_deadline.setter
    def election_deadline(self, when: float) -> None:
        self._SyncObj__raftElectionDeadline = when

    @property
    def commit_index(self) -> int:
        return int(self._SyncObj__raftCommitIndex)

    def set_commit_index(self, index: int) -> None:
        self._SyncObj__raftCommitIndex = index
        self.journal.setRaftCommitIndex(index)

    def applied_index(self) -> int:
        return int(self._SyncObj__raftLastApplied)

    def set_applied_index(self, index: int) -> None:
        self._SyncObj__raftLastApplied = index

    def own_entry_index(self) -> int | None:
        """The no-op that this leader began its term with."""
        return self._SyncObj__noopIDx  # type: ignore[no-any-return]

    @property
    def voter_nodes(self) -> set[MemberNode]:
        """The other voters."""
        return self._SyncObj__otherNodes  # type: ignore[no-any-return]

    @property
    def learner_nodes(self) -> set[MemberNode]:
        """The other members without a vote (the library calls them read-only)."""
        return self._SyncObj__readonlyNodes  # type: ignore[no-any-return]

    @property
    def connected(self) -> set[MemberNode]:
        return self._SyncObj__connectedNodes  # type: ignore[no-any-return]

    def peers(self) -> list[MemberNode]:
        """All other members, in a fixed order."""
        return sorted(self.voter_nodes | self.learner_nodes, key=lambda node: str(node.id))

    @property
    def next_index(self) -> dict[MemberNode, int]:
        return self._SyncObj__raftNextIndex  # type: ignore[no-any-return]

    @property
    def match_index(self) -> dict[MemberNode, int]:
        return self._SyncObj__raftMatchIndex  # type: ignore[no-any-return]

    @property
    def last_response(self) -> dict[MemberNode, float]:
        return self._SyncObj__lastResponseTime  # type: ignore[no-any-return]

    def waiting(self) -> dict[int, list[tuple[int, Any]]]:
        """Index → (term, proposal): who waits for which entry."""
        return self._SyncObj__commandsWaitingCommit  # type: ignore[no-any-return]

    def command_queue(self) -> Any:
        return self._SyncObj__commandsQueue

    def next_heartbeat(self) -> float:
        return float(self._SyncObj__newAppendEntriesTime)

    def set_next_heartbeat(self, when: float) -> None:
        self._SyncObj__newAppendEntriesTime = when

    # ---- the log

    @property
    def base_index(self) -> int:
        return self.journal[0][1]

    @property
    def last_index(self) -> int:
        return self.journal[-1][1]

    @property
    def last_term(self) -> int:
        return self.journal[-1][2]

    def entry(self, index: int) -> Entry | None:
        """The entry at `index`, where the log holds it."""
        position = index - self.base_index
        return self.journal[position] if 0 <= position < len(self.journal) else None

    def entries(self, first: int, count: int, max_bytes: int) -> list[Entry]:
        """Entries from `first` on: at most `count`, and no more once they exceed `max_bytes`."""
        position, total = first - self.base_index, 0
        found: list[Entry] = []
        for entry in self.journal[position : position + count]:
            found.append(entry)
            total += len(entry[0])
            if total >= max_bytes:
                break
        return found

    # ---- replaced: randomness that was handed in

    def _SyncObj__generateRaftTimeout(self) -> float:
        return self.rng.uniform(self.timings.election_min, self.timings.election_max)
