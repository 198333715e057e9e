"""The answers to one member, on the stream that it opened: the tick thread puts them in, the event loop takes them out."""

from __future__ import annotations

import asyncio
import collections
import contextlib

from swarm.v1 import raft_pb2 as pb

from orchestrator.raft.framing import BUNDLE_MESSAGES


class Session:
    """See the module's description."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._outgoing: collections.deque[pb.RaftMessage] = collections.deque()
        self._scheduled = False
        self.news = asyncio.Event()
        self.replaced = False

    def send(self, message: pb.RaftMessage) -> bool:
        """From the tick thread."""
        self._outgoing.append(message)
        if not self._scheduled:
            self._scheduled = True
            with contextlib.suppress(RuntimeError):  # the event loop is closed: so is the stream
                self._loop.call_soon_threadsafe(self.news.set)
        return True

    def take(self) -> list[pb.RaftMessage]:
        """On the event loop."""
        self.news.clear()
        self._scheduled = False
        taken: list[pb.RaftMessage] = []
        while self._outgoing and len(taken) < BUNDLE_MESSAGES:
            taken.append(self._outgoing.popleft())
        if self._outgoing:
            self.news.set()
        return taken
