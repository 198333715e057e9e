"""The manager process of this node: started where the node's role is manager, watched, restarted, stopped on demotion.

It is a process of its own so that neither side stalls the other, and it outlives the daemon: it holds a lock on RUN/manager.pid
as long as it runs, and a daemon that starts again adopts it. Adopted or started, its end is seen through a pidfd. Its output
goes to STATE/logs/manager.log.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from swarm.errors import DeadlineExceeded, InternalError, SwarmError
from swarm.names import CONTROL_SOCKET
from swarm.retry import Backoff

from agent.node.options import Options

log = logging.getLogger(__name__)

PID_FILE = "manager.pid"
READY_TIMEOUT = 30.0  # seconds from the start of the process to its sockets being open
STOP_TIMEOUT = 10.0
LOG_LIMIT = 32 << 20  # bytes of manager.log that are kept at a start; what is older goes to manager.log.1
STEADY_AFTER = 60.0  # seconds after which an end is not counted as one of a series
BACKOFF = Backoff(first=0.2, maximum=15.0)


@dataclass(frozen=True)
class RunningProcess:
    """A process that cannot be confused with a later one of the same number."""

    pid: int
    started: int  # clock ticks since boot, field 22 of /proc/PID/stat

    @classmethod
    def of(cls, pid: int) -> RunningProcess | None:
        """None where there is no such process, or only what is left of one. Raises OSError where descriptors are lacking to
        look: whoever took that for its end would let it go on."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in ("Z", "X") else cls(pid, int(fields[19]))

    def runs(self) -> bool:
        return RunningProcess.of(self.pid) == self

    async def ended(self) -> str:
        """Waits for its end, and reaps it where it is our child. How it ended; empty where that is another's to know."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return ""
        try:
            if self.runs():
                await _readable(descriptor)
        finally:
            os.close(descriptor)
        try:
            _, status = os.waitpid(self.pid, os.WNOHANG)  # noqa: ASYNC222 – it does not block
        except ChildProcessError:  # adopted: somebody else's child
            return ""
        code = os.waitstatus_to_exitcode(status)
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self.runs():
                os.kill(self.pid, number)


def _command_line(pid: int) -> Sequence[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return ()


def _advertised(arguments: Sequence[str]) -> str:
    """The value of `--advertise`."""
    words = list(arguments)
    return words[words.index("--advertise") + 1] if "--advertise" in words[:-1] else ""


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)


class ManagerProcess:
    """`run` keeps it running until `stop`, or until it is cancelled, which leaves the process alone."""

    def __init__(
        self,
        options: Options,
        arguments: Callable[[], Sequence[str]],
        rng: random.Random,
        *,
        program: Sequence[str] = (sys.executable, "-m", "orchestrator.manager", "run"),
    ) -> None:
        self._options = options
        self._arguments = arguments
        self._rng = rng
        self._program = tuple(program)
        self._process: RunningProcess | None = None
        self._stopping = False
        self._files = asyncio.Lock()  # held while it starts, and by whoever works on its files meanwhile
        self.ready = asyncio.Event()
        self.restarts = 0
        self.problem = ""

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    @property
    def control_socket(self) -> Path:
        return self._options.run / CONTROL_SOCKET

    @property
    def log_path(self) -> Path:
        return self._options.state / "logs" / "manager.log"

    async def run(self) -> None:
        delays = BACKOFF.delays(self._rng)
        while not self._stopping:
            began = time.monotonic()
            try:
                async with self._files:
                    if self._stopping:
                        return
                    self._process = await self._adopt_fitting() or await self._start()
                self.problem = ""
                self.ready.set()
                how = await self._process.ended()
                self.problem = f"{how}, its last words: {self._last_words()}" if how else self._last_words()
            except (SwarmError, OSError) as error:  # the host may be short of memory for a moment
                self.problem = str(error)
            self._process = None
            self.ready.clear()
            if self._stopping:
                return
            if self._files.locked():  # it was stopped for that, and did not fail
                continue
            self.restarts += 1
            if time.monotonic() - began > STEADY_AFTER:
                delays = BACKOFF.delays(self._rng)
            wait = next(delays)
            log.error("the manager ended and is started again in %.1f s; %s", wait, self.problem)
            await asyncio.sleep(wait)

    async def stop(self) -> None:
        """Ends the process and `run`. One that just starts is waited for: before it holds its lock nobody finds it."""
        self._stopping = True
        with contextlib.suppress(TimeoutError):  # its files are being worked on, and `run` starts nothing after that
            async with asyncio.timeout(READY_TIMEOUT), self._files:
                pass
        await self._terminate()

    @contextlib.asynccontextmanager
    async def stopped(self) -> AsyncIterator[None]:
        """The process does not run inside the block, and runs again after it."""
        async with self._files:
            self.ready.clear()
            await self._terminate()
            yield

    async def _terminate(self) -> None:
        process = self._process or self._adopt()
        if process is None:
            return
        process.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await process.ended()
        except TimeoutError:
            log.warning("the manager did not end within %g s and is killed", STOP_TIMEOUT)
            process.signal(signal.SIGKILL)
            await process.ended()

    # --------------------------------------------------------------------------------------------------- beginnings

    @property
    def _pid_file(self) -> Path:
        return self._options.run / PID_FILE

    def _adopt(self) -> RunningProcess | None:
        """The manager that holds the lock; None where nobody does. Raises OSError where that cannot be found out."""
        try:
            with self._pid_file.open("r+") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    process = RunningProcess.of(int(file.read()))
                else:
                    return None
        except (FileNotFoundError, ValueError):
            return None
        if process is not None:
            log.info("took over the running manager, process %d", process.pid)
        return process

    async def _adopt_fitting(self) -> RunningProcess | None:
        """The running manager; where it says another address of this node than the one that it has now, it is ended."""
        process = self._adopt()
        if process is None or _advertised(_command_line(process.pid)) == _advertised(self._arguments()):
            return process
        log.warning("the running manager has another address than this node has now, and is started anew")
        await self._terminate()
        return None

    async def _start(self) -> RunningProcess:
        """Starts it and waits until it is ready. Raises SwarmError where it ends before, or is not ready in time."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self._options.run.mkdir(parents=True, exist_ok=True)
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_LIMIT:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        ready, announce = os.pipe()
        try:
            with self.log_path.open("ab") as output:
                child = subprocess.Popen(  # noqa: ASYNC220 – its pipes and its end are awaited elsewhere
                    [*self._program, *self._arguments(), "--ready-fd", str(announce)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    pass_fds=(announce,),
                    cwd="/",
                )
            os.close(announce)
            announce = -1
            # The pidfd tells its end; Popen must not, and must not complain about that when it is collected.
            child.returncode = 0
            process = RunningProcess.of(child.pid)
            if process is None:
                raise InternalError(f"the manager ended at once: {self._last_words()}")
            await self._announced(ready, process)
            return process
        finally:
            os.close(ready)
            if announce >= 0:
                os.close(announce)

    async def _announced(self, ready: int, process: RunningProcess) -> None:
        try:
            async with asyncio.timeout(READY_TIMEOUT):
                await _readable(ready)
        except TimeoutError as error:
            process.signal(signal.SIGKILL)
            await process.ended()
            raise DeadlineExceeded(
                f"the manager was not ready within {READY_TIMEOUT:g} s: {self._last_words()}"
            ) from error
        if not os.read(ready, 64):
            await process.ended()
            raise InternalError(f"the manager ended while it started: {self._last_words()}")
        log.info("the manager runs as process %d", process.pid)

    def _last_words(self) -> str:
        """The last line of its log."""
        try:
            with self.log_path.open("rb") as stream:
                stream.seek(max(0, self.log_path.stat().st_size - 4096))
                lines = stream.read().decode(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return f"{lines[-1][:500]} (in {self.log_path})" if lines else f"{self.log_path} is empty"
