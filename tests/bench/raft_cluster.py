"""Three members of a log, as processes of their own on loopback, for `tests.bench.raft`."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from swarm.identity import TlsFiles

from tests.bench.subject import Missed
from tests.unit.raft.conftest import Lab, free_port

ROOT = Path(__file__).parents[2]
START_TIMEOUT = 60.0
LINE_BYTES = 64 << 20  # of one answer: seconds of many thousands of writes


class Remote:
    """One member; may be killed and started again."""

    def __init__(self, directory: Path, name: str, members: dict[str, str]) -> None:
        self.name = name
        self._arguments = (str(directory), name, json.dumps(members))
        self._errors = directory / f"{name}.log"
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def start(self) -> None:
        up = self._waiting[-1] = asyncio.get_running_loop().create_future()
        with self._errors.open("ab") as errors:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.bench.raft_member", *self._arguments,
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
                waiting.set_result({"error": f"{self.name} ended; see {self._errors}"})
        self._waiting.clear()

    async def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Raises Missed where the member says so, or has ended."""
        number = next(self._numbers)
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"id": number, "do": do, **arguments}).encode() + b"\n")
        await self.process.stdin.drain()
        answer = await waiting
        if "error" in answer:
            raise Missed(f"{do}: {answer['error']}")
        return answer

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        await self._reading


class Cluster:
    def __init__(self, members: list[Remote]) -> None:
        self.members = members

    async def statuses(self) -> list[dict[str, Any]]:
        return list(await asyncio.gather(*[member.ask("status") for member in self.members]))

    async def leader(self) -> Remote:
        found: list[Remote] = []

        async def known() -> bool:
            found[:] = [m for m, s in zip(self.members, await self.statuses(), strict=True) if s["leads"]]
            return bool(found)

        await until(known, "a leader is there")
        return found[0]


async def until(condition: Callable[[], Awaitable[bool]], what: str, timeout: float = 60.0) -> None:
    """Polls other processes. Raises Missed."""
    try:
        async with asyncio.timeout(timeout):
            while not await condition():  # noqa: ASYNC110 – the others are processes
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise Missed(f"{what}: not within {timeout:g} s") from None


@contextlib.asynccontextmanager
async def cluster(directory: Path) -> AsyncIterator[Cluster]:
    authority = Lab(directory)
    addresses = {f"member{number}": f"127.0.0.1:{free_port()}" for number in range(3)}
    for name in addresses:
        tls = authority.certificate(name)
        TlsFiles(directory / "certificates" / name).write(tls.key, tls.certificate, tls.ca)
    members = [Remote(directory, name, addresses) for name in addresses]
    started: list[Remote] = []
    try:
        for member in members:
            started.append(member)
            await member.start()
        made = Cluster(members)
        await made.leader()
        yield made
    finally:
        await asyncio.gather(*[member.kill() for member in started])
