"""The one place that runs subprocesses to their end.

Every run has a deadline, takes its arguments as a list (no shell), collects what the program printed, and kills the whole
process group when the deadline passes or the caller is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from swarm.errors import DeadlineExceeded, FailedPrecondition, InternalError, ResourceExhausted, SwarmError

DEFAULT_TIMEOUT = 60.0
MAX_ERROR_OUTPUT = 600


@dataclass(frozen=True)
class Completed:
    """A program that ended by itself."""

    arguments: tuple[str, ...]
    exit_code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")

    @property
    def complaint(self) -> str:
        """The last of what it printed to stderr (or stdout), short enough for a sentence."""
        printed = (self.stderr.strip() or self.stdout.strip()).decode(errors="replace")
        return printed[-MAX_ERROR_OUTPUT:]


class CommandFailed(InternalError):
    """A program ended with another exit code than 0."""

    def __init__(self, completed: Completed) -> None:
        super().__init__(
            f"`{shlex.join(completed.arguments)}` ended with exit code {completed.exit_code}: {completed.complaint}"
        )
        self.completed = completed


async def run(
    arguments: Sequence[str | Path],
    *,
    timeout: float = DEFAULT_TIMEOUT,
    check: bool = True,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    network_namespace: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> Completed:
    """Runs a program to its end.

    `env` is added to our own environment. `network_namespace` is a path as /run/netns/NAME (entered through nsenter, which
    leaves mounts alone). Raises CommandFailed where `check` is set and the exit code is not 0, FailedPrecondition where the
    program is not installed, ResourceExhausted where this host can start none now, DeadlineExceeded after `timeout` seconds.
    """
    words = tuple(str(argument) for argument in arguments)
    if network_namespace is not None:
        words = ("nsenter", f"--net={network_namespace}", *words)
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **env} if env is not None else None,
            cwd=cwd,
            start_new_session=True,
            pass_fds=tuple(pass_fds),
        )
    except FileNotFoundError as error:
        raise missing_program(words[0]) from error
    except (OSError, RuntimeError) as error:  # no process, descriptor, memory or thread left: for a moment, mostly
        reason = error.strerror if isinstance(error, OSError) else None
        raise ResourceExhausted(f"the program `{words[0]}` could not be started: {reason or error}") from error
    try:
        async with asyncio.timeout(timeout):
            stdout, stderr = await process.communicate(stdin)
    except TimeoutError as error:
        raise DeadlineExceeded(f"`{shlex.join(words)}` did not end within {timeout:g} s and was killed") from error
    finally:
        await kill_group(process)
    completed = Completed(words, process.returncode if process.returncode is not None else -1, stdout, stderr)
    if check and completed.exit_code != 0:
        raise CommandFailed(completed)
    return completed


def missing_program(program: str) -> SwarmError:
    """The error of a program that is not installed."""
    return FailedPrecondition(
        f"the program `{program}` is not installed on this host; `./dev setup` installs what is needed"
    )


async def kill_group(process: asyncio.subprocess.Process) -> None:
    """Ends a process that was started in a session of its own, with all its children, and reaps it."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
