"""Three real processes with real disks under kill -9 and SIGSTOP: what clients saw must be linearizable, nothing lost."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from swarm.identity import TlsFiles

from tests.support.json_lines import LineProcess, ProcessEnded
from tests.support.linearizability import Operation, violations
from tests.unit.raft.conftest import Lab, free_port

KEYS = ("a", "b", "c")


class Process(LineProcess):
    """One member."""

    def __init__(self, directory: Path, name: str, founders: dict[str, str]) -> None:
        words = (str(directory), name, json.dumps(founders))
        super().__init__("tests.simulation.raft.member", name, *words, errors=directory / f"{name}.log")

    async def ask(self, kind: str, key: str, value: str | None, timeout: float) -> dict[str, Any]:
        request = {"kind": kind, "key": key, "value": value, "timeout": timeout}
        try:
            return await asyncio.wait_for(self.request(request), timeout + 2)
        except (ProcessEnded, TimeoutError):
            return {"outcome": "unknown"}


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[list[Process]]:
    lab = Lab(tmp_path)
    founders = {f"process{number}": f"127.0.0.1:{free_port()}" for number in range(3)}
    for name in founders:
        tls = lab.certificate(name)
        TlsFiles(tmp_path / "certificates" / name).write(tls.key, tls.certificate, tls.ca)
    members = [Process(tmp_path, name, founders) for name in founders]
    try:
        await asyncio.gather(*[member.start() for member in members])
        yield members
    finally:
        for member in members:
            with contextlib.suppress(ProcessLookupError):
                await member.kill()


class Clients:
    """Writes and reads of unique values, each remembered with its times and its outcome."""

    def __init__(self, members: list[Process], rng: random.Random) -> None:
        self.members, self.rng = members, rng
        self.history: list[Operation] = []
        self.done = 0
        self._values = itertools.count()
        self._last = members[0]

    async def work(self, until: float) -> None:
        while time.monotonic() < until:
            await self.one()

    async def one(self) -> bool:
        kind, key = self.rng.choice(("write", "write", "read")), self.rng.choice(KEYS)
        value = f"v{next(self._values)}" if kind == "write" else None
        operation = Operation(key, kind, value, time.monotonic(), known=False)
        if kind == "write":
            self.history.append(operation)
        member = self._last
        answer = await member.ask(kind, key, value, 1.0)
        if answer["outcome"] == "done":
            operation.known, operation.returned = True, time.monotonic()
            self.done += 1
            if kind == "read":
                operation.value = answer["value"]
                self.history.append(operation)
            return True
        if answer["outcome"] == "refused" and kind == "write":
            self.history.remove(operation)  # surely not written
        self._last = self.rng.choice(self.members)
        await asyncio.sleep(0.01)
        return False


async def test_clients_see_one_register_through_kills_and_pauses(processes: list[Process]) -> None:
    rng = random.Random(5)
    clients = Clients(processes, rng)
    end = time.monotonic() + 15
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(clients.work(end))
        while time.monotonic() < end - 3:
            await asyncio.sleep(rng.uniform(0.3, 1.0))
            victim = rng.choice(processes)
            if rng.random() < 0.5:
                await victim.kill()
                await asyncio.sleep(rng.uniform(0.0, 0.5))
                await victim.start()
            else:
                victim.pause()
                await asyncio.sleep(rng.uniform(0.1, 1.2))
                victim.go_on()
    assert clients.done > 200
    assert violations(clients.history) == []


async def test_everything_acknowledged_survives_all_members_killed_at_once(processes: list[Process]) -> None:
    clients = Clients(processes, random.Random(6))
    end = time.monotonic() + 3
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(clients.work(end))
        await asyncio.sleep(2)
        await asyncio.gather(*[member.kill() for member in processes])
        await asyncio.gather(*[member.start() for member in processes])
    async with asyncio.timeout(20):
        for key in KEYS:
            while not await read(clients, key):  # noqa: ASYNC110 – the others are processes
                await asyncio.sleep(0.02)
    assert clients.done > 50
    assert violations(clients.history) == []


async def read(clients: Clients, key: str) -> bool:
    for member in clients.members:
        called = time.monotonic()
        answer = await member.ask("read", key, None, 1.0)
        if answer["outcome"] == "done":
            clients.history.append(Operation(key, "read", answer["value"], called, time.monotonic()))
            return True
    return False
