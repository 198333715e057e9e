"""Cancellations that get lost, and what to do about them.

* Before Python 3.13 a task group loses a cancellation from outside that meets the failure of one of its own tasks: the error
  arrives, the cancellation does not.
* grpc.aio loses one that comes while a stream is still being opened, as to a host that does not answer: the first read goes on,
  and fails as if the call had broken.

A loop that tries again after an error would then go on for ever. Such a loop asks (`raise_if_cancelled`), and whoever must not
wait for one for ever cancels it again (`cancelled`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

_PATIENCE = 5.0  # seconds until a task that goes on is cancelled again; what it tidies up has ended then


def raise_if_cancelled() -> None:
    """Raises CancelledError where the current task was cancelled and did not notice."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def cancelled(*tasks: asyncio.Future[Any]) -> list[Any]:
    """Cancels the tasks, again and again where one does not notice, and returns their results or exceptions once all have
    ended."""
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_PATIENCE)
    return await asyncio.gather(*tasks, return_exceptions=True)


async def carried_through(work: Coroutine[Any, Any, None]) -> None:
    """Does work that must not end half-way: where the caller is cancelled meanwhile, that takes effect after it."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    finally:
        await asyncio.wait({task})
