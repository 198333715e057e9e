"""The metrics listener: one page over HTTP.

On loopback it is plain. Anywhere else it is TLS with the node's certificate, and answers only who sends the bearer token.
It speaks just enough HTTP/1.1 for Prometheus and curl, closes after each answer, and bounds whatever a stranger can send.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from swarm.enrolment import split_address
from swarm.errors import FailedPrecondition, InternalError, InvalidArgument
from swarm.identity import TlsFiles

if TYPE_CHECKING:
    import ssl

log = logging.getLogger(__name__)

REQUEST_TIMEOUT = 5.0  # seconds for a whole request, and for its answer to be taken
MAX_HEAD_BYTES = 16 << 10
MAX_CONNECTIONS = 16
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class MetricsListener:
    """Serves what `page` returns as /metrics on `address` (HOST:PORT; port 0 chooses one)."""

    def __init__(
        self,
        address: str,
        page: Callable[[], bytes],
        *,
        token_file: Path | None = None,
        tls: TlsFiles | None = None,
        plain: bool = False,
        load: Callable[[], object] = lambda: None,
    ) -> None:
        """Raises InvalidArgument where the address is not loopback and there is no token, unless whoever runs this chose to
        let everybody read (`plain`). `load` is called on a thread before each page, for what the page imports first."""
        self._host, self._port = split_address(address) if not address.endswith(":0") else (address[:-2], 0)
        self._page = page
        self._load = load
        self._tls = None if is_loopback(self._host) else tls
        self._token = _read_token(token_file) if token_file is not None else None
        if not plain and not is_loopback(self._host) and (self._token is None or tls is None):
            raise InvalidArgument(
                f"metrics on {address}: other hosts could read them; name a file with a bearer token (--metrics-token) "
                "or serve them on 127.0.0.1"
            )
        self._server: asyncio.Server | None = None
        self._connections = 0
        self._context: ssl.SSLContext | None = None
        self._certificate_written = 0

    async def start(self) -> None:
        """Raises InternalError where the address is taken."""
        context = self._context = _server_context() if self._tls is not None else None
        self._load_certificate()
        try:
            self._server = await asyncio.start_server(
                self._serve, self._host, self._port, ssl=context, limit=MAX_HEAD_BYTES
            )
        except OSError as error:
            raise InternalError(f"metrics cannot be served on {self._host}:{self._port}: {error.strerror}") from error

    def _load_certificate(self) -> None:
        """Takes the certificate where it is another than the one in use: for the connections to come."""
        if self._tls is None or self._context is None:
            return
        written = self._tls.certificate.stat().st_mtime_ns
        if written != self._certificate_written:
            self._context.load_cert_chain(self._tls.certificate, self._tls.key)
            self._certificate_written = written

    @property
    def port(self) -> int:
        """The bound port."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                if self._connections > MAX_CONNECTIONS:
                    writer.write(_answer("503 Service Unavailable", b"too many connections\n"))
                else:
                    head = await reader.readuntil(b"\r\n\r\n")
                    await asyncio.to_thread(self._load)
                    writer.write(self.answer(head))
                await writer.drain()
                self._load_certificate()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever asked does not speak HTTP, or went away
        finally:
            self._connections -= 1
            writer.close()

    def answer(self, head: bytes) -> bytes:
        """The whole answer to a request's head."""
        lines = head.decode("latin-1").split("\r\n")
        method, _, rest = lines[0].partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if self._token is not None and not self._knows_token(lines[1:]):
            return _answer("401 Unauthorized", b"a bearer token is needed\n", "WWW-Authenticate: Bearer\r\n")
        if method not in ("GET", "HEAD"):
            return _answer("405 Method Not Allowed", b"only GET\n")
        if path != "/metrics":
            return _answer("404 Not Found", b"metrics are at /metrics\n")
        page = _answer("200 OK", self._page())
        return page if method == "GET" else page.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"

    def _knows_token(self, headers: list[str]) -> bool:
        assert self._token is not None
        for header in headers:
            name, _, value = header.partition(":")
            if name.strip().lower() == "authorization":
                return hmac.compare_digest(value.strip().encode(), b"Bearer " + self._token)
        return False


def _server_context() -> ssl.SSLContext:
    import ssl  # 4 MB that a listener on loopback does without

    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


def is_loopback(host: str) -> bool:
    """Whether only this host can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_token(path: Path) -> bytes:
    try:
        token = path.read_bytes().strip()
    except OSError as error:
        raise FailedPrecondition(f"the metrics token cannot be read: {error}") from error
    if len(token) < 16:
        raise FailedPrecondition(f"the metrics token in {path} is shorter than 16 characters; make a longer one")
    return token


def _answer(status: str, body: bytes, headers: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n"
        f"{headers}Connection: close\r\n\r\n"
    )
    return head.encode() + body
