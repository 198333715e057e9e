"""Loops that go on after an error, and a cancellation that came with it.

Before Python 3.13 a task group loses a cancellation from outside that meets the failure of one of its own tasks: the error
arrives, the cancellation does not, and a loop that tries again would go on for ever. Such a loop asks here after an error.
"""

from __future__ import annotations

import asyncio


def raise_if_cancelled() -> None:
    """Raises CancelledError where the current task was cancelled and did not notice."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
