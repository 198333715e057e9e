"""A relay that is cancelled while its leader does not answer."""

from __future__ import annotations

import asyncio
import random
import socket
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import grpc.aio
import pytest
from swarm import cancellation
from swarm.clock import SystemClock
from swarm.errors import Unavailable

from orchestrator.dispatcher.relay import RelayClient


class NoStatuses:
    """Nothing waits to be relayed."""

    def __bool__(self) -> bool:
        return False


def hub() -> Any:
    """As much of a dispatcher as a relay without sessions looks at."""
    return SimpleNamespace(
        node_id="m1", clock=SystemClock(), period=1.0, sessions=list, catch_up=lambda: 0, statuses=NoStatuses(),
        mirrors=SimpleNamespace(index=0),
    )  # fmt: skip


async def test_it_ends_also_where_the_cancellation_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found in a lab: a cancellation that met the end of the call came out of grpc.aio as a failed call. The relay to a dead
    leader went on for ever, and the manager that had been elected meanwhile never began to lead."""

    async def lost(_: RelayClient) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise Unavailable("leader: Internal error from Core") from None

    monkeypatch.setattr(RelayClient, "_relay", lost)
    task = asyncio.create_task(RelayClient(hub(), MagicMock(), rng=random.Random(1)).run())
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait({task}, timeout=2)
    assert task.cancelled()


async def test_it_ends_while_the_connection_comes_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        relay = RelayClient(hub(), lambda: grpc.aio.insecure_channel(address), rng=random.Random(1))
        for wait in (0.05, 0.2, 0.5):
            task = asyncio.create_task(relay.run())
            await asyncio.sleep(wait)
            task.cancel()
            await asyncio.wait({task}, timeout=2)
            assert task.cancelled(), f"cancelled after {wait} s, it is still {task}"


async def test_who_does_not_notice_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancellation, "_PATIENCE", 0.05)

    async def deaf(times: int) -> str:
        for _ in range(times):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cast("asyncio.Task[Any]", asyncio.current_task()).uncancel()
        return "over"

    tasks = [asyncio.create_task(deaf(times)) for times in (1, 3)]
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert await cancellation.cancelled(*tasks) == ["over", "over"]
