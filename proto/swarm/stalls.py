"""Tells what a daemon was doing when its event loop stood still.

While the loop turns, a watchdog of the C library's kind (`faulthandler`, which needs neither the loop nor Python's global lock)
is put off again and again; where the loop stands for `LONGEST` seconds it writes the stacks of all threads to stderr, once for
each stall. A process that was stopped from outside (SIGSTOP) looks alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
from collections.abc import Iterator

LONGEST = 5.0  # seconds; a manager whose loop stands is no use to anybody after one election timeout
_PERIOD = 1.0  # seconds between two puttings-off


@contextlib.contextmanager
def told(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Watches `loop` while it runs what is within."""
    waiting: asyncio.TimerHandle

    def put_off() -> None:
        nonlocal waiting
        faulthandler.dump_traceback_later(LONGEST)
        waiting = loop.call_later(_PERIOD, put_off)

    put_off()
    try:
        yield
    finally:
        waiting.cancel()
        faulthandler.cancel_dump_traceback_later()
