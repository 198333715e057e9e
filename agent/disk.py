"""What the agent's parts share about a disk: what to advise people when it is full, and removing what a program wrote to it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path

from swarm.process import run

MAKE_ROOM = "free some space, `swarmctl image prune` helps"
REMOVAL_TIMEOUT = 600.0


async def remove_tree(directory: Path) -> None:
    """Removes it as far as possible, without an error. Programs may nest directories deeper than Python's `rmtree` can follow,
    which holds a stack frame and a descriptor for each."""
    with contextlib.suppress(RecursionError):
        await asyncio.to_thread(shutil.rmtree, directory, True)
    if directory.exists():
        await run(["rm", "-rf", "--", directory], timeout=REMOVAL_TIMEOUT, check=False)
