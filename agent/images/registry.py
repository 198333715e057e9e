"""Asking a registry which manifest a reference means, over its HTTP API (the distribution project's version 2).

One HEAD request, and where the registry wants that a token first.  The answer is the digest of what the reference names: for
an image of several platforms that is the list, so that every node takes its own variant of the same release.  Runs in a
thread, because the standard library's client blocks; urllib and ssl are imported there, at the first use.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING

from swarm.errors import InternalError, NotFound, PermissionDenied, SwarmError, Unavailable
from swarm.identity import TlsFiles

from agent.images.reference import PUBLIC_HOST, PUBLIC_REGISTRY, Reference

if TYPE_CHECKING:
    import ssl
    from email.message import Message

TIMEOUT = 10.0  # seconds for each piece of an answer
DEADLINE = 60.0  # seconds for all of it
MAX_MANIFEST = 4 << 20  # bytes, the limit that registries keep
# how OpenSSL's versions call an answer that is no TLS
_PLAIN_TEXT = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")
_MANIFESTS = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)


class _Threads:
    """Apart from those that the daemon's own files are written on: a registry that sends byte after byte keeps one busy for
    hours. No `ThreadPoolExecutor`, because the process must not wait for such a one when it ends."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._started = 0
        self._jobs: SimpleQueue[tuple[Future[str], Callable[[], str]]] = SimpleQueue()

    async def run(self, job: Callable[[], str]) -> str:
        future: Future[str] = Future()
        self._jobs.put((future, job))
        if self._started < self._limit:
            threading.Thread(target=self._work, name=f"registry-{self._started}", daemon=True).start()
            self._started += 1
        return await asyncio.wrap_future(future)

    def _work(self) -> None:
        while True:
            future, job = self._jobs.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(job())
                except BaseException as error:  # noqa: BLE001 – raised where it is waited for
                    future.set_exception(error)


_threads = _Threads(4)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Message
    body: bytes


async def manifest_digest(reference: Reference, *, credentials: tuple[str, str] | None, tls: TlsFiles | None) -> str:
    """The digest of a reference's manifest. `tls`: the node's certificate, for a registry under the cluster's authority.

    Raises NotFound, PermissionDenied, Unavailable; each names the reference with its registry.
    """
    client = _Client(reference, credentials, tls)
    try:
        async with asyncio.timeout(DEADLINE):
            return await _threads.run(client.digest)
    except TimeoutError:
        raise Unavailable(f"image {reference}: the registry did not answer within {DEADLINE:g} s") from None


class _Client:
    """One question to one registry."""

    def __init__(self, reference: Reference, credentials: tuple[str, str] | None, tls: TlsFiles | None) -> None:
        self._reference = reference
        self._credentials = credentials
        self._tls = tls
        self._contexts: dict[bool, ssl.SSLContext] = {}  # by whether certificates are left unread
        self._only_cluster = tls is not None  # until the registry showed a certificate of somebody else's
        # a registry on this host may be one without TLS
        self._plain_allowed = tls is None and reference.is_loopback

    def digest(self) -> str:
        host = PUBLIC_HOST if self._reference.registry == PUBLIC_REGISTRY else self._reference.registry
        wanted = self._reference.digest or self._reference.tag
        path = f"{host}/v2/{self._reference.path}/manifests/{wanted}"
        answer = self._authorised("HEAD", path)
        found = answer.headers.get("Docker-Content-Digest", "")
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", found):
            body = self._authorised("GET", path).body
            found = f"sha256:{hashlib.sha256(body).hexdigest()}"
        return found

    def _authorised(self, method: str, path: str) -> Answer:
        """The request, repeated with what the registry asks for where it asks."""
        headers = {"Accept": _MANIFESTS}
        answer = self._request(method, path, headers)
        if answer.status == 401:
            headers["Authorization"] = self._authorization(answer.headers.get("WWW-Authenticate", ""))
            answer = self._request(method, path, headers)
        self._check(answer)
        return answer

    def _check(self, answer: Answer) -> None:
        subject = f"image {self._reference}"
        if answer.status == 200:
            return
        if answer.status == 404:
            raise NotFound(f"{subject} was not found; push it to that registry first, or check its name")
        if answer.status in (401, 403):
            raise PermissionDenied(
                f"{subject}: the registry refused access; it needs credentials, or there is no such image"
            )
        raise Unavailable(f"{subject}: the registry answered with status {answer.status}; try again later")

    def _request(self, method: str, path: str, headers: dict[str, str]) -> Answer:
        try:
            return self._fetch(method, f"https://{path}", headers)
        except _Unencrypted:
            if not self._plain_allowed:
                raise Unavailable(f"image {self._reference}: the registry does not speak TLS") from None
        return self._fetch(method, f"http://{path}", headers)

    def _fetch(self, method: str, url: str, headers: dict[str, str]) -> Answer:
        import http.client
        import ssl
        import urllib.error
        import urllib.request

        handler = urllib.request.HTTPSHandler(context=self._ssl_context(trusting=self._is_here(url)))
        try:
            request = urllib.request.Request(url, method=method)
            for name, value in headers.items():
                request.add_unredirected_header(name, value)  # credentials are for this host only
            with urllib.request.build_opener(handler).open(request, timeout=TIMEOUT) as answer:
                return Answer(answer.status, answer.headers, answer.read(MAX_MANIFEST))
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, b"")
        except (OSError, http.client.HTTPException, ValueError, OverflowError) as error:  # no address, header or port
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, ssl.SSLCertVerificationError) and self._only_cluster:
                self._only_cluster, self._contexts = False, {}
                return self._fetch(method, url, headers)
            if isinstance(reason, ssl.SSLError) and reason.reason in _PLAIN_TEXT:
                raise _Unencrypted from error
            raise Unavailable(f"image {self._reference}: the registry cannot be reached: {reason}") from error

    def _is_here(self, url: str) -> bool:
        """Whether that may be asked without TLS. The token service that a registry on this host names may be elsewhere, and is
        told the password."""
        try:
            host = urllib.parse.urlsplit(url).netloc
        except ValueError:  # no address: the attempt will tell
            return self._plain_allowed
        return self._plain_allowed and Reference(host, "", "", "").is_loopback

    def _ssl_context(self, *, trusting: bool) -> ssl.SSLContext:
        """The cluster's CA is tried alone first: the host's hundred authorities cost 5 MB and 20 ms for each question."""
        import ssl

        context = self._contexts.get(trusting)
        if context is None:
            if trusting or self._only_cluster:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            else:
                context = ssl.create_default_context()
            if trusting:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if self._tls is not None:
                try:
                    context.load_verify_locations(self._tls.ca)
                    context.load_cert_chain(self._tls.certificate, self._tls.key)
                except (OSError, ssl.SSLError) as error:
                    raise InternalError(f"the node's certificate cannot be used for the registry: {error}") from error
            self._contexts[trusting] = context
        return context

    def _authorization(self, challenge: str) -> str:
        """The header that answers a challenge. Raises PermissionDenied where credentials are wanted and there are none."""
        scheme, parameters = parse_challenge(challenge)
        basic = ""
        if self._credentials is not None:
            basic = "Basic " + base64.b64encode(":".join(self._credentials).encode()).decode()
        if scheme == "bearer" and "realm" in parameters:
            return "Bearer " + self._token(parameters, basic)
        if not basic:
            raise self._refused()
        return basic

    def _refused(self) -> SwarmError:
        return PermissionDenied(f"image {self._reference}: the registry asks for credentials")

    def _token(self, parameters: dict[str, str], basic: str) -> str:
        realm = parameters["realm"]
        if not realm.startswith("https://") and not (self._is_here(realm) and realm.startswith("http://")):
            raise Unavailable(f"image {self._reference}: the registry names a token service without TLS: {realm}")
        query = {"service": parameters.get("service", "")}
        query["scope"] = parameters.get("scope", f"repository:{self._reference.path}:pull")
        url = f"{realm}{'&' if '?' in realm else '?'}{urllib.parse.urlencode(query)}"
        try:
            answer = self._fetch("GET", url, {"Authorization": basic} if basic else {})
        except _Unencrypted:
            raise Unavailable(
                f"image {self._reference}: the registry's token service does not speak TLS: {realm}"
            ) from None
        if answer.status in (401, 403):
            raise self._refused()
        with contextlib.suppress(ValueError, AttributeError, RecursionError):  # it is what a stranger sent
            fields = json.loads(answer.body)
            token = fields.get("token") or fields.get("access_token")
            if isinstance(token, str):
                return token
        raise Unavailable(
            f"image {self._reference}: the registry's token service gave no token (status {answer.status})"
        )


class _Unencrypted(Exception):
    """The other end does not speak TLS."""


def parse_challenge(text: str) -> tuple[str, dict[str, str]]:
    """`Bearer realm="…",service="…"` → ("bearer", {"realm": …})."""
    scheme, _, rest = text.strip().partition(" ")
    return scheme.lower(), {key.lower(): value for key, value in re.findall(r'([A-Za-z]+)="([^"]*)"', rest)}
