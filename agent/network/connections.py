"""What the kernel knows of connections: open TCP connections from elsewhere, and flows to forget.

Run on a thread that is inside the namespace in question. `inbound` decides, over what sock_diag lists, which connections
draining has to wait for; `forget` removes the conntrack entries of flows whose backend is gone, since conntrack would lead the
next datagram of the same client port, or the next attempt to open a connection, to the old backend again. Layouts:
linux/inet_diag.h, nfnetlink_conntrack.h.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterable, Set
from dataclasses import dataclass
from pathlib import Path

from agent.network.netlink import (
    GONE,
    NETLINK_NETFILTER,
    NETLINK_SOCK_DIAG,
    NLA_F_NESTED,
    NetlinkSocket,
    Request,
    attribute,
    attributes,
)

SOCK_DIAG_BY_FAMILY = 20
# A half-closed connection may still wait for its answer, and closed ones may hold bytes that were not acknowledged:
# ESTABLISHED, SYN_RECV, FIN_WAIT1, CLOSE_WAIT, LAST_ACK, CLOSING of include/net/tcp_states.h.
BUSY_STATES = (1, 3, 4, 8, 9, 11)
LISTEN = 10

_CT_DELETE, _CT_GET = 0x102, 0x101  # subsystem 1, messages 2 and 1
_NFGENMSG = struct.pack("=BBH", socket.AF_INET, 0, 0)
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_STATUS, CTA_ZONE = 1, 2, 3, 18
IPS_SEEN_REPLY = 2
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
CTA_IP_SRC, CTA_IP_DST = 1, 2
CTA_PROTO_NUM = 1


@dataclass(frozen=True)
class TcpSocket:
    """One socket as sock_diag lists it."""

    state: int
    local: str
    local_port: int
    remote: str


def inbound(sockets: Iterable[TcpSocket]) -> int:
    """How many connections were opened from elsewhere: they end in a port that the container listens on."""
    found = list(sockets)
    listening = {one.local_port for one in found if one.state == LISTEN}
    return sum(
        1
        for one in found
        if one.state in BUSY_STATES
        and one.local_port in listening
        and one.remote != one.local
        and not ipaddress.ip_address(one.remote).is_loopback
    )


def list_tcp() -> list[TcpSocket]:
    """All TCP sockets of the calling thread's namespace."""
    states = sum(1 << state for state in (*BUSY_STATES, LISTEN))
    found = []
    with NetlinkSocket(NETLINK_SOCK_DIAG) as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            request = struct.pack("=BBBxI48x", family, socket.IPPROTO_TCP, 0, states)
            found += [_decode_socket(body) for body in netlink.dump(SOCK_DIAG_BY_FAMILY, request)]
    return found


def _decode_socket(body: bytes) -> TcpSocket:
    family, state = struct.unpack_from("=BB", body)
    (local_port,) = struct.unpack_from(">H", body, 4)
    return TcpSocket(state, _address(family, body[8:24]), local_port, _address(family, body[24:40]))


def _address(family: int, data: bytes) -> str:
    if family == socket.AF_INET:
        return socket.inet_ntoa(data[:4])
    address = ipaddress.IPv6Address(data)
    return str(address.ipv4_mapped or address)


def forget(backends: Set[str]) -> int:
    """Forgets the flows that translation leads to one of `backends`: UDP, and TCP that was not answered yet. Says how many."""
    requests: list[Request] = []
    if not _has_flows():
        return 0
    with NetlinkSocket(NETLINK_NETFILTER) as netlink:
        for body in netlink.dump(_CT_GET, _NFGENMSG):
            found = attributes(body[4:])
            original = found.get(CTA_TUPLE_ORIG, b"")
            if _is_stale(found, backends):
                payload = _NFGENMSG + attribute(CTA_TUPLE_ORIG | NLA_F_NESTED, original)
                if CTA_ZONE in found:
                    payload += attribute(CTA_ZONE, found[CTA_ZONE])
                requests.append(Request(_CT_DELETE, 0, payload, "forget a flow", GONE))
        netlink.execute(requests)
    return len(requests)


def _is_stale(flow: dict[int, bytes], backends: Set[str]) -> bool:
    protocol, _, asked = _tuple(flow.get(CTA_TUPLE_ORIG, b""))
    _, answering, _ = _tuple(flow.get(CTA_TUPLE_REPLY, b""))
    if answering == asked or answering not in backends:
        return False
    answered = bool(int.from_bytes(flow.get(CTA_STATUS, b""), "big") & IPS_SEEN_REPLY)
    return protocol == socket.IPPROTO_UDP or (protocol == socket.IPPROTO_TCP and not answered)


def _has_flows() -> bool:
    """Whether conntrack holds anything for this namespace: listing walks the table of the whole machine, milliseconds each."""
    try:
        return Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text().strip() != "0"
    except OSError:
        return True


def _tuple(data: bytes) -> tuple[int, str, str]:
    """(protocol, source, destination) of a flow's direction."""
    parts = attributes(data)
    addresses = attributes(parts.get(CTA_TUPLE_IP, b""))
    source, destination = addresses.get(CTA_IP_SRC, b""), addresses.get(CTA_IP_DST, b"")
    protocol = attributes(parts.get(CTA_TUPLE_PROTO, b"")).get(CTA_PROTO_NUM, b"\0")
    if len(source) != 4 or len(destination) != 4:
        return 0, "", ""
    return protocol[0], socket.inet_ntoa(source), socket.inet_ntoa(destination)
