"""The replicated state of this member: committed entries in, snapshots and watches out.

`apply` and `restore` run on the Raft thread, one at a time. They build the next snapshot beside the current one and then
put it in place with one assignment, so that readers on other threads need no lock and never see half an entry.

A command with a request id is remembered for REQUEST_WINDOW entries: the same id again changes nothing and returns what
the first one wrote. Failed commands are not remembered, since they changed nothing.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable

from swarm.errors import InternalError, SwarmError
from swarm.v1.store_pb2 import Command, CommandResult

from orchestrator.store import features, persistence
from orchestrator.store.changes import from_action
from orchestrator.store.collector import CollectorRelief, paused
from orchestrator.store.objects import Key, key_of, wrap_key
from orchestrator.store.persistence import Request
from orchestrator.store.snapshot import ObjectChange, Snapshot, Stamp, apply_changes
from orchestrator.store.watch import DEFAULT_WATCH_LIMIT, Watch

REQUEST_WINDOW = 100_000  # entries for which a request id is remembered
MAX_REQUESTS = 20_000  # remembered at a time; the oldest go first


class Store:
    """A `consensus.StateMachine`. Everything but `apply`, `capture` and `restore` may be called from any thread."""

    def __init__(self) -> None:
        self._snapshot = Snapshot()
        self._requests: dict[str, Request] = {}
        self._request_order: deque[str] = deque()
        self._watches: set[Watch] = set()
        self._relief = CollectorRelief()
        # Held while a snapshot is published and while a watch begins: no gap between both.
        self._lock = threading.Lock()

    def snapshot(self) -> Snapshot:
        """The newest state. Free."""
        return self._snapshot

    def watch(
        self, *, limit: int = DEFAULT_WATCH_LIMIT, loop: asyncio.AbstractEventLoop | None = None
    ) -> tuple[Snapshot, Watch]:
        """The newest state, and a watch of everything after it, delivered on `loop` (the running one where None)."""
        loop = loop or asyncio.get_running_loop()
        with self._lock:
            watch = Watch(self._snapshot, loop, limit, self._unsubscribe)
            self._watches.add(watch)
            return self._snapshot, watch

    def written_by(self, request_id: str) -> tuple[Key, ...] | None:
        """What the command of `request_id` wrote, None where none is remembered: asked before the checks that a repeated
        request would fail because of its own first success ("the name is taken")."""
        known = self._requests.get(request_id) if request_id else None
        return None if known is None else known.written

    def _unsubscribe(self, watch: Watch) -> None:
        self._watches.discard(watch)

    # -------------------------------------------------------------------------------------------- the replicated log

    def apply(self, index: int, command: bytes) -> bytes:
        """Applies one committed entry; returns a serialised `CommandResult`. Raises InternalError where the entry was written
        by a newer version: such a member must not go on, or it would differ from the others."""
        entry = Command.FromString(command)
        features.check_readable(entry.schema, f"entry {index} of the log")
        self._expire_requests(index)
        known = self._requests.get(entry.request_id) if entry.request_id else None
        if known is not None:
            self._publish(_at_index(self._snapshot, index), ())
            return _result(known.index, written=known.written, replayed=True)
        try:
            changes = [from_action(action) for action in entry.actions]
            snapshot, effects = apply_changes(self._snapshot, changes, Stamp(index, entry.at))
            features.check_cluster(snapshot.cluster)
        except SwarmError as error:
            if isinstance(error, InternalError):
                raise
            self._publish(_at_index(self._snapshot, index), ())
            return _result(index, error=error)
        written: tuple[Key, ...] = ()
        if entry.request_id:
            written = tuple(dict.fromkeys(key_of(effect.new) for effect in effects if effect.new is not None))
            self._remember(Request(entry.request_id, index, written))
        self._publish(snapshot, effects)
        self._relief.wrote(len(effects), snapshot.size)
        return _result(index, written=written)

    def capture(self) -> Callable[[], Iterable[bytes]]:
        """A snapshot of now, to be written later and elsewhere: see `consensus.StateMachine`."""
        snapshot, requests = self._snapshot, tuple(self._requests.values())
        return lambda: persistence.dump(snapshot, requests)

    def restore(self, index: int, chunks: Iterable[bytes]) -> None:
        """Replaces the whole state. Raises InternalError where the snapshot is damaged or newer; then nothing has changed."""
        with paused():
            snapshot, requests = persistence.load(index, chunks)
        self._requests = {request.request_id: request for request in requests}
        self._request_order = deque(self._requests)
        self._publish(snapshot, None)
        self._relief.wrote(snapshot.size(), snapshot.size)

    def _publish(self, snapshot: Snapshot, effects: Iterable[ObjectChange] | None) -> None:
        changes = None if effects is None else tuple(effects)
        with self._lock:
            self._snapshot = snapshot
            if changes is None or changes:
                for watch in tuple(self._watches):
                    watch.publish(snapshot, changes)

    def _remember(self, request: Request) -> None:
        self._requests[request.request_id] = request
        self._request_order.append(request.request_id)

    def _expire_requests(self, index: int) -> None:
        """By index and count, never by time: every member forgets the same at the same entry."""
        order = self._request_order
        while order and (len(order) >= MAX_REQUESTS or self._requests[order[0]].index + REQUEST_WINDOW < index):
            del self._requests[order.popleft()]


def _at_index(snapshot: Snapshot, index: int) -> Snapshot:
    return Snapshot(
        index,
        snapshot.cluster,
        snapshot.nodes,
        snapshot.services,
        snapshot.revisions,
        snapshot.tasks,
        snapshot.networks,
    )


def _result(
    index: int, *, written: tuple[Key, ...] = (), replayed: bool = False, error: SwarmError | None = None
) -> bytes:
    result = CommandResult(schema=features.SUPPORTED, index=index, replayed=replayed)
    result.written.extend(wrap_key(key) for key in written)
    if error is not None:
        result.error_kind, result.error = error.kind, str(error)
    return result.SerializeToString()
