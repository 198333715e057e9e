"""The one place that opens gRPC servers.

A server knows three kinds of listeners: mutual TLS (the caller is whoever its certificate says), TLS without a client
certificate (the enrolment port; the caller is anonymous), and a Unix socket (the caller is `local`). One interceptor
around every handler authenticates, authorizes by the table of `swarm.authorization`, turns `SwarmError` into a status,
and ends streams whose caller's certificate expires or is revoked: a stream that was opened in time would go on otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import grpc

from swarm.authorization import authorize
from swarm.channels import MAX_MESSAGE_BYTES
from swarm.errors import InternalError, ManagerDemoted, NodeRemoved, SwarmError, Unauthenticated, to_status
from swarm.identity import ANONYMOUS_PEER, LOCAL_PEER, Peer, Role, TlsMaterial, peer_from_auth_context
from swarm.names import SOCKET_GROUP
from swarm.streams import Pumped

log = logging.getLogger(__name__)

_RENEWAL_PAUSE = 0.05  # seconds; see _Certificates
REVOCATION_CHECK_PERIOD = 1.0  # seconds between looks at whether a stream's caller is still a member
# "ROLE NAME": set by a manager that forwards a call; believed of managers only.
FORWARDED_PEER_KEY = "swarm-forwarded-peer"

_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 1500),
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
]

_peer: ContextVar[Peer] = ContextVar("swarm_peer", default=ANONYMOUS_PEER)


_forwarded: ContextVar[bool] = ContextVar("swarm_forwarded", default=False)


def current_peer() -> Peer:
    """The authenticated caller of the method that is being served (the first one, where a manager forwarded the call)."""
    return _peer.get()


def is_forwarded() -> bool:
    """Whether the call that is being served was forwarded by another manager."""
    return _forwarded.get()


def forwarded_peer_metadata(peer: Peer) -> tuple[tuple[str, str], ...]:
    """The metadata by which a manager says for whom it forwards a call. Names are percent-encoded: metadata is ASCII."""
    return ((FORWARDED_PEER_KEY, f"{peer.role.value} {quote(peer.name)}"),)


class RpcServer:
    """A gRPC server. Add services, add listeners, start, stop.

    `is_revoked` answers whether a peer with a valid certificate is no longer welcome, `is_demoted` whether one whose
    certificate says manager has only the rights of a worker any more.
    """

    def __init__(
        self,
        *,
        anonymous: bool = False,
        is_revoked: Callable[[Peer], bool] = lambda _: False,
        is_demoted: Callable[[Peer], bool] = lambda _: False,
        maximum_calls: int | None = None,
    ) -> None:
        self._guard = _Guard(anonymous, is_revoked, is_demoted)
        self._server = grpc.aio.server(
            interceptors=[self._guard], options=_OPTIONS, maximum_concurrent_rpcs=maximum_calls
        )
        self._sockets: list[Path] = []

    @property
    def server(self) -> grpc.aio.Server:
        """For the generated `add_…Servicer_to_server` functions."""
        return self._server

    def listen_tls(self, address: str, source: Callable[[], TlsMaterial]) -> int:
        """Mutual TLS on HOST:PORT; `source` is asked at each new connection, so renewed certificates need no restart.

        Returns the bound port. Raises InternalError where the address is taken.
        """
        anonymous = self._guard.anonymous
        certificates = _Certificates(source, with_clients=not anonymous)
        credentials = grpc.dynamic_ssl_server_credentials(
            certificates.configuration(),
            certificates.renewed,  # type: ignore[arg-type]  # the stubs do not know of None
            require_client_authentication=not anonymous,
        )
        return self._bound(address, lambda: self._server.add_secure_port(address, credentials))

    def listen_unix(self, path: Path) -> None:
        """The local socket: for root and, where it exists, the group `swarm`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        before = os.umask(0o177)  # nobody else may connect before `start` gives it its group
        try:
            self._bound(str(path), lambda: self._server.add_insecure_port(f"unix:{path}"))
        finally:
            os.umask(before)
        self._sockets.append(path)

    @staticmethod
    def _bound(address: str, bind: Callable[[], int]) -> int:
        try:
            port = bind()
        except RuntimeError as error:
            raise InternalError(f"cannot listen on {address}: {error}") from error
        if port == 0:
            raise InternalError(f"cannot listen on {address}: the address is taken")
        return port

    async def start(self) -> None:
        await self._server.start()
        for path in self._sockets:
            path.chmod(0o660)
            with contextlib.suppress(LookupError, PermissionError):
                shutil.chown(path, group=SOCKET_GROUP)

    async def stop(self, grace: float = 0.5) -> None:
        await self._server.stop(grace)
        for path in self._sockets:
            path.unlink(missing_ok=True)


class _Certificates:
    """What a server shows at each new connection, on gRPC's own threads.

    A configuration is given only when it differs from the one before. gRPC replaces and frees what handshakes are made
    with whenever it is given one, and a handshake on another thread may be just between asking and taking its share of
    the old: given one at each connection, a few hundred connections at once crash the process. When it does change, the
    pause (gRPC asks one connection at a time) leaves those that have asked the time to take theirs.
    """

    def __init__(self, source: Callable[[], TlsMaterial], *, with_clients: bool) -> None:
        self._source = source
        self._with_clients = with_clients
        self._shown = source()

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(self._shown.key, self._shown.certificate)],
            root_certificates=self._shown.ca if self._with_clients else None,
        )

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """None: as before."""
        tls = self._source()
        if tls == self._shown:
            return None
        time.sleep(_RENEWAL_PAUSE)
        self._shown = tls
        return self.configuration()


class _Guard(grpc.aio.ServerInterceptor):
    """Authentication, authorization and errors around every handler."""

    def __init__(self, anonymous: bool, is_revoked: Callable[[Peer], bool], is_demoted: Callable[[Peer], bool]) -> None:
        self.anonymous = anonymous
        self._is_revoked = is_revoked
        self._is_demoted = is_demoted

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        codec = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.response_streaming:
            behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream
            wrapped = self._streaming(method, behaviour)
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
        else:
            behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary
            wrapped = self._unary(method, behaviour)
            make = (
                grpc.stream_unary_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_unary_rpc_method_handler
            )
        return make(wrapped, **codec)

    def _admit(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> tuple[Peer, ...]:
        """Admits the caller of `method` or raises. Returns who must stay welcome while the call lasts: the caller, and
        before it the manager that forwarded the call, if one did."""
        caller = self._as_it_is(self._identify(context))
        forwarded = self._forwarded_peer(caller, context)
        peers = (caller,) if forwarded is None else (caller, forwarded)
        self._still_welcome(peers)
        authorize(method, peers[-1])
        _peer.set(peers[-1])
        _forwarded.set(forwarded is not None)
        return peers

    def _identify(self, context: grpc.aio.ServicerContext[Any, Any]) -> Peer:
        if str(context.peer()).startswith("unix:"):
            return LOCAL_PEER
        if self.anonymous:
            return ANONYMOUS_PEER
        return peer_from_auth_context(context.auth_context())

    def _as_it_is(self, peer: Peer) -> Peer:
        """A manager that was demoted has the rights of a worker, whatever its certificate still says."""
        return replace(peer, role=Role.WORKER) if peer.role is Role.MANAGER and self._is_demoted(peer) else peer

    @staticmethod
    def _forwarded_peer(caller: Peer, context: grpc.aio.ServicerContext[Any, Any]) -> Peer | None:
        for key, value in context.invocation_metadata() or ():
            if key != FORWARDED_PEER_KEY:
                continue
            if caller.role is not Role.MANAGER:
                raise ManagerDemoted(f"{caller.name!r} is no manager and may not speak for others; ask another manager")
            role, _, name = (value.decode() if isinstance(value, bytes) else value).partition(" ")
            try:
                return Peer(unquote(name), Role(role), caller.cluster_id, caller.expires_at, caller.issued_at)
            except ValueError as error:
                raise Unauthenticated(f"manager {caller.name!r} forwards for the unknown role {role!r}") from error
        return None

    def _unary(self, method: str, behaviour: Any) -> Any:
        async def serve(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                self._admit(method, context)
                return await behaviour(request, context)
            except SwarmError as error:
                await _abort(context, error)
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except Exception as error:  # noqa: BLE001 – the last fence: the caller gets a sentence, the log the traceback
                await _abort(context, _unexpected(method, error))

        return serve

    def _streaming(self, method: str, behaviour: Any) -> Any:
        async def serve(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            try:
                peers = self._admit(method, context)
                async with contextlib.aclosing(
                    self._while_welcome(method, peers, behaviour(request, context))
                ) as answers:
                    async for answer in answers:
                        yield answer
            except SwarmError as error:
                await _abort(context, error)
            except (asyncio.CancelledError, GeneratorExit, grpc.aio.AbortError):
                raise
            except Exception as error:  # noqa: BLE001 – as above
                await _abort(context, _unexpected(method, error))

        return serve

    async def _while_welcome(
        self, method: str, peers: tuple[Peer, ...], answers: AsyncIterator[Any]
    ) -> AsyncGenerator[Any, None]:
        """Passes on `answers` until they end, or until a caller's certificate expires, is revoked, or its role is taken
        away."""
        async with Pumped(answers) as pumped:
            while True:
                try:
                    async with asyncio.timeout(REVOCATION_CHECK_PERIOD) as period:
                        answer = await anext(pumped)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    if not period.expired():
                        raise  # the handler's own
                    self._still_welcome(peers)
                    self._still_allowed(method, peers)
                else:
                    self._still_welcome(peers)
                    self._still_allowed(method, peers)
                    yield answer

    def _still_allowed(self, method: str, peers: tuple[Peer, ...]) -> None:
        caller = self._as_it_is(peers[0])
        if caller is not peers[0]:
            if len(peers) > 1:
                raise ManagerDemoted(
                    f"{caller.name!r} is no manager any more and may not speak for others; ask another manager"
                )
            authorize(method, caller)

    def _still_welcome(self, peers: tuple[Peer, ...]) -> None:
        for peer in peers:
            if peer.expires_at <= time.time():
                raise Unauthenticated(f"the certificate of {peer.name!r} has expired")
            if self._is_revoked(peer):
                raise NodeRemoved(f"{peer.name!r} is not, or no longer, a member of this swarm")


def _unexpected(method: str, error: Exception) -> InternalError:
    log.exception("%s failed", method)
    return InternalError(
        f"{method} failed unexpectedly ({type(error).__name__}); the log of process {os.getpid()} says more"
    )


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: SwarmError) -> None:
    status, details, metadata = to_status(error)
    await context.abort(status, details, metadata)
