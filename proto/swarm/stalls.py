"""Tells what a daemon was doing when its event loop stood still, and what its tasks wait for when somebody asks.

While the loop turns, a watchdog of the C library's kind (`faulthandler`, which needs neither the loop nor Python's global lock)
is put off again and again; where the loop stands for `LONGEST` seconds it writes the stacks of all threads to stderr, once for
each stall. A process that was stopped from outside (SIGSTOP) looks alike.

A daemon whose loop turns while something in it waits for ever is asked with SIGUSR1: it writes to stderr where each of its
tasks waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import signal
import sys
from collections.abc import Iterator
from typing import Any

LONGEST = 5.0  # seconds; a manager whose loop stands is no use to anybody after one election timeout
_PERIOD = 1.0  # seconds between two puttings-off


@contextlib.contextmanager
def told(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Watches `loop`, the running one of the main thread, while it runs what is within."""
    waiting: asyncio.TimerHandle

    def put_off() -> None:
        nonlocal waiting
        faulthandler.dump_traceback_later(LONGEST)
        waiting = loop.call_later(_PERIOD, put_off)

    put_off()
    loop.add_signal_handler(signal.SIGUSR1, lambda: print(waiting_tasks(loop), file=sys.stderr, flush=True))  # noqa: T201
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)
        waiting.cancel()
        faulthandler.cancel_dump_traceback_later()


def waiting_tasks(loop: asyncio.AbstractEventLoop) -> str:
    """One paragraph for each of the loop's tasks: its name, and the calls down to what it waits for."""
    tasks = sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name())
    return "\n".join(["Tasks:", *(line for task in tasks for line in _calls(task))])


def _calls(task: asyncio.Task[Any]) -> Iterator[str]:
    asked = f", cancelled {task.cancelling()}×" if task.cancelling() else ""
    yield f"  {task.get_name()}{asked}"
    step: Any = task.get_coro()
    while step is not None:
        frame = getattr(step, "cr_frame", None) or getattr(step, "gi_frame", None) or getattr(step, "ag_frame", None)
        if frame is not None:
            yield f"    {frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno})"
        elif hasattr(step, "__qualname__"):  # a coroutine of a compiled library
            yield f"    {step.__qualname__}"
        step = getattr(step, "cr_await", None) or getattr(step, "gi_yieldfrom", None) or getattr(step, "ag_await", None)
    waiter = getattr(task, "_fut_waiter", None)
    if waiter is not None:
        yield f"    {waiter!r:.300}"
