"""Passes questions that no network answers on to the host's resolvers (or to those that the service names).

The bytes of question and answer pass unchanged, so that EDNS and whatever follows it work. A question that came over TCP is
asked over TCP, and over UDP where TCP is refused.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from pathlib import Path

TIMEOUT_SECONDS = 2.0  # of one server
MAX_SERVERS = 3
MAX_ANSWER_BYTES = 65535
OURSELVES = "127.0.0.11"


class HostResolvers:
    """The name servers of the host's resolv.conf, read again when the file changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._servers: tuple[str, ...] = ()

    def servers(self) -> tuple[str, ...]:
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp != self._stamp:
                self._servers = parse_servers(self._path.read_text(errors="replace"))
                self._stamp = stamp
        except OSError:
            self._servers, self._stamp = (), None
        return self._servers


def parse_servers(text: str) -> tuple[str, ...]:
    """The addresses of the `nameserver` lines, without ourselves."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver" and words[1] != OURSELVES:
            try:
                ipaddress.ip_address(words[1].partition("%")[0])
            except ValueError:
                continue
            found.append(words[1])
    return tuple(found[:MAX_SERVERS])


async def forward(query: bytes, servers: tuple[str, ...], *, stream: bool, port: int = 53) -> bytes | None:
    """The first answer that one of the servers gives; None where none does."""
    for server in servers[:MAX_SERVERS]:
        for ask in (_over_tcp, _over_udp) if stream else (_over_udp,):
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    reply = await ask(query, server, port)
            except (OSError, asyncio.IncompleteReadError):  # TimeoutError is an OSError
                continue
            if reply[:2] == query[:2]:
                return reply
    return None


async def _over_udp(query: bytes, server: str, port: int) -> bytes:
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    # A socket for each question: the source port is as hard to guess as the id.
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as asking:
        await loop.sock_connect(asking, (server, port))
        await loop.sock_sendall(asking, query)
        while True:
            reply = await loop.sock_recv(asking, MAX_ANSWER_BYTES)
            if reply[:2] == query[:2]:
                return reply


async def _over_tcp(query: bytes, server: str, port: int) -> bytes:
    reader, writer = await asyncio.open_connection(server, port)
    try:
        writer.write(len(query).to_bytes(2, "big") + query)
        await writer.drain()
        return await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
    finally:
        writer.close()
