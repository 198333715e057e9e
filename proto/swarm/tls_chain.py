"""The certificates that a TLS server shows, believed for nothing: by the digest in its token a joining host finds out whether
the cluster's CA is among them."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable

from swarm.errors import InvalidArgument, Unavailable
from swarm.names import MANAGER_TLS_NAME

CONNECT_TIMEOUT = 5.0  # seconds
MAX_CHAIN = 8  # certificates that we look at


def shown_chain(host: str, port: int) -> list[bytes]:
    """The certificates (DER), leaf first. Raises Unavailable where there is no TLS server,
    InvalidArgument where `host` can be none."""
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])  # what a gRPC server insists on
    try:
        with (
            socket.create_connection((host, port), timeout=CONNECT_TIMEOUT) as connection,
            context.wrap_socket(connection, server_hostname=MANAGER_TLS_NAME) as encrypted,
        ):
            return _unverified_chain(encrypted)[:MAX_CHAIN]
    except TimeoutError as error:
        raise Unavailable(f"manager {target} did not answer within {CONNECT_TIMEOUT:g} s") from error
    except ssl.SSLError as error:
        raise Unavailable(f"at {target} there is no enrolment port of a swarm manager: {error.reason}") from error
    except UnicodeError as error:
        raise InvalidArgument(f"{target!r} is not an address: {host!r} is not the name or address of a host") from error
    except OSError as error:
        raise Unavailable(f"manager {target} is not reachable: {error.strerror or error}") from error


def _unverified_chain(connection: ssl.SSLSocket) -> list[bytes]:
    """Python offers this from 3.13 on; before, only the object underneath does."""
    public: Callable[[], list[bytes]] | None = getattr(connection, "get_unverified_chain", None)
    if public is not None:
        return list(public())
    certificates = connection._sslobj.get_unverified_chain() or []  # type: ignore[attr-defined]
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in certificates]
