"""Starting a container's monitor: one conmon a container, that calls the OCI runtime, keeps the log and records the end.

conmon forks twice and stays when the agent ends.  It is not run by `swarm.process`, whose programs end before their caller
goes on: here the parent ends at once, and a pipe carries the container's pid (or what went wrong) as one line of JSON.  A
second pipe holds conmon back until it is in a control group that does not end with the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from swarm.errors import DeadlineExceeded, FailedPrecondition, InternalError, NotFound, ResourceExhausted, SwarmError
from swarm.process import missing_program

from agent.runtime.processes import readable

CREATE_TIMEOUT = 60.0  # seconds; normal is 0.05, a crowded host takes longer
KILL_TIMEOUT = 10.0
MAX_REPORT = 64 * 1024  # bytes of the monitor's report
LOG_LIMIT = 64 << 20  # bytes of one container's log before it starts again

_FRAMED = re.compile(r'^time="[^"]*" level=\w+ msg="((?:[^"\\]|\\.)*)', re.MULTILINE)


@dataclass(frozen=True)
class MonitorFiles:
    """Where one container's files lie."""

    bundle: Path  # on disk: config.json, the exit code, what the monitor notes
    run: Path  # gone after a reboot: pid files
    sockets: Path  # for all containers; a short path, because a socket's name may have 108 bytes

    @property
    def configuration(self) -> Path:
        return self.bundle / "config.json"

    @property
    def container_pid(self) -> Path:
        return self.run / "pid"

    @property
    def monitor_pid(self) -> Path:
        return self.run / "monitor.pid"

    @property
    def complaints(self) -> Path:
        """What the monitor itself prints."""
        return self.run / "monitor.log"

    def exit_code(self, container_id: str) -> Path:
        return self.bundle / container_id


def arguments(
    files: MonitorFiles,
    container_id: str,
    *,
    conmon: Path,
    runtime: Path,
    runtime_arguments: Sequence[str],
    log: Path,
    terminal: bool,
) -> list[str]:
    """The command line of a container's monitor."""
    words: list[str] = [
        *(str(conmon), "--api-version", "1", "--cid", container_id, "--cuuid", container_id, "--name", container_id),
        *("--runtime", str(runtime), "--bundle", str(files.bundle)),
        *("--container-pidfile", str(files.container_pid), "--conmon-pidfile", str(files.monitor_pid)),
        *("--persist-dir", str(files.bundle), "--exit-dir", str(files.bundle)),
        *("--socket-dir-path", str(files.sockets), "--log-path", f"k8s-file:{log}"),
        *("--log-size-max", str(LOG_LIMIT), "--log-level", "error"),
    ]
    for argument in runtime_arguments:
        words.append(f"--runtime-arg={argument}")
    return [*words, "--terminal"] if terminal else words


async def start(words: Sequence[str], files: MonitorFiles, place: Callable[[int], None]) -> int:
    """Starts the monitor and waits until it has created the container; the pid of the container's first process.

    `place` puts the monitor's first process where its children shall live; what it raises (OSError) ends the start.
    Raises the error that `explain` makes of the runtime's complaint.
    """
    report_read, report_write = os.pipe()
    try:
        go_read, go_write = os.pipe()
    except OSError:  # no descriptors: these are not to be lacking as well
        os.close(report_read)
        os.close(report_write)
        raise
    try:
        try:
            process = _spawn(words, files, report_write, go_read)
        finally:
            os.close(report_write)
            os.close(go_read)
        try:
            place(process.pid)
            with contextlib.suppress(BrokenPipeError):  # it has ended; what it said is in the report
                os.write(go_write, b"\0")
            async with asyncio.timeout(CREATE_TIMEOUT):
                report = await _line(report_read)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the container was not created within {CREATE_TIMEOUT:g} s; the host may be overloaded"
            ) from None
        finally:
            _reap(process, files)
    finally:
        os.close(report_read)
        os.close(go_write)
    return _pid(report, files)


def _spawn(words: Sequence[str], files: MonitorFiles, report: int, go: int) -> subprocess.Popen[bytes]:
    with files.complaints.open("wb") as complaints:
        try:
            return subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                cwd=files.bundle,  # where it notes a container that ran out of memory
                env={**os.environ, "_OCI_SYNCPIPE": str(report), "_OCI_STARTPIPE": str(go)},
                pass_fds=(report, go),
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise missing_program(words[0]) from error


def _reap(process: subprocess.Popen[bytes], files: MonitorFiles) -> None:
    """The first process has ended when the report is there; where it was interrupted, it may still be held back.

    Once it has written the pid file it ends by itself, and killing it would change nothing.
    """
    if process.poll() is None and not files.monitor_pid.exists():
        process.kill()
    process.wait(timeout=KILL_TIMEOUT)


async def _line(descriptor: int) -> bytes:
    """Reads to the end of a line or of the pipe."""
    os.set_blocking(descriptor, False)
    data = b""
    while b"\n" not in data and len(data) < MAX_REPORT:
        await readable(descriptor)
        piece = os.read(descriptor, MAX_REPORT)
        if not piece:
            break
        data += piece
    return data


def _pid(report: bytes, files: MonitorFiles) -> int:
    try:
        fields = json.loads(report)
        pid, message = int(fields.get("data", fields.get("pid", -1))), str(fields.get("message", ""))
    except (ValueError, AttributeError):
        pid, message = -1, ""
    if pid > 0:
        return pid
    if not message:
        with contextlib.suppress(OSError):
            message = files.complaints.read_text(errors="replace")
    raise explain(message)


def unframed(message: str) -> str:
    """Without the frame of the runtime's log, `time="…" level=error msg="…"`, in which quotes and line feeds are escaped.
    The frame's end may be missing: the monitor bounds what it passes on."""
    framed = _FRAMED.findall(message)
    if not framed:
        return message
    return re.sub(r"\\(.)", lambda escape: " " if escape[1] in "nrt" else escape[1], framed[-1])


def explain(message: str) -> SwarmError:
    """An error for people, from what the OCI runtime or the monitor printed."""
    text = " ".join(unframed(message).split())
    # runc nests its sentences: the last one tells what happened
    for start in ("unable to start container process: ", "runc create failed: ", "container_linux.go: "):
        text = text.rpartition(start)[2]
    text = text.strip().removeprefix("error during container init: ").strip() or "the monitor ended without a word"
    lower = text.lower()
    if "no space left on device" in lower:
        return ResourceExhausted(f"the disk is full: {text}")
    if "executable file not found" in lower or ("exec:" in lower and "no such file or directory" in lower):
        return NotFound(f"the command is not in the image: {text}")
    if "permission denied" in lower and "exec" in lower:
        return FailedPrecondition(f"the command cannot be executed: {text}")
    if "error mounting" in lower or "mount" in lower:
        return FailedPrecondition(f"a mount failed: {text}")
    return InternalError(f"the container cannot be created: {text}")
