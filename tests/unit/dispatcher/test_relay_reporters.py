"""Whom the leader acknowledges relayed statuses to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest
from swarm.identity import Peer, Role
from swarm.v1 import dispatcher_pb2 as dispatcher

from orchestrator.dispatcher import relay
from orchestrator.dispatcher.leader import relay_reporter
from orchestrator.dispatcher.relay import RelayServicer


async def test_no_connection_is_taken_for_an_earlier_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower was restarted while nothing could be written, and counts its batches from one again: what its connection
    before had sent counted for this one, and statuses were acknowledged that no manager had written."""
    monkeypatch.setattr(relay, "current_peer", lambda: Peer("m2", Role.MANAGER, "c1"))
    reporters: list[str] = []

    def opened(connection: Any) -> None:
        reporters.append(relay_reporter(connection))
        connection.alive(1.0, 0.0)

    leader: Any = SimpleNamespace(relay_opened=opened, relay_closed=lambda _: None, period=1.0)
    servicer = RelayServicer(SimpleNamespace(), lambda: leader)  # type: ignore[arg-type]

    async def hello() -> AsyncIterator[dispatcher.RelayUp]:
        yield dispatcher.RelayUp(hello=dispatcher.RelayHello(manager_id="m2"))

    for _ in range(20):
        async with aclosing(servicer.Relay(hello(), SimpleNamespace())) as answers:  # type: ignore[type-var, arg-type]
            await anext(answers)
    assert len(set(reporters)) == 20
