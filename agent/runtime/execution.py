"""Running one command inside a container that runs: bounded in time and in what is kept of its output.

The OCI runtime stays between us and the command.  Killing it would leave the command running inside the container, so the
runtime writes the command's pid to a file, and that process is killed when the time is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from swarm.errors import DeadlineExceeded, FailedPrecondition, NotFound, ResourceExhausted, SwarmError
from swarm.process import kill_group, missing_program

from agent.runtime import processes
from agent.runtime.interface import ExecResult
from agent.runtime.monitor import unframed

log = logging.getLogger(__name__)

MAX_OUTPUT = 64 * 1024  # bytes kept, the last ones
_DRAIN = 1.0  # seconds for the rest of the output, where something that outlives the command holds the pipe
_RUNTIME_FAILURE = 255  # exit code of the OCI runtime where it could not execute the command
_RUNTIME_COMPLAINTS = (b"exec failed", b"executable file not found", b"cannot exec")


async def execute(
    runtime: Sequence[str],
    container_id: str,
    arguments: Sequence[str],
    *,
    pid_directory: Path,
    belongs: Callable[[int], bool],
    timeout: float,
) -> ExecResult:
    """`belongs` tells whether a process is one of the container's, before it is killed. See `Runtime.exec`."""
    if not arguments:
        raise FailedPrecondition("there is no command to execute")
    pid_file = pid_directory / f"exec-{uuid.uuid4().hex[:12]}.pid"
    words = [*runtime, "exec", "--pid-file", str(pid_file), container_id, *arguments]
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise missing_program(words[0]) from error
    except RuntimeError as error:  # no thread left to wait for it, for a moment
        raise ResourceExhausted(f"the program `{words[0]}` could not be started: {error}") from error
    kept = bytearray()
    assert process.stdout is not None
    reading = asyncio.ensure_future(_read(process.stdout, kept))
    try:
        async with asyncio.timeout(timeout):
            code = await process.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN):
                await asyncio.shield(reading)
    except TimeoutError:
        raise DeadlineExceeded(f"`{' '.join(arguments)}` did not end within {timeout:g} s and was killed") from None
    finally:
        reading.cancel()
        if process.returncode is None:
            try:
                _kill_inside(processes.read_pid(pid_file), belongs)
            except SwarmError as error:
                log.warning("what was executed in container %s may go on there: %s", container_id, error)
        await asyncio.shield(kill_group(process))
        pid_file.unlink(missing_ok=True)
    output = bytes(kept)
    if code == _RUNTIME_FAILURE and any(complaint in output for complaint in _RUNTIME_COMPLAINTS):
        text = unframed(output.decode(errors="replace")).strip()
        if "not found" in text or "no such file" in text:
            raise NotFound(f"the command `{arguments[0]}` is not in the container")
        raise FailedPrecondition(f"`{' '.join(arguments)}` cannot be executed: {text[-300:]}")
    return ExecResult(code if code >= 0 else 128 - code, output)


def _kill_inside(pid: int, belongs: Callable[[int], bool]) -> None:
    inside = processes.find(pid, belongs)
    if inside is None:
        return
    with inside:
        children = processes.descendants(pid)
        inside.send(signal.SIGKILL)
        for child in children:
            if belongs(child):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)


async def _read(stream: asyncio.StreamReader, kept: bytearray) -> None:
    while piece := await stream.read(MAX_OUTPUT):
        kept += piece
        if len(kept) > MAX_OUTPUT:
            del kept[:-MAX_OUTPUT]
