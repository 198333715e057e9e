"""Signing in a process of its own is what the authority signs."""

from __future__ import annotations

import asyncio
import time

import pytest
from cryptography import x509
from swarm.errors import InvalidArgument
from swarm.identity import Role, peer_from_certificate
from swarm.keys import check_issued, new_key_and_request
from swarm.v1 import types_pb2

from orchestrator.identity import signing
from orchestrator.identity.authority import RootAuthority

NOW = time.time()
AUTHORITY = RootAuthority.create("c1", NOW)
KEYS = new_key_and_request("x")


async def test_nodes_people_and_servers_get_their_certificates() -> None:
    ca, csr = AUTHORITY.state(), KEYS.csr_pem
    node, person, server = await asyncio.gather(
        signing.sign_for_node(ca, csr, "n1", types_pb2.NODE_ROLE_MANAGER, now=NOW, validity=7200.5),
        signing.sign_for_person(ca, csr, "Ann Ö", Role.VIEWER, NOW),
        signing.sign_for_server(ca, csr, "registry", ["registry.lab", "10.0.0.1"], NOW),
    )
    for chain, role in ((node, Role.MANAGER), (person, Role.VIEWER), (server, Role.SERVER)):
        check_issued(KEYS.key_pem, chain, AUTHORITY.certificate_pem)
        assert peer_from_certificate(chain).role is role
    assert peer_from_certificate(node).expires_at == int(NOW + 7200.5)
    assert peer_from_certificate(person).name == "Ann Ö"
    names = x509.load_pem_x509_certificate(server).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert len(names.value) == 2


@pytest.mark.parametrize(
    ("csr", "problem"),
    [(b"", "not a PKCS 10"), (b"\xff\xfe", "not a PKCS 10"), (b"x" * (1 << 21), "larger than")],
)
async def test_a_refusal_comes_back_as_one(csr: bytes, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        await signing.sign_for_person(AUTHORITY.state(), csr, "Ann", Role.VIEWER, NOW)
