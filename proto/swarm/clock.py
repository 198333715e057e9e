"""Clocks as arguments: nobody below a shell reads the time by itself.

`wall` stamps what people see (seconds since the epoch, UTC); `monotonic` measures waits.
"""

from __future__ import annotations

import time
from typing import Protocol

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp


class Clock(Protocol):
    def wall(self) -> float: ...

    def monotonic(self) -> float: ...


class SystemClock:
    def wall(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that moves only when told to. Both readings move together."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self.now = start

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError("a clock does not go back")
        self.now += seconds


def timestamp(seconds: float) -> Timestamp:
    """Seconds since the epoch → Timestamp."""
    whole = int(seconds // 1)
    return Timestamp(seconds=whole, nanos=int((seconds - whole) * 1e9))


def seconds_of(value: Timestamp | Duration) -> float:
    """Timestamp or Duration → seconds."""
    return float(value.seconds) + value.nanos / 1e9


def duration(seconds: float) -> Duration:
    """Seconds → Duration."""
    whole = int(seconds)
    return Duration(seconds=whole, nanos=int((seconds - whole) * 1e9))
