"""Pulls under way: each image once however many wait for it, and what they hear while a registry keeps them waiting.

buildah gives a registry that does not answer half a minute, several times over, and says nothing meanwhile.  So its words
are watched: where none comes, those who wait are told after a few seconds, and the registry's port is tried once by
ourselves.  Only where that fails as well, and no mirror or proxy could serve instead, the pull is given up.  A registry
that answers is never tried, and never given up for being slow.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from swarm.errors import Unavailable

from agent.images.complaints import PULLED, explain
from agent.images.reference import PUBLIC_HOST, PUBLIC_REGISTRY, Reference

PATIENCE = 3.0  # seconds of silence before the registry has answered
CONNECT_TIMEOUT = 5.0  # seconds for the port to accept a connection; a lost packet is sent again after 1 and 3
_RETRYING = re.compile(r"\bretrying in\b", re.IGNORECASE)

Tell = Callable[[str], None]  # the trouble that a pull is in; "" when that is over
Probe = Callable[[], Awaitable[str]]  # why the registry accepts no connection; "" where it does


@dataclass(frozen=True)
class Step:
    """Something that buildah said, or trouble (`""`: it is over)."""

    line: str = ""
    trouble: str | None = None


@dataclass
class _Pull:
    job: asyncio.Task[None]
    listeners: list[Tell] = field(default_factory=list)
    trouble: str = ""


class Pulls:
    """`pull` runs one pull to its end and tells its trouble."""

    def __init__(self, pull: Callable[[Reference, str, Tell], Awaitable[None]]) -> None:
        self._pull = pull
        self._under_way: dict[tuple[str, str], _Pull] = {}

    async def join(self, wanted: Reference, auth: str, tell: Tell) -> None:
        """Joins a pull that is under way, or begins one. It ends when nobody waits for it any more."""
        key = (wanted.pullable, auth)
        pull = self._under_way.get(key)
        if pull is None:
            pull = self._under_way[key] = self._begin(key, wanted, auth)
        elif pull.trouble:
            tell(pull.trouble)
        pull.listeners.append(tell)
        try:
            await asyncio.shield(pull.job)
        finally:
            pull.listeners.remove(tell)
            if not pull.listeners and not pull.job.done():
                self._forget(key, pull)
                pull.job.cancel()
                await asyncio.gather(pull.job, return_exceptions=True)

    def _begin(self, key: tuple[str, str], wanted: Reference, auth: str) -> _Pull:
        def spread(trouble: str) -> None:
            pull.trouble = trouble
            for listener in pull.listeners:
                listener(trouble)

        async def run() -> None:
            await self._pull(wanted, auth, spread)

        pull = _Pull(asyncio.ensure_future(run()))
        pull.job.add_done_callback(lambda _: self._forget(key, pull))
        return pull

    def _forget(self, key: tuple[str, str], pull: _Pull) -> None:
        if self._under_way.get(key) is pull:
            del self._under_way[key]


async def watched(
    lines: AsyncGenerator[str, None], wanted: Reference, probe: Probe, *, patience: float = PATIENCE
) -> AsyncGenerator[Step, None]:
    """The lines of a pull with its trouble among them. Raises Unavailable where `probe` finds no registry."""
    subject = f"image {wanted}"
    answered, trouble = False, ""
    async with aclosing(lines):
        while True:
            upcoming = asyncio.ensure_future(_next(lines))
            try:
                if not answered:
                    await asyncio.wait({upcoming}, timeout=patience)
                if not answered and not upcoming.done():
                    trouble = f"{subject}: the registry {wanted.registry} has not answered yet"
                    yield Step(trouble=trouble)
                    reason = await _unless(upcoming, probe())
                    if reason:
                        raise Unavailable(f"{subject}: the registry cannot be reached: {reason}")
                line = await upcoming
            finally:
                upcoming.cancel()
                await asyncio.gather(upcoming, return_exceptions=True)
            if line is None:
                return
            yield Step(line=line)
            if _RETRYING.search(line):
                trouble = f"{explain(subject, line)}; trying again"
                yield Step(trouble=trouble)
            elif line.startswith(PULLED):
                answered = True
                if trouble:
                    trouble = ""
                    yield Step(trouble="")


async def _next(lines: AsyncGenerator[str, None]) -> str | None:
    return await anext(lines, None)


async def _unless(first: asyncio.Future[str | None], probe: Awaitable[str]) -> str:
    """What the probe finds; "" where buildah says something before."""
    probing = asyncio.ensure_future(probe)
    try:
        waits: set[asyncio.Future[Any]] = {first, probing}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        return "" if first.done() else probing.result()
    finally:
        probing.cancel()
        await asyncio.gather(probing, return_exceptions=True)


def address_of(registry: str) -> tuple[str, int]:
    """Host and port that a registry's name means."""
    name = PUBLIC_HOST if registry == PUBLIC_REGISTRY else registry
    host, colon, port = name.rpartition(":")
    if colon and port.isdigit():
        return host.strip("[]"), int(port)
    return name.strip("[]"), 443


async def unreachable(registry: str) -> str:
    """Why a registry accepts no connection; "" where it does."""
    host, port = address_of(registry)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return f"{host} did not answer on port {port} within {CONNECT_TIMEOUT:g} s"
    except OSError as error:
        return f"{host} port {port}: {error.strerror or error}"
    except (UnicodeError, OverflowError):  # a part of the name is longer than names may be, or the number than a port's
        return f"{host} port {port} is not the address of a host"
    writer.transport.abort()
    return ""


def goes_elsewhere(registries_files: list[str], environment: dict[str, str] | None = None) -> bool:
    """Whether a registry's own address says nothing, because requests go through a proxy, to a mirror, or to another location.
    `registries_files`: texts of registries.conf."""
    names = {name.lower() for name, value in (environment if environment is not None else os.environ).items() if value}
    if names & {"https_proxy", "http_proxy", "all_proxy"}:
        return True
    lines = (line.strip().replace(" ", "") for text in registries_files for line in text.splitlines())
    return any(line.startswith(("[[registry.mirror]]", "mirror=", "location=")) for line in lines)
