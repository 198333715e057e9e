"""Linearizable reads without a clock (removes defect L): ReadIndex.

A read notes the commit index, then asks a majority, with the next heartbeat, whether this member still leads; every answer
to a message that was sent after the read arrived is such a proof. Once that index is applied too, the local state may be
read. A leader first commits an entry of its own term, before which it cannot know what was committed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Done = Callable[[int | None], None]  # the index that was applied, or None: does not lead any more


@dataclass
class _Read:
    sequence: int  # a majority must have answered a message with at least this number
    index: int
    done: Done


class Reads:
    """Reads that wait for their proof."""

    def __init__(self) -> None:
        self._new: list[Done] = []
        self._asked: list[_Read] = []

    def add(self, done: Done) -> None:
        self._new.append(done)

    @property
    def waiting(self) -> bool:
        return bool(self._new)

    def ask(self, next_sequence: int, commit_index: int) -> None:
        """The next message carries at least `next_sequence`: its answers prove the leadership for the new reads."""
        self._asked.extend(_Read(next_sequence, commit_index, done) for done in self._new)
        self._new.clear()

    def settle(self, proven_sequence: int, applied_index: int) -> None:
        """A majority has answered up to `proven_sequence`, and entries up to `applied_index` are applied."""
        if not self._asked:
            return
        waiting = []
        for read in self._asked:
            if read.sequence <= proven_sequence and read.index <= applied_index:
                read.done(applied_index)
            else:
                waiting.append(read)
        self._asked = waiting

    def fail(self) -> None:
        """This member does not lead any more."""
        failed, self._new, self._asked = [*self._new, *(read.done for read in self._asked)], [], []
        for done in failed:
            done(None)
