"""Three members of a log, as processes of their own on loopback, for `tests.bench.raft`."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from swarm.identity import TlsFiles

from tests.bench.subject import Missed
from tests.support.json_lines import LineProcess, ProcessEnded
from tests.unit.raft.conftest import Lab, free_port


class Remote(LineProcess):
    """One member."""

    def __init__(self, directory: Path, name: str, members: dict[str, str]) -> None:
        words = (str(directory), name, json.dumps(members))
        super().__init__("tests.bench.raft_member", name, *words, errors=directory / f"{name}.log")

    async def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Raises Missed where the member says so, or has ended."""
        try:
            answer = await self.request({"do": do, **arguments})
        except ProcessEnded as error:
            raise Missed(f"{do}: {error}") from error
        if "error" in answer:
            raise Missed(f"{do}: {answer['error']}")
        return answer


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
