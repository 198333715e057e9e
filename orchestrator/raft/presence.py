"""A slow disk must not silence a member.

The tick thread syncs the journal itself, and a busy disk may hold it for longer than the others' patience. While it is
held, this thread says in its place that the member is there: a leader to its followers, a follower to its leader. Those
messages carry the term and nothing else; they prove nothing to reads, acknowledge nothing and commit nothing. It stops
after a while: a member whose disk hangs for good has to be done without.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swarm.v1 import raft_pb2 as pb

LONGEST = 10.0  # seconds


@dataclass(frozen=True)
class _Held:
    peers: Sequence[str]
    message: pb.RaftMessage
    since: float


class Presence:
    """Speaks for a tick thread that is held up. `begin` and `end` are called by that thread."""

    def __init__(
        self, transmit: Callable[[str, pb.RaftMessage], bool], period: float, clock: Callable[[], float]
    ) -> None:
        self._transmit = transmit
        self._period = period
        self._clock = clock
        self._held: _Held | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="raft-presence", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def begin(self, peers: Sequence[str], message: pb.RaftMessage) -> None:
        self._held = _Held(peers, message, self._clock())

    def end(self) -> None:
        self._held = None

    def _run(self) -> None:
        while not self._stopping.wait(self._period):
            self.speak()

    def speak(self) -> None:
        """Once: tells the peers, where the tick thread has been held for longer than the period."""
        held = self._held
        if held is None or not self._period <= self._clock() - held.since <= LONGEST:
            return
        for peer in held.peers:
            message = pb.RaftMessage()
            message.CopyFrom(held.message)  # each link's thread reads a message of its own
            self._transmit(peer, message)
