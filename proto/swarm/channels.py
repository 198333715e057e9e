"""The one place that opens gRPC channels.

`open_channel` is mutual TLS to a peer that must prove a name: a node's id, or `swarm-manager` for "any manager". The
address is where it is, never who it is. `open_local` is the local socket.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from swarm.identity import TlsMaterial

MAX_MESSAGE_BYTES = 4 << 20
CONNECT_TIMEOUT = 5.0

# A peer behind a cut link is noticed by keepalive within about 3 s, instead of TCP's many minutes.
_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 1500),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    # Also what one attempt may take, TCP and TLS handshakes included: with 250 ms a busy manager to which many agents turn at
    # once never completes a handshake. A lost SYN is sent again each second, so two are in it.
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a channel with a renewed certificate must not reuse an old connection
]


def open_channel(address: str, tls: TlsMaterial, expected_name: str) -> grpc.aio.Channel:
    """A channel to `address` (HOST:PORT) whose certificate must be of our CA and carry `expected_name`."""
    credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.certificate)
    return grpc.aio.secure_channel(
        address, credentials, options=[*_OPTIONS, ("grpc.ssl_target_name_override", expected_name)]
    )


def open_enrolment_channel(address: str, ca_pem: bytes, expected_name: str) -> grpc.aio.Channel:
    """A channel without a certificate of ours, to a manager that must prove itself by the CA that a token named."""
    return grpc.aio.secure_channel(
        address,
        grpc.ssl_channel_credentials(ca_pem),
        options=[*_OPTIONS, ("grpc.ssl_target_name_override", expected_name)],
    )


def open_local(socket: Path) -> grpc.aio.Channel:
    """A channel to a daemon's socket on this host."""
    return grpc.aio.insecure_channel(f"unix:{socket}", options=[*_OPTIONS, ("grpc.default_authority", "localhost")])


def open_blocking_channel(address: str, tls: TlsMaterial, expected_name: str) -> grpc.Channel:
    """As `open_channel`, for a program without an event loop (`swarmctl`)."""
    credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.certificate)
    return grpc.secure_channel(
        address, credentials, options=[*_OPTIONS, ("grpc.ssl_target_name_override", expected_name)]
    )


def open_blocking_local(socket: Path) -> grpc.Channel:
    """As `open_local`, for a program without an event loop."""
    return grpc.insecure_channel(f"unix:{socket}", options=[*_OPTIONS, ("grpc.default_authority", "localhost")])
