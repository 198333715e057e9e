"""Answers of the containers' resolver: from a query and what the container may know, the answer or "ask someone else".

Pure but for the shuffling, which takes its randomness as an argument. Imports nothing of gRPC: it runs in the resolver, a
process that must stay small.
"""

from __future__ import annotations

import ipaddress
import random
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dnslib import EDNS0, PTR, QTYPE, RCODE, RR, A, DNSError, DNSRecord

TIME_TO_LIVE = 1  # seconds: names of tasks change with every update
PLAIN_UDP_BYTES = 512  # RFC 1035: what a client takes that announces no size
MAX_QUERY_BYTES = 4096
HEADER_BYTES = 12
MAX_UDP_BYTES = 1232  # what fits into any path without fragments (DNS flag day 2020)
ADDRESS_BYTES = 16  # of one address in an answer
# More make an answer longer than DNS can send (64 KiB); over UDP, than is sent whatever else is in it.
MAX_ADDRESSES = 4000
MAX_UDP_ADDRESSES = MAX_UDP_BYTES // ADDRESS_BYTES + 1
REVERSE_SUFFIX = ".in-addr.arpa"


@dataclass(frozen=True)
class NetworkNames:
    """The names of one network. `names` in lower case."""

    name: str
    subnet: ipaddress.IPv4Network
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    reverse: Mapping[str, str] = field(default_factory=dict)


def lookup(name: str, networks: Sequence[NetworkNames]) -> Sequence[str] | None:
    """The addresses of a name for a container on these networks; None where none of them knows it. The first network that
    has addresses decides. `NAME.NETWORK` asks one network."""
    name = name.rstrip(".").lower()
    known: Sequence[str] | None = None
    for network in networks:
        found = network.names.get(name)
        if found is None and name.endswith("." + network.name.lower()):
            found = network.names.get(name[: -len(network.name) - 1])
        if found:
            return found
        known = found if known is None else known
    return known


def lookup_address(address: str, networks: Sequence[NetworkNames]) -> str | None:
    """The name of an address; "" where it lies in one of the networks but has none; None where it lies in none."""
    inside = False
    for network in networks:
        if address in network.reverse:
            return f"{network.reverse[address]}.{network.name}"
        inside = inside or ipaddress.IPv4Address(address) in network.subnet
    return "" if inside else None


def is_plain_question(query: bytes) -> bool:
    """Whether it is worth to be read: one question, and nothing else than EDNS and a signature behind it. A query stuffed with
    records that point to long names takes half a second to parse, in which no container of the host has its names."""
    if not HEADER_BYTES < len(query) <= MAX_QUERY_BYTES or query[2] & 0x80:  # too long, or an answer
        return False
    counts: tuple[int, int, int, int] = struct.unpack("!4H", query[4:HEADER_BYTES])
    questions, answers, authorities, additional = counts
    return questions == 1 and answers == authorities == 0 and additional <= 2


def _parsed(query: bytes) -> DNSRecord | None:
    try:
        return DNSRecord.parse(query) if is_plain_question(query) else None
    except DNSError:
        return None


def answer(query: bytes, networks: Sequence[NetworkNames], rng: random.Random, *, stream: bool) -> bytes | None:
    """The answer; None where the question is for an upstream server; b"" where there is nothing to answer to."""
    request = _parsed(query)
    if request is None:
        return b""
    name, kind = str(request.q.qname), QTYPE.get(request.q.qtype)
    reply = request.reply(ra=1)
    if kind == "PTR" and name.lower().rstrip(".").endswith(REVERSE_SUFFIX):
        address = _reversed_address(name)
        found = lookup_address(address, networks) if address else None
        if found is None:
            return None
        if found:
            reply.add_answer(RR(request.q.qname, QTYPE.PTR, ttl=TIME_TO_LIVE, rdata=PTR(found)))
        else:
            reply.header.rcode = RCODE.NXDOMAIN
    else:
        addresses = lookup(name, networks)
        if addresses is None:
            return None
        if kind in ("A", "ANY"):
            limit = MAX_ADDRESSES if stream else MAX_UDP_ADDRESSES
            for one in rng.sample(list(addresses), min(len(addresses), limit)):
                reply.add_answer(RR(request.q.qname, QTYPE.A, ttl=TIME_TO_LIVE, rdata=A(one)))
    return _pack(request, reply, stream=stream)


def failure(query: bytes) -> bytes:
    """SERVFAIL; b"" where the query cannot be read."""
    request = _parsed(query)
    if request is None:
        return b""
    reply = request.reply(ra=1)
    reply.header.rcode = RCODE.SERVFAIL
    return bytes(reply.pack())


def _pack(request: DNSRecord, reply: DNSRecord, *, stream: bool) -> bytes:
    option = next((record for record in request.ar if record.rtype == QTYPE.OPT), None)
    limit = PLAIN_UDP_BYTES
    if option is not None:
        reply.add_ar(EDNS0(udp_len=MAX_UDP_BYTES))
        limit = max(PLAIN_UDP_BYTES, min(int(option.rclass), MAX_UDP_BYTES))
    packed = bytes(reply.pack())
    if stream or len(packed) <= limit:
        return packed
    return bytes(reply.truncate().pack())


def _reversed_address(name: str) -> str | None:
    labels = name.lower().rstrip(".").removesuffix(REVERSE_SUFFIX).split(".")
    try:
        return str(ipaddress.IPv4Address(".".join(reversed(labels))))
    except ValueError:
        return None
