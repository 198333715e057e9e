"""The metrics listener: a page for those who may read it."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path

import pytest
from swarm.errors import FailedPrecondition, InternalError, InvalidArgument
from swarm.identity import TlsFiles
from swarm.keys import new_key_and_request
from swarm.metrics_listener import MAX_HEAD_BYTES, MetricsListener
from swarm.v1 import types_pb2 as types

from orchestrator.identity.authority import RootAuthority

TOKEN = "a-long-enough-token"


def page() -> bytes:
    return b"swarm_up 1\n"


async def ask(port: int, request: bytes, context: ssl.SSLContext | None = None) -> bytes:
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname="localhost" if context else None
        )
        writer.write(request)
        answer = await reader.read()
        writer.close()
        return answer


async def test_the_page_is_served_on_loopback() -> None:
    listener = MetricsListener("127.0.0.1:0", page)
    await listener.start()
    try:
        answer = await ask(listener.port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\nswarm_up 1\n")
        assert b"404" in await ask(listener.port, b"GET / HTTP/1.1\r\n\r\n")
        assert b"405" in await ask(listener.port, b"POST /metrics HTTP/1.1\r\n\r\n")
        assert not (await ask(listener.port, b"HEAD /metrics HTTP/1.1\r\n\r\n")).endswith(b"1\n")
    finally:
        await listener.stop()


async def test_an_endless_request_is_cut_off() -> None:
    listener = MetricsListener("127.0.0.1:0", page)
    await listener.start()
    try:
        with pytest.raises((ConnectionResetError, AssertionError)):
            assert await ask(listener.port, b"GET /" + b"x" * (3 * MAX_HEAD_BYTES))
    finally:
        await listener.stop()


async def test_a_taken_address_is_named() -> None:
    listener = MetricsListener("127.0.0.1:0", page)
    await listener.start()
    try:
        with pytest.raises(InternalError, match=str(listener.port)):
            await MetricsListener(f"127.0.0.1:{listener.port}", page).start()
    finally:
        await listener.stop()


def test_other_hosts_need_a_token(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="token"):
        MetricsListener("192.0.2.1:9323", page)
    short = tmp_path / "short"
    short.write_text("secret")
    with pytest.raises(FailedPrecondition, match="shorter"):
        MetricsListener("192.0.2.1:9323", page, token_file=short, tls=TlsFiles(tmp_path))
    with pytest.raises(FailedPrecondition, match="read"):
        MetricsListener("192.0.2.1:9323", page, token_file=tmp_path / "none", tls=TlsFiles(tmp_path))


async def test_beyond_loopback_it_is_tls_and_a_bearer_token(tmp_path: Path) -> None:
    authority = RootAuthority.create("c1", time.time())
    keys = new_key_and_request("n1")
    files = TlsFiles(tmp_path / "certificates")
    chain = authority.issue_node(keys.csr_pem, "n1", types.NODE_ROLE_MANAGER, now=time.time())
    files.write(keys.key_pem, chain, authority.certificate_pem)
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    listener = MetricsListener("0.0.0.0:0", page, token_file=token, tls=files)
    await listener.start()
    context = ssl.create_default_context(cadata=authority.certificate_pem.decode())
    try:
        request = b"GET /metrics HTTP/1.1\r\n"
        assert b"401" in await ask(listener.port, request + b"\r\n", context)
        assert b"401" in await ask(listener.port, request + b"Authorization: Bearer wrong\r\n\r\n", context)
        answer = await ask(listener.port, request + f"Authorization: Bearer {TOKEN}\r\n\r\n".encode(), context)
        assert answer.endswith(b"swarm_up 1\n")
    finally:
        await listener.stop()
