"""From a view to records, and from records to answers."""

from __future__ import annotations

import ipaddress
import random
import struct

import pytest
from dnslib import EDNS0, QTYPE, RCODE, DNSRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from swarm.v1 import types_pb2 as types

from agent.network.dns_answers import (
    MAX_ADDRESSES,
    MAX_QUERY_BYTES,
    MAX_UDP_ADDRESSES,
    NetworkNames,
    answer,
    failure,
    is_plain_question,
    lookup,
    lookup_address,
)
from agent.network.dns_records import hosts_file, network_records, resolv_conf
from agent.network.resolver_upstream import parse_servers
from tests.unit.network.cluster import BACKEND, CLOSED, INGRESS, endpoint, overlay, service, view


def _networks() -> list[NetworkNames]:
    records = network_records(
        view(
            overlay(INGRESS, service(INGRESS, "web", "")),
            overlay(
                BACKEND,
                service(BACKEND, "Web", "10.0.16.2", aliases=["www", "web"]),
                service(BACKEND, "ring", "", aliases=["www"]),
                endpoint(BACKEND, "w1", "n1", "10.0.16.5", service_id="Web"),
                endpoint(BACKEND, "w2", "n2", "10.0.16.6", service_id="Web", serving=False),
                endpoint(BACKEND, "r1", "n2", "10.0.16.7", service_id="ring"),
            ),
            overlay(CLOSED, service(CLOSED, "web", "10.0.32.2"), service(CLOSED, "vault", "10.0.32.3")),
        )
    )
    assert INGRESS.id not in records
    return [
        NetworkNames(one["name"], ipaddress.IPv4Network(one["subnet"]), one["names"], one["reverse"])
        for one in (records[BACKEND.id], records[CLOSED.id])
    ]


@pytest.mark.parametrize(
    ("name", "addresses"),
    [
        ("web", ["10.0.16.2"]),
        ("WEB.", ["10.0.16.2"]),
        ("tasks.web", ["10.0.16.5"]),
        ("www", ["10.0.16.2", "10.0.16.7"]),  # an alias that two services share
        ("ring", ["10.0.16.7"]),
        ("w2", ["10.0.16.6"]),
        ("web.closed", ["10.0.32.2"]),
        ("vault", ["10.0.32.3"]),
        ("tasks.vault", []),
        ("elsewhere", None),
    ],
)
def test_lookup(name: str, addresses: list[str] | None) -> None:
    assert lookup(name, _networks()) == addresses


def test_names_of_networks_that_a_container_is_not_on_are_unknown() -> None:
    assert lookup("vault", _networks()[:1]) is None
    assert lookup_address("10.0.32.3", _networks()[:1]) is None


def test_addresses_have_the_name_of_their_container_or_service() -> None:
    networks = _networks()
    assert lookup_address("10.0.16.6", networks) == "w2.backend"
    assert lookup_address("10.0.16.2", networks) == "Web.backend"
    assert lookup_address("10.0.16.99", networks) == ""
    assert lookup_address("8.8.8.8", networks) is None


def _ask(name: str, kind: str = "A", *, stream: bool = False, size: int = 0, addresses: int = 3) -> DNSRecord | None:
    listed = {"web": [f"10.0.16.{number}" for number in range(2, 2 + addresses)]}
    network = NetworkNames("backend", ipaddress.IPv4Network("10.0.16.0/20"), listed, {"10.0.16.2": "web"})
    query = DNSRecord.question(name, kind)
    if size:
        query.add_ar(EDNS0(udp_len=size))
    reply = answer(bytes(query.pack()), [network], random.Random(1), stream=stream)
    return DNSRecord.parse(reply) if reply else None


def test_answers_by_type() -> None:
    found = _ask("WeB")
    assert found is not None
    assert {str(record.rdata) for record in found.rr} == {"10.0.16.2", "10.0.16.3", "10.0.16.4"}
    assert str(found.rr[0].rname) == "WeB."  # as it was asked
    for kind in ("AAAA", "TXT"):
        empty = _ask("web", kind)
        assert empty is not None and empty.header.rcode == RCODE.NOERROR and not empty.rr
    assert _ask("other") is None
    reverse = _ask("2.16.0.10.in-addr.arpa", "PTR")
    assert reverse is not None and str(reverse.rr[0].rdata) == "web.backend."
    unknown = _ask("9.16.0.10.in-addr.arpa", "PTR")
    assert unknown is not None and unknown.header.rcode == RCODE.NXDOMAIN


def test_answers_come_in_changing_order() -> None:
    network = NetworkNames("n", ipaddress.IPv4Network("10.0.0.0/8"), {"web": [f"10.0.0.{n}" for n in range(9)]})
    query = bytes(DNSRecord.question("web").pack())
    rng = random.Random(7)
    firsts = {str(DNSRecord.parse(answer(query, [network], rng, stream=False) or b"").rr[0].rdata) for _ in range(60)}
    assert len(firsts) > 4


def test_long_answers_are_cut_to_what_the_client_takes() -> None:
    plain = _ask("web", addresses=60)
    assert plain is not None and plain.header.tc
    announced = _ask("web", addresses=60, size=1232)
    assert announced is not None and len(announced.rr) == 60
    assert [record.rtype for record in announced.ar] == [QTYPE.OPT]
    whole = _ask("web", addresses=200, stream=True)
    assert whole is not None and len(whole.rr) == 200


def test_an_answer_is_never_longer_than_dns_can_send() -> None:
    """`tasks.web` of a service with more than 4,094 tasks: the resolver said that there are more addresses than UDP holds, and
    closed the connection over which a client asked for all of them. Besides, each such question held up all others for long."""
    name = "a" * 63 + ".b"
    network = NetworkNames(
        "n", ipaddress.IPv4Network("10.0.0.0/8"), {name: [f"10.0.{n // 250}.{n % 250}" for n in range(5000)]}
    )
    query = bytes(DNSRecord.question(name).pack())
    whole = answer(query, [network], random.Random(1), stream=True)
    assert whole is not None and len(whole) < 1 << 16
    assert len({str(record.rdata) for record in DNSRecord.parse(whole).rr}) == MAX_ADDRESSES
    for addresses in (MAX_UDP_ADDRESSES - 1, MAX_UDP_ADDRESSES, 250):
        cut = _ask("web", addresses=addresses, size=1232)
        assert cut is not None and cut.header.tc


@pytest.mark.parametrize("rubbish", [b"", b"x", b"\0" * 12, b"\xff" * 40])
def test_rubbish_is_not_answered(rubbish: bytes) -> None:
    assert answer(rubbish, [], random.Random(), stream=False) == b""


def test_a_query_stuffed_with_records_is_not_even_read() -> None:
    """Pointers to a long name make each record dear to parse; one container must not stop the names of all others."""
    name = b"\x01a" * 120 + b"\0"
    record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 0, 4) + b"abcd"
    for counts in ((1, 200, 0, 0), (1, 0, 200, 0), (1, 0, 0, 200), (200, 0, 0, 0), (0, 0, 0, 0)):
        stuffed = struct.pack("!6H", 7, 0x100, *counts) + name + b"\0\1\0\1" + record * 200
        assert not is_plain_question(stuffed)
        assert answer(stuffed, _networks(), random.Random(), stream=True) == failure(stuffed) == b""
    query = bytes(DNSRecord.question("a.b").pack())
    assert is_plain_question(query) and not is_plain_question(query + bytes(MAX_QUERY_BYTES))


@settings(max_examples=1000, deadline=None)
@given(data=st.data())
def test_a_damaged_query_breaks_nothing(data: st.DataObject) -> None:
    query = bytearray(DNSRecord.question(data.draw(st.sampled_from(["web", "5.16.0.10.in-addr.arpa"]))).pack())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(query)))
        query[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.binary(max_size=6) | st.sampled_from([b"\xc0\x0c", b"\xc0\xff"])
        )
    answer(bytes(query), _networks(), random.Random(1), stream=False)
    failure(bytes(query))


def test_a_reply_is_not_answered_and_a_failure_echoes_the_question() -> None:
    query = DNSRecord.question("a.b")
    assert answer(bytes(query.reply().pack()), [], random.Random(), stream=False) == b""
    failed = DNSRecord.parse(failure(bytes(query.pack())))
    assert failed.header.rcode == RCODE.SERVFAIL and failed.header.id == query.header.id
    assert failure(b"x") == b""


def test_upstream_servers() -> None:
    text = "# x\nnameserver 192.0.2.1\nnameserver 127.0.0.11\nnameserver nonsense\nnameserver fe80::1%eth0\nsearch a\n"
    assert parse_servers(text) == ("192.0.2.1", "fe80::1%eth0")


def test_files_of_a_container() -> None:
    host = "search corp.example\nnameserver 192.0.2.9\n"
    assert resolv_conf(None, host) == "nameserver 127.0.0.11\nsearch corp.example\noptions ndots:0\n"
    dns = types.DnsConfig(search=["a", "b"], options=["ndots:3", "timeout:1"])
    assert resolv_conf(dns, host) == "nameserver 127.0.0.11\nsearch a b\noptions ndots:3 timeout:1\n"
    assert hosts_file("h", ("10.0.0.5",), ("192.0.2.7 db db.local",)).splitlines()[-2:] == [
        "192.0.2.7\tdb db.local",
        "10.0.0.5\th",
    ]
