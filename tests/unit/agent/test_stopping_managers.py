"""A manager process that is to stop while it is being started, or while its files are worked on."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from pathlib import Path

import pytest

from agent.node import manager_process
from agent.node.manager_process import ManagerProcess, RunningProcess
from agent.node.options import Options

SLOW_MANAGER = """
import fcntl, os, signal, sys, time
open(sys.argv[1] + ".born", "w").write(str(os.getpid()))
time.sleep(0.5)  # its imports
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.truncate(0); file.write(str(os.getpid())); file.flush()
try:
    os.write(int(sys.argv[sys.argv.index("--ready-fd") + 1]), b"ready\\n")
except OSError:
    pass
signal.pause()
"""


@pytest.fixture
def born(tmp_path: Path) -> Path:
    """Where the manager writes its number before it does anything else."""
    return tmp_path / "run" / f"{manager_process.PID_FILE}.born"


@pytest.fixture
def manager(tmp_path: Path) -> ManagerProcess:
    options = Options(state=tmp_path / "state", run=tmp_path / "run")
    options.run.mkdir()
    program = (sys.executable, "-c", SLOW_MANAGER, str(options.run / manager_process.PID_FILE))
    return ManagerProcess(options, lambda: [], random.Random(1), program=program)


async def test_a_manager_that_is_stopped_while_it_starts_does_not_stay(manager: ManagerProcess, born: Path) -> None:
    """`swarmctl swarm leave --force`, or a demotion, just after the manager had ended and was started again: it went on without
    anybody to stop it, held the cluster port, and the next membership took it for its own."""
    running = asyncio.create_task(manager.run())
    async with asyncio.timeout(30):
        while not (born.exists() and born.read_text()):  # noqa: ASYNC110 – bounded; nothing tells
            await asyncio.sleep(0.01)
        process = RunningProcess.of(int(born.read_text()))
        assert process is not None
        try:
            await manager.stop()
            running.cancel()  # as whoever stopped it does
            await asyncio.gather(running, return_exceptions=True)
            assert not process.runs()
        finally:
            process.signal(signal.SIGKILL)
            await process.ended()


async def test_a_manager_whose_files_are_worked_on_is_not_started_after_a_stop(
    manager: ManagerProcess, born: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A swarm was being restored on a manager, and the node was told to leave: its manager was started once more after that."""
    monkeypatch.setattr(manager_process, "READY_TIMEOUT", 0.05)
    async with asyncio.timeout(30):
        async with manager.stopped():
            running = asyncio.create_task(manager.run())
            await asyncio.sleep(0)  # it waits for the files now
            await manager.stop()  # not held up for ever by the work on the files
        await asyncio.wait({running}, timeout=1)
    assert running.done() and not born.exists()
