"""Many connections at once, on several threads of gRPC's, while certificates are renewed: the server lives on.

The server runs in a process of its own, because what this test is about ends processes: gRPC crashed within a few hundred
handshakes while it was given a configuration of its certificates at each.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import multiprocessing.connection
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from swarm.identity import TlsMaterial
from swarm.servers import RpcServer

from tests.unit.identity.certificates import TestAuthority

THREADS = 8
HANDSHAKES = 300  # by each thread
RENEWAL_PERIOD = 0.3
DEADLINE = 20.0


def serve(certificates: list[TlsMaterial], channel: multiprocessing.connection.Connection) -> None:
    """A server that shows each of the certificates in turn. Tells its port; ends when it is told something."""

    async def run() -> None:
        began = time.monotonic()
        server = RpcServer()
        port = server.listen_tls(
            "127.0.0.1:0",
            lambda: certificates[int((time.monotonic() - began) / RENEWAL_PERIOD) % len(certificates)],
        )
        await server.start()
        channel.send(port)
        await asyncio.to_thread(channel.poll, None)
        await server.stop(0)

    asyncio.run(run())


def test_a_server_outlives_many_handshakes_at_once_and_shows_renewed_certificates(tmp_path: Path) -> None:
    authority = TestAuthority()
    certificates = [authority.node("m1"), authority.node("m1")]
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(certificates, theirs), daemon=True)
    process.start()
    try:
        assert ours.poll(DEADLINE), "the server did not start"
        port = ours.recv()
        context = client_context(certificates[0], tmp_path)

        def shake_hands(_: int) -> set[bytes | None]:
            return {certificate_shown(port, context) for _ in itertools.repeat(None, HANDSHAKES)}

        with ThreadPoolExecutor(THREADS) as threads:
            shown = set[bytes | None]().union(*threads.map(shake_hands, range(THREADS)))
        assert len(shown) == len(certificates)
        ours.send("enough")
        process.join(DEADLINE)
        assert process.exitcode == 0
    finally:
        process.kill()


def client_context(tls: TlsMaterial, directory: Path) -> ssl.SSLContext:
    for name, data in (("ca", tls.ca), ("chain", tls.certificate), ("key", tls.key)):
        (directory / name).write_bytes(data)
    context = ssl.create_default_context(cafile=str(directory / "ca"))
    context.check_hostname = False
    context.load_cert_chain(directory / "chain", directory / "key")
    context.set_alpn_protocols(["h2"])
    return context


def certificate_shown(port: int, context: ssl.SSLContext) -> bytes | None:
    with socket.create_connection(("127.0.0.1", port), DEADLINE) as plain, context.wrap_socket(plain) as secure:
        return secure.getpeercert(binary_form=True)
