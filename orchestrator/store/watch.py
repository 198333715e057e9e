"""Watches: what changed since the snapshot that a reader has.

Entries are applied on the Raft thread; a watch belongs to one event loop. The Raft thread merges what changed into the
watch (an object that changed twice is one change, from its first old to its last new state) and wakes the loop once. So a
slow reader sees fewer, larger batches. One that falls behind by more than `limit` objects gets a resync instead: `changes`
is None, and the reader compares with the snapshot.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swarm.errors import Unavailable

from orchestrator.store.objects import Key
from orchestrator.store.snapshot import ObjectChange, Snapshot

DEFAULT_WATCH_LIMIT = 50_000  # objects


@dataclass(frozen=True)
class Events:
    """What happened since the last `Events` (or the snapshot that came with the watch). `changes` None: a resync."""

    snapshot: Snapshot
    changes: tuple[ObjectChange, ...] | None


class Watch:
    """An endless asynchronous iterator of `Events`, for one reader. `close` it, or use it as a context manager."""

    def __init__(
        self,
        snapshot: Snapshot,
        loop: asyncio.AbstractEventLoop,
        limit: int,
        unsubscribe: Callable[[Watch], None],
    ) -> None:
        self._loop = loop
        self._limit = limit
        self._unsubscribe = unsubscribe
        self._lock = threading.Lock()
        self._snapshot = snapshot
        self._pending: dict[Key, ObjectChange] = {}
        self._resync = False
        self._wake_scheduled = False
        self._wake = asyncio.Event()
        self._closed = False

    def publish(self, snapshot: Snapshot, changes: Sequence[ObjectChange] | None) -> None:
        """Called by the store, on any thread; None after a restore."""
        with self._lock:
            self._snapshot = snapshot
            if changes is None:
                self._resync = True
            else:
                self._merge(changes)
            if self._resync or len(self._pending) > self._limit:
                self._resync = True
                self._pending.clear()
            if self._wake_scheduled or not (self._resync or self._pending):
                return
            self._wake_scheduled = True
        try:
            self._loop.call_soon_threadsafe(self._wake.set)
        except RuntimeError:  # the reader's loop is closed: nobody will read this any more
            self.close()

    def _merge(self, changes: Sequence[ObjectChange]) -> None:
        if self._resync:
            return
        pending = self._pending
        for change in changes:
            key = change.kind, change.id
            earlier = pending.get(key)
            if earlier is None:
                pending[key] = change
            elif earlier.old is None and change.new is None:
                del pending[key]  # came and went
            else:
                pending[key] = ObjectChange(change.kind, change.id, earlier.old, change.new)

    def take(self) -> Events | None:
        """What is there now, without waiting; None where nothing is."""
        with self._lock:
            self._wake_scheduled = False
            self._wake.clear()
            if self._resync:
                self._resync = False
                return Events(self._snapshot, None)
            if not self._pending:
                return None
            changes = tuple(self._pending.values())
            self._pending = {}
            return Events(self._snapshot, changes)

    async def wait(self) -> None:
        """Waits until there may be something to `take`; cancelling it loses nothing."""
        await self._wake.wait()

    async def next(self) -> Events:
        """Waits for the next events. Cancelling it loses nothing."""
        while True:
            events = self.take()
            if events is not None:
                return events
            if self._closed:
                raise Unavailable("the watch was closed")
            await self._wake.wait()

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> Events:
        if self._closed:
            raise StopAsyncIteration
        return await self.next()

    def close(self) -> None:
        """Ends the watch; whoever waits in `next` gets Unavailable."""
        self._closed = True
        self._unsubscribe(self)
        with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody waits
            self._loop.call_soon_threadsafe(self._wake.set)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
