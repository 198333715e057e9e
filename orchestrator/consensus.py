"""The contract between the replicated log (`orchestrator.raft`) and what it replicates (`orchestrator.store`).

Bytes in, bytes out: the log knows nothing of services and tasks, the store nothing of terms and elections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol


class StateMachine(Protocol):
    """What committed entries are applied to, in order, each once. Called on the Raft thread: be quick, touch no I/O,
    read no clock, draw no randomness."""

    def apply(self, index: int, command: bytes) -> bytes:
        """Applies one entry and returns its result (the same on every member)."""
        ...

    def capture(self) -> Callable[[], Iterable[bytes]]:
        """A snapshot of now: returns at once (copy on write); the returned function yields its bytes in chunks of at most
        1 MiB and may run on another thread, while entries go on being applied."""
        ...

    def restore(self, index: int, chunks: Iterable[bytes]) -> None:
        """Replaces the whole state by a snapshot taken at `index`. Raises InternalError where it is damaged."""
        ...


@dataclass(frozen=True)
class Member:
    """A manager as the log knows it. Its id is its node id and never changes; its address (HOST:PORT) may."""

    node_id: str
    address: str


@dataclass(frozen=True)
class Committed:
    """Where an entry was committed, and what applying it returned."""

    index: int
    result: bytes


@dataclass(frozen=True)
class Leadership:
    """Who leads, as this member knows it. `ready` is set once this member leads, has applied everything committed before
    its term, and may therefore act."""

    term: int
    leader_id: str  # empty: nobody known
    is_leader: bool
    ready: bool


@dataclass(frozen=True)
class MemberStatus:
    member: Member
    reachable: bool
    leader: bool
    match_index: int
    learner: bool = False


@dataclass(frozen=True)
class ConsensusStatus:
    role: str  # leader, follower, candidate
    term: int
    leader_id: str
    commit_index: int
    applied_index: int
    members: tuple[MemberStatus, ...]


class Consensus(Protocol):
    """A member of the replicated log, as the asyncio side of the manager sees it. All methods are called on the event
    loop that `start` ran on; callbacks are delivered there too."""

    async def start(self) -> None:
        """Loads the journal and snapshot, restores the state machine, begins to take part."""
        ...

    async def stop(self, *, transfer: bool = True) -> None:
        """Leaves the tick loop; a leader first hands leadership over, where `transfer` is set and somebody can take it."""
        ...

    async def propose(self, command: bytes, *, timeout: float) -> Committed:
        """Commits `command` on this leader. Raises Unavailable where this member does not lead (nothing was written),
        ResourceExhausted where the disk or the queue is full, OutcomeUnknown where the deadline or the leadership ended
        first."""
        ...

    async def read_barrier(self, *, timeout: float) -> int:
        """Confirms leadership with a majority and waits until everything committed before the call is applied here; returns
        that index. A snapshot of the store taken afterwards is linearizable. Raises Unavailable."""
        ...

    def leadership(self) -> Leadership: ...

    def on_leadership(self, callback: Callable[[Leadership], None]) -> None:
        """`callback` is called at each change of `leadership()`."""
        ...

    def status(self) -> ConsensusStatus: ...

    async def add_member(self, member: Member, *, timeout: float) -> None:
        """Adds a member, or changes a member's address; on the leader. Returns once committed. Raises Unavailable,
        FailedPrecondition (another change is under way, or it would not keep a quorum)."""
        ...

    async def remove_member(self, node_id: str, *, timeout: float) -> None:
        """Removes a member, also the leader itself; on the leader. As `add_member`."""
        ...

    async def transfer_leadership(self, node_id: str | None, *, timeout: float) -> None:
        """Hands leadership to a member (any that has caught up where None)."""
        ...
