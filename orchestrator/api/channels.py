"""Connections of this manager to other managers and to agents, one for each peer, kept while they are in use.

A connection was made with the certificate of its time. When ours was renewed, the next call to a peer opens a new
connection; the old one is closed once the calls on it have had time to end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import grpc
from swarm.channels import open_channel
from swarm.identity import TlsMaterial
from swarm.names import AGENT_PORT
from swarm.v1 import types_pb2

MAX_CHANNELS = 256  # the least recently used ones go first
CLOSING_GRACE = 30.0  # seconds for calls on a replaced connection


@dataclass
class _Open:
    address: str
    tls: TlsMaterial
    channel: grpc.aio.Channel


class PeerChannels:
    """`tls` gives this manager's certificate as it is now (`TlsFiles.read`, cached by the caller)."""

    def __init__(self, tls: Callable[[], TlsMaterial]) -> None:
        self._tls = tls
        self._open: dict[str, _Open] = {}  # by expected name; in the order of use
        self._closing: set[asyncio.Task[None]] = set()

    def to(self, address: str, expected_name: str) -> grpc.aio.Channel:
        """The channel to the peer that proves to be `expected_name`, at `address` (HOST:PORT)."""
        tls = self._tls()
        known = self._open.pop(expected_name, None)
        if known is not None and (known.address != address or known.tls != tls):
            self._retire(known)
            known = None
        if known is None:
            known = _Open(address, tls, open_channel(address, tls, expected_name))
        self._open[expected_name] = known
        if len(self._open) > MAX_CHANNELS:
            self._retire(self._open.pop(next(iter(self._open))))
        return known.channel

    def to_agent(self, node: types_pb2.Node) -> grpc.aio.Channel:
        """The channel to a node's agent."""
        description = node.description
        host = f"[{description.address}]" if ":" in description.address else description.address
        return self.to(f"{host}:{description.agent_port or AGENT_PORT}", node.id)

    def _retire(self, old: _Open) -> None:
        closing = asyncio.get_running_loop().create_task(old.channel.close(CLOSING_GRACE))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Ends all connections at once."""
        closing = [*self._closing]
        for task in closing:
            task.cancel()
        await asyncio.gather(
            *closing, *(known.channel.close() for known in self._open.values()), return_exceptions=True
        )
        self._open.clear()
