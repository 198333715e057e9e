"""Processes of the tests that are asked in lines of JSON: `LineProcess` starts one and asks it, `serve` is its other side.

A request is an object with an `id`; the answer carries the same one, in whatever order answers come. A process that is ready
says so with the id -1.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
START_TIMEOUT = 60.0
LINE_BYTES = 64 << 20  # of one answer: seconds of many thousands of writes
READY = -1


class ProcessEnded(Exception):
    """It ended before it answered."""


class LineProcess:
    """One process; may be killed, paused and started again."""

    def __init__(self, module: str, name: str, *arguments: str, errors: Path) -> None:
        """`errors`: where its stderr goes."""
        self.name = name
        self._words = ("-m", module, *arguments)
        self._errors = errors
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def start(self) -> None:
        """Returns once it is ready."""
        up = self._waiting[READY] = asyncio.get_running_loop().create_future()
        with self._errors.open("ab") as errors:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, *self._words,
                cwd=ROOT, env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "proto"), str(ROOT)))}, limit=LINE_BYTES,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        self._reading = asyncio.create_task(self._read())
        await asyncio.wait_for(up, START_TIMEOUT)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            message = json.loads(line)
            waiting = self._waiting.pop(message.pop("id"), None)
            if waiting is not None and not waiting.done():
                waiting.set_result(message)
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ProcessEnded(f"{self.name} ended; see {self._errors}"))
        self._waiting.clear()

    async def request(self, request: dict[str, Any]) -> dict[str, Any]:
        """Raises ProcessEnded, also where it had ended before."""
        number = next(self._numbers)
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"id": number, **request}).encode() + b"\n")
            await self.process.stdin.drain()
        except OSError as error:
            self._waiting.pop(number, None)
            raise ProcessEnded(f"{self.name} has ended; see {self._errors}") from error
        return await waiting

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        await self.process.wait()
        await self._reading

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


async def serve(answer: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]) -> None:
    """Says that it is ready, and answers what comes on stdin until it is closed, each request in a task of its own."""
    requests = asyncio.StreamReader(limit=LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(requests), sys.stdin)

    async def one(number: int, request: dict[str, Any]) -> None:
        _say(number, await answer(request))

    _say(READY, {})
    async with asyncio.TaskGroup() as group:
        while line := await requests.readline():
            request = json.loads(line)
            group.create_task(one(request.pop("id"), request))


def _say(number: int, message: dict[str, Any]) -> None:
    print(json.dumps({"id": number, **message}), flush=True)
