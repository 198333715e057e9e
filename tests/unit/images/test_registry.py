"""What a registry answers: digests with and without the header, tokens, refusals. A small server plays the registry."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import socket
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from swarm.errors import NotFound, PermissionDenied, Unavailable

from agent.images.reference import parse
from agent.images.registry import manifest_digest, parse_challenge

BODY = b'{"schemaVersion": 2}'
DIGEST = f"sha256:{hashlib.sha256(BODY).hexdigest()}"


class _Handler(BaseHTTPRequestHandler):
    """`free` needs nothing, `bare` names no digest, `token` wants a token, `secret` credentials, `broken` fails."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        authorization = self.headers.get("Authorization", "")
        host = self.headers["Host"]
        if self.path.startswith("/token"):
            assert "scope=repository%3Atoken%3Apull" in self.path and "service=here" in self.path
            user = base64.b64decode(authorization.removeprefix("Basic ")).decode()
            granted = user in ("", "u:p")
            self._send(200 if granted else 401, b'{"token": "t"}')
        elif self.path.startswith("/v2/free/manifests/1"):
            assert "image.index" in self.headers["Accept"]
            self._send(200, BODY, {"Docker-Content-Digest": DIGEST})
        elif self.path.startswith("/v2/bare/"):
            self._send(200, BODY)
        elif self.path.startswith("/v2/token/") and authorization != "Bearer t":
            self._send(401, b"", {"WWW-Authenticate": f'Bearer realm="http://{host}/token",service="here"'})
        elif self.path.startswith("/v2/secret/") and not authorization:
            self._send(401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
        elif self.path.startswith("/v2/secret/"):
            right = base64.b64decode(authorization.removeprefix("Basic ")) == b"u:p"
            self._send(200 if right else 401, BODY)
        elif self.path.startswith("/v2/token/"):
            self._send(200, BODY)
        elif self.path.startswith("/v2/odd/"):
            self._send(401, b"", {"WWW-Authenticate": 'Bearer realm="http://[odd/token",service="here"'})
        elif self.path.startswith("/v2/elsewhere/"):
            scheme = self.path.split("/")[3]
            self._send(401, b"", {"WWW-Authenticate": f'Bearer realm="{scheme}://auth.test/token",service="here"'})
        elif self.path.startswith("/v2/plain/"):
            self._send(401, b"", {"WWW-Authenticate": f'Bearer realm="https://{host}/token",service="here"'})
        elif self.path.startswith("/v2/broken/"):
            self._send(503, b"")
        else:
            self._send(404, b"")

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def registry() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


async def ask(text: str, credentials: tuple[str, str] | None = None) -> str:
    async with asyncio.timeout(60):
        return await manifest_digest(parse(text), credentials=credentials, tls=None)


@pytest.mark.parametrize("path", ["free:1", "bare", "token", "token@" + DIGEST])
async def test_the_digest_of_a_manifest(registry: str, path: str) -> None:
    assert await ask(f"{registry}/{path}") == DIGEST


async def test_credentials(registry: str) -> None:
    for path in ("secret", "token"):
        assert await ask(f"{registry}/{path}", ("u", "p")) == DIGEST
        with pytest.raises(PermissionDenied, match=registry):
            await ask(f"{registry}/{path}", ("u", "wrong"))
    with pytest.raises(PermissionDenied, match="asks for credentials"):
        await ask(f"{registry}/secret")


async def test_refusals_name_the_registry(registry: str) -> None:
    with pytest.raises(NotFound, match=registry):
        await ask(f"{registry}/nothing")
    with pytest.raises(Unavailable, match="503"):
        await ask(f"{registry}/broken")


def test_challenges() -> None:
    text = 'Bearer realm="https://auth.io/token",service="reg.io",scope="repository:a/b:pull"'
    assert parse_challenge(text) == (
        "bearer",
        {"realm": "https://auth.io/token", "service": "reg.io", "scope": "repository:a/b:pull"},
    )
    assert parse_challenge("") == ("", {})


async def test_what_is_no_address_is_told_in_a_sentence(registry: str) -> None:
    """`service create --image` with a registry whose name or port is too long, or one that names an odd token service: "the
    node daemon failed unexpectedly"."""
    for text in (f"{'a' * 64}.example.com/web:1", f"127.0.0.1:{'9' * 20}/web:1", f"{registry}/odd:1"):
        with pytest.raises(Unavailable, match="the registry cannot be reached"):
            await ask(text)


async def test_a_token_service_without_tls_is_told_in_a_sentence(registry: str) -> None:
    """`service create --image` where a registry names its token service by https, which speaks http only: "the node daemon
    failed unexpectedly"."""
    with pytest.raises(Unavailable, match=f"token service does not speak TLS: https://{registry}/token"):
        await ask(f"{registry}/plain:1")


@pytest.mark.parametrize("reason", ["PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"])
async def test_a_registry_of_this_host_without_tls_is_asked_without(
    reason: str, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL calls an answer that is no TLS by several names, by version and by chance: with one of them a registry on
    localhost could not be reached."""
    error = ssl.SSLError(1, f"[SSL: {reason}]")
    error.reason = reason

    def https_open(handler: urllib.request.HTTPSHandler, request: urllib.request.Request) -> object:
        raise urllib.error.URLError(error)

    monkeypatch.setattr(urllib.request.HTTPSHandler, "https_open", https_open)
    assert await ask(f"{registry}/free:1") == DIGEST


async def test_a_token_service_elsewhere_must_show_its_certificate(
    registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry on this host, a cache say, named the token service of Docker Hub: that was told the password of whoever asked,
    whatever certificate it showed, or none at all."""
    plain = ssl.SSLError(1, "[SSL]")
    plain.reason = "HTTP_REQUEST"
    asked: list[tuple[str, int]] = []

    def https_open(handler: urllib.request.HTTPSHandler, request: urllib.request.Request) -> object:
        asked.append((request.host, handler._context.verify_mode))
        raise urllib.error.URLError(plain if request.host == registry else "nobody there")

    monkeypatch.setattr(urllib.request.HTTPSHandler, "https_open", https_open)
    with pytest.raises(Unavailable, match="nobody there"):
        await ask(f"{registry}/elsewhere/https:1", ("u", "p"))
    assert set(asked) == {(registry, ssl.CERT_NONE), ("auth.test", ssl.CERT_REQUIRED)}
    with pytest.raises(Unavailable, match="token service without TLS: http://auth"):
        await ask(f"{registry}/elsewhere/http:1", ("u", "p"))


async def test_a_registry_that_never_ends_its_answer_holds_up_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some images of a registry that sent its answers byte by byte were asked for: `service create` waited for ever, and the
    node was down, because swarmd could write no file any more."""
    monkeypatch.setattr("agent.images.registry.DEADLINE", 0.3)
    over = threading.Event()

    def drip(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while not over.wait(0.01):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=(server,))
        thread.start()
        error = ssl.SSLError(1, "[SSL]")
        error.reason = "HTTP_REQUEST"

        def https_open(handler: urllib.request.HTTPSHandler, request: urllib.request.Request) -> object:
            raise urllib.error.URLError(error)

        monkeypatch.setattr(urllib.request.HTTPSHandler, "https_open", https_open)
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        asking = asyncio.create_task(ask(f"127.0.0.1:{server.getsockname()[1]}/web:1"))
        try:
            await asyncio.sleep(0.1)
            async with asyncio.timeout(2):
                await asyncio.to_thread(int)
                with pytest.raises(Unavailable, match="did not answer within"):
                    await asking
        finally:
            over.set()
            thread.join()


def test_a_registry_that_never_ends_its_answer_does_not_keep_the_process_from_ending() -> None:
    """swarmd was told to end while a registry that sent its answer byte by byte was asked: it ended only when that did, and its
    node was down meanwhile."""
    over = threading.Event()

    def drip(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")  # which is no TLS: it comes again without
            while not over.wait(0.01):
                connection.sendall(b"x")

    def serve(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=drip, args=(server.accept()[0],)).start()

    script = """if True:
        import asyncio, sys
        from agent.images import registry
        from agent.images.reference import parse
        registry.DEADLINE = 1.0
        asking = registry.manifest_digest(parse(sys.argv[1]), credentials=None, tls=None)
        try:
            asyncio.run(asking)
        except registry.Unavailable as error:
            print(error)
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        reference = f"127.0.0.1:{server.getsockname()[1]}/web:1"
        try:
            ended = subprocess.run(
                [sys.executable, "-c", script, reference], check=True, capture_output=True, text=True, timeout=20
            )
        finally:
            over.set()
    assert "did not answer within 1 s" in ended.stdout
