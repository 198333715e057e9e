"""A channel connects although the server is slow to answer the handshake: many agents turn to one manager at once."""

from __future__ import annotations

import asyncio
import time

from swarm.channels import open_channel
from swarm.identity import TlsMaterial
from swarm.keys import new_key_and_request
from swarm.names import MANAGER_TLS_NAME
from swarm.servers import RpcServer
from swarm.v1 import types_pb2 as types

from orchestrator.identity.authority import RootAuthority

SLOWNESS = 0.7  # seconds before the first byte goes on
DEADLINE = 20.0


async def test_an_attempt_may_take_longer_than_a_quick_handshake() -> None:
    authority = RootAuthority.create("c1", time.time())
    keys = new_key_and_request("n1")
    chain = authority.issue_node(keys.csr_pem, "n1", types.NODE_ROLE_MANAGER, now=time.time())
    tls = TlsMaterial(keys.key_pem, chain, authority.certificate_pem)
    server = RpcServer()
    port = server.listen_tls("127.0.0.1:0", lambda: tls)
    await server.start()
    attempts = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        await asyncio.sleep(SLOWNESS)
        onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, onward_writer), copy(onward_reader, writer))

    proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        async with open_channel(f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}", tls, MANAGER_TLS_NAME) as channel:
            async with asyncio.timeout(DEADLINE):
                await channel.channel_ready()
        assert attempts == 1
    finally:
        proxy.close()
        await server.stop(0)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()
