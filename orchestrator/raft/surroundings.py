"""What a core needs of its surroundings: somebody who runs slow work, and somebody who wants to know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from swarm.v1 import raft_pb2 as pb

from orchestrator.consensus import Leadership


class Background(Protocol):
    """Runs `work` beside the tick thread and hands what it returned or raised to `done`, on the tick thread."""

    def __call__(self, work: Callable[[], Any], done: Callable[[Any, Exception | None], None]) -> None: ...


class Observer(Protocol):
    """Who wants to know; called on the tick thread, must return at once."""

    def disk_begins(self, peers: list[str], message: pb.RaftMessage) -> None:
        """The tick thread turns to the disk, and is silent until `disk_ended`. Until then `message` may tell `peers` that
        this member is there."""
        ...

    def disk_ended(self) -> None: ...

    def leadership_changed(self, leadership: Leadership) -> None: ...

    def configuration_changed(self, configuration: pb.RaftConfiguration) -> None: ...
