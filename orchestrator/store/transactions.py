"""How anything is written: a list of changes becomes one entry of the log.

`commit` runs on the leader only. It gives the entry the proposer's time and, where there is one, the request's id, waits
until the entry is applied here, and turns the result into objects or an error. Nothing is checked before: the rules hold
where entries are applied, in one order for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swarm.clock import Clock, timestamp
from swarm.errors import ResourceExhausted, kind_named
from swarm.v1.store_pb2 import Command, CommandResult

from orchestrator.consensus import Consensus
from orchestrator.store import features
from orchestrator.store.changes import Change, Create, Update, to_action
from orchestrator.store.objects import StoreObject, copy_of, key_of, unwrap_key
from orchestrator.store.store import Store

MAX_ENTRY_BYTES = 1024 * 1024  # of one transaction: `split_changes` cuts larger decisions
DEFAULT_TIMEOUT = 10.0  # seconds


@dataclass(frozen=True)
class Result:
    """Where a transaction was applied, and the objects that it created or updated by `Create` and `Update`, as stored.

    `replayed`: the request id was known; `index` is the first one's, the objects are those that it wrote, as they are now
    (without those that are gone)."""

    index: int
    objects: tuple[StoreObject, ...]
    replayed: bool = False


class Transactions:
    """Commits changes to `store` through `consensus`, on behalf of the manager `proposer` (its node id)."""

    def __init__(self, consensus: Consensus, store: Store, *, proposer: str, clock: Clock) -> None:
        self._consensus = consensus
        self._store = store
        self._proposer = proposer
        self._clock = clock

    async def commit(
        self, changes: Sequence[Change], *, request_id: str = "", timeout: float = DEFAULT_TIMEOUT
    ) -> Result:
        """Commits all of `changes` or none, in `timeout` seconds; exactly once for each `request_id`.

        Raises Conflict (a version moved: read again), AlreadyExists, ResourceExhausted (too large, or no room),
        Unavailable (this manager does not lead: nothing was written), OutcomeUnknown.
        """
        at = timestamp(self._clock.wall())
        level = features.level_of(self._store.snapshot().cluster)
        command = Command(schema=level, request_id=request_id, proposer=self._proposer, at=at)
        command.actions.extend(to_action(change) for change in changes)
        data = command.SerializeToString()
        if len(data) > MAX_ENTRY_BYTES:
            raise ResourceExhausted(
                f"a change of {len(data)} bytes is larger than an entry of the log may be ({MAX_ENTRY_BYTES}); split it"
            )
        committed = await self._consensus.propose(data, timeout=timeout)
        result = CommandResult.FromString(committed.result)
        if result.error_kind:
            raise kind_named(result.error_kind)(result.error)
        if result.replayed:
            return self._replayed(result)
        return Result(result.index, tuple(self._as_stored(changes, result.index)))

    def may_write(self) -> bool:
        """Whether this manager leads and has applied everything that was committed before its term."""
        leadership = self._consensus.leadership()
        return leadership.is_leader and leadership.ready

    async def barrier(self, *, timeout: float) -> int:
        """Waits until everything that was proposed before is applied here or never will be. Raises Unavailable."""
        return await self._consensus.read_barrier(timeout=timeout)

    def _replayed(self, result: CommandResult) -> Result:
        snapshot = self._store.snapshot()
        found = (snapshot.get(*unwrap_key(key)) for key in result.written)
        return Result(result.index, tuple(obj for obj in found if obj is not None), replayed=True)

    def _as_stored(self, changes: Sequence[Change], index: int) -> list[StoreObject]:
        """The written objects. Where another entry has touched one in the meantime, ours with its version."""
        snapshot = self._store.snapshot()
        objects: list[StoreObject] = []
        for change in changes:
            if not isinstance(change, Create | Update):
                continue
            stored = snapshot.get(*key_of(change.object))
            if stored is None or stored.meta.version != index:
                stored = copy_of(change.object)
                stored.meta.version = index
            objects.append(stored)
        return objects
