"""A daemon whose event loop stands still says where."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import asyncio, sys, time
from swarm import stalls

stalls.LONGEST, stalls._PERIOD = 0.5, 0.1

def stand_still(seconds):
    time.sleep(seconds)

async def main():
    with stalls.told(asyncio.get_running_loop()):
        await asyncio.sleep(1.0)
        stand_still(float(sys.argv[1]))
    stand_still(1.0)

asyncio.run(main())
"""


def run(seconds: float) -> str:
    words = [sys.executable, "-c", PROGRAM, str(seconds)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stderr


def test_where_the_loop_stood_is_told_once() -> None:
    told = run(2.0)
    assert told.count("Timeout") == 1
    assert "stand_still" in told


def test_a_loop_that_turns_is_not_spoken_of() -> None:
    assert run(0.0) == ""
