"""A daemon whose event loop stands still says where, and one that is asked where its tasks wait."""

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


WAITING = """
import asyncio, os, signal
from swarm import stalls

async def inner(event):
    await event.wait()

async def outer(event):
    await inner(event)

async def main():
    event = asyncio.Event()
    with stalls.told(asyncio.get_running_loop()):
        task = asyncio.create_task(outer(event), name="the one that waits")
        await asyncio.sleep(0.1)
        os.kill(os.getpid(), signal.SIGUSR1)
        await asyncio.sleep(0.1)
        event.set()
        await task

asyncio.run(main())
"""


def test_who_asks_is_told_where_each_task_waits() -> None:
    words = [sys.executable, "-c", WAITING]
    told = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stderr
    lines = [line.strip().split(" (")[0] for line in told.splitlines()]
    begin = lines.index("the one that waits")
    assert lines[begin + 1 : begin + 4] == ["outer", "inner", "Event.wait"]
    assert "<Future pending" in lines[begin + 4]
