"""A proposal always ends with an answer (removes defect M).

`Committed`, or an error that says exactly what is known: `Unavailable` means that the command is surely not in the log and
never will be, `OutcomeUnknown` that it may be. The library's callbacks stay silent in several cases, and call a command
lost that was applied. Repeating a command is the caller's business: the state machine recognises it by its request id.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable

from pysyncobj import FAIL_REASON
from swarm.errors import NotLeader, OutcomeUnknown, ResourceExhausted, SwarmError, Unavailable

from orchestrator.consensus import Committed

Outcome = Committed | SwarmError


class Stage(enum.Enum):
    """How far a proposal has come."""

    QUEUED = enum.auto()  # not in any log
    APPENDED = enum.auto()  # in the log of the leader that took it
    ENDED = enum.auto()


class Proposal:
    """One command on its way. Begun and answered on the tick thread, withdrawn on the caller's."""

    __slots__ = ("_answer", "_lock", "command", "deadline", "index", "stage")

    def __init__(self, command: bytes, deadline: float, answer: Callable[[Outcome], None]) -> None:
        self.command = command
        self.deadline = deadline  # on the member's monotonic clock
        self.index = 0
        self.stage = Stage.QUEUED
        self._answer = answer
        self._lock = threading.Lock()

    def begin(self) -> bool:
        """Called as the command goes into the log; False where the caller has gone."""
        with self._lock:
            if self.stage is not Stage.QUEUED:
                return False
            self.stage = Stage.APPENDED
            return True

    def end(self, outcome: Outcome) -> None:
        """Answers, once."""
        with self._lock:
            if self.stage is Stage.ENDED:
                return
            self.stage = Stage.ENDED
        self._answer(outcome)

    def expire(self, obstacle: str = "") -> SwarmError:
        """The caller's deadline has passed; returns what it can be told. `obstacle`: why no majority can store it now."""
        with self._lock:
            stage, self.stage = self.stage, Stage.ENDED
        if stage is Stage.QUEUED:
            return Unavailable("the manager was too busy to take the write in time; nothing was written, repeat it")
        return OutcomeUnknown(
            f"the write was not confirmed by a majority of managers in time{': ' if obstacle else ''}{obstacle}; it may "
            "still happen. Repeat it with the same request id"
        )

    def __call__(self, _result: object, reason: int) -> None:
        """What the library calls where its queue is full."""
        if reason == FAIL_REASON.QUEUE_FULL:
            self.end(
                ResourceExhausted("too many writes are waiting on this manager; nothing was written, repeat later")
            )
        else:
            self.end(NotLeader("this manager does not lead; nothing was written, repeat it"))


def overwritten() -> SwarmError:
    return Unavailable("leadership changed before the write was replicated; it was not written, repeat it")


def leadership_lost() -> SwarmError:
    return OutcomeUnknown(
        "leadership changed while the write was being replicated; it may or may not have happened. Repeat it with the "
        "same request id"
    )
