"""What waits to be sent to one agent.

Bounded by construction: of acknowledgements, watermarks and settings only the newest matters; changes of the mirror are
kept by key, so that a key that changed twice is sent once; and an agent that reads so slowly that `LIMIT_BYTES` of changes
wait gets its complete mirror instead, made when it is its turn. `take` gives the next messages in an order that keeps the
promises: the start comes first, a watermark never overtakes the assignments that it speaks of, the end comes last.

Each message of changes costs its agent a synced write and a look at every container. While a service starts, each of its
tasks that runs is such a change for every node; these may wait for one another (`may_wait`): the first goes at once, those
that follow within `PATIENCE` go together. Everything else goes at once, and takes along what waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

from swarm.v1 import dispatcher_pb2 as dispatcher

from orchestrator.dispatcher import wire
from orchestrator.dispatcher.wire import Fragments

LIMIT_BYTES = 4 << 20
PATIENCE = 0.2  # seconds between two messages of changes that may wait

CompleteMirror = Callable[[], tuple[int, int, Sequence[bytes]]]  # → (epoch, index, fragments)


class Outbox:
    """`complete` makes the agent's whole mirror as of now."""

    def __init__(self, start: dispatcher.SessionStart, complete: CompleteMirror) -> None:
        self._make_complete = complete
        self._start: dispatcher.SessionStart | None = start
        self._complete = True
        self._changes: Fragments = {}
        self._size = 0
        self._position = (0, 0)
        self._acknowledged = 0
        self._watermark = 0
        self._settings: dispatcher.SessionSettings | None = None
        self._end: dispatcher.SessionEnd | None = None
        self._ended = False
        self._wake = asyncio.Event()
        self._wake.set()
        self._pause: asyncio.TimerHandle | None = None  # after a message of changes that may wait
        self._held = False  # all changes that are here may wait, and do: until the pause is over

    def resynchronise(self) -> None:
        """The agent gets its complete mirror next."""
        self._complete = True
        self._changes, self._size = {}, 0
        self._wake.set()

    def add(self, epoch: int, index: int, changes: Fragments, *, may_wait: bool = False) -> None:
        """Changes of the mirror up to `index`, in order of the calls."""
        if self._complete:
            self._wake.set()
            return  # made later, and then it holds these as well
        if not may_wait:
            self._release()
        elif not self._changes:
            self._send_or_hold()
        self._position = (epoch, index)
        self._changes.update(changes)
        self._size += sum(map(len, changes.values()))
        if self._size > LIMIT_BYTES:
            self.resynchronise()

    def _send_or_hold(self) -> None:
        if self._pause is not None:
            self._held = True
            return
        self._pause = asyncio.get_running_loop().call_later(PATIENCE, self._pause_over)
        self._release()

    def _pause_over(self) -> None:
        self._pause = None
        if self._held:
            self._send_or_hold()

    def _release(self) -> None:
        self._held = False
        self._wake.set()

    def acknowledge(self, sequence: int) -> None:
        """The agent's statuses up to `sequence` are committed."""
        self._acknowledged = max(self._acknowledged, sequence)
        self._wake.set()

    def watermark(self, index: int) -> None:
        self._watermark = max(self._watermark, index)
        self._wake.set()

    def settings(self, settings: dispatcher.SessionSettings) -> None:
        if self._start is not None:
            self._start.settings.CopyFrom(settings)
        else:
            self._settings = settings
        self._wake.set()

    def end(self, reason: dispatcher.SessionEndReason.ValueType, message: str) -> None:
        """The last message, ahead of what still waits; the first reason given stays."""
        if self._end is None:
            self._end = dispatcher.SessionEnd(reason=reason, message=message)
        self._wake.set()

    @property
    def ended(self) -> bool:
        return self._end is not None

    async def next(self) -> list[bytes]:
        """Waits until there is something to send; empty after the end was sent."""
        while not self._ended:
            await self._wake.wait()
            messages = list(self.take())
            if messages:
                return messages
        return []

    def take(self) -> Iterator[bytes]:
        """All that is to be sent now, serialized."""
        self._wake.clear()
        if self._start is not None and self._end is None:
            yield dispatcher.ManagerMessage(start=self._start).SerializeToString()
            self._start = None
        if self._end is not None:
            self._ended = True
            yield dispatcher.ManagerMessage(end=self._end).SerializeToString()
            return
        if self._settings is not None:
            yield dispatcher.ManagerMessage(settings=self._settings).SerializeToString()
            self._settings = None
        yield from self._assignments()
        if self._acknowledged:
            ack = dispatcher.StatusAck(sequence=self._acknowledged)
            self._acknowledged = 0
            yield dispatcher.ManagerMessage(status_ack=ack).SerializeToString()
        if self._watermark:
            watermark = dispatcher.Watermark(index=self._watermark)
            self._watermark = 0
            yield dispatcher.ManagerMessage(watermark=watermark).SerializeToString()

    def _assignments(self) -> Iterator[bytes]:
        if self._complete:
            epoch, index, fragments = self._make_complete()  # what changes while it is made, it holds
            self._complete = False
            yield from wire.messages(fragments, epoch=epoch, index=index, complete=True)
        elif self._changes and (self._watermark or not self._held):
            self._held = False
            (epoch, index), changes = self._position, self._changes
            self._changes, self._size = {}, 0
            yield from wire.messages(changes.values(), epoch=epoch, index=index, complete=False)
