"""Commands that are run in a container, on a host where something is lacking or ends meanwhile."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from swarm.errors import DeadlineExceeded

from agent.runtime import processes
from agent.runtime.execution import execute
from agent.tasks import health
from agent.tasks.settings import HealthCheck


async def test_a_check_that_no_thread_can_wait_for_is_one_failed_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host had no thread left for a moment: each container whose check was due then was stopped at once as unhealthy,
    however many failures in a row its check allows."""

    async def no_thread(*_: object, **__: object) -> Any:
        raise RuntimeError("can't start new thread")

    async def run(arguments: tuple[str, ...], timeout: float) -> tuple[int, bytes]:
        result = await execute(
            ["runc"], "t1", arguments, pid_directory=tmp_path, belongs=lambda _: True, timeout=timeout
        )
        return result.exit_code, result.output

    monkeypatch.setattr(asyncio, "create_subprocess_exec", no_thread)
    result = await health.probe_container(run, HealthCheck(("true",)))
    assert not result.healthy and "could not be started: can't start new thread" in result.output


async def test_what_was_run_is_ended_although_its_process_goes_while_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A health check took too long, and its process ended just when it was to be killed: the OCI runtime that had started it
    stayed for ever, one more each time."""
    script = tmp_path / "runtime"
    script.write_text('#!/bin/sh\necho $$ > "$3"\nexec sleep 1000\n')
    script.chmod(0o755)

    def gone(*_: object) -> Iterator[Path]:
        raise FileNotFoundError

    ended: list[int] = []
    kill = os.killpg

    def kill_group(pid: int, number: int) -> None:
        ended.append(pid)
        kill(pid, number)

    monkeypatch.setattr(os, "killpg", kill_group)
    monkeypatch.setattr(Path, "glob", gone)
    assert processes.descendants(os.getpid()) == []
    with pytest.raises(DeadlineExceeded):
        await execute([str(script)], "t1", ["check"], pid_directory=tmp_path, belongs=lambda _: True, timeout=0.5)
    assert ended
