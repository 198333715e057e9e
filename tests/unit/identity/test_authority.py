from __future__ import annotations

import ipaddress
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from swarm.errors import InternalError, InvalidArgument
from swarm.identity import Role, peer_from_certificate
from swarm.keys import check_issued, new_key_and_request
from swarm.v1 import types_pb2

from orchestrator.identity.authority import RootAuthority, check_server_addresses

NOW = time.time()


@pytest.fixture(scope="module")
def authority() -> RootAuthority:
    return RootAuthority.create("c1", NOW)


def names(pem: bytes) -> list[str]:
    extension = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [str(name.value) for name in extension.value]


@pytest.mark.parametrize(
    ("role", "unit", "tls_name"),
    [
        (types_pb2.NODE_ROLE_MANAGER, Role.MANAGER, "swarm-manager"),
        (types_pb2.NODE_ROLE_WORKER, Role.WORKER, "swarm-worker"),
    ],
)
def test_a_nodes_certificate_says_who_what_and_of_which_cluster(
    authority: RootAuthority, role: types_pb2.NodeRole.ValueType, unit: Role, tls_name: str
) -> None:
    chain = authority.issue_node(new_key_and_request("x").csr_pem, "n1", role, now=NOW, validity=7200)
    peer = peer_from_certificate(chain)
    assert (peer.name, peer.role, peer.cluster_id) == ("n1", unit, "c1")
    assert names(chain) == ["n1", tls_name, "localhost"]
    certificate, ca = x509.load_pem_x509_certificates(chain)
    assert ca == x509.load_pem_x509_certificate(authority.certificate_pem)
    certificate.verify_directly_issued_by(ca)
    assert certificate.not_valid_before_utc.timestamp() == int(NOW - 3600)
    assert peer.issued_at == int(NOW - 3600) + 3600
    assert peer.expires_at == int(NOW + 7200)


def test_people_are_no_servers_and_servers_are_no_nodes(authority: RootAuthority) -> None:
    csr = new_key_and_request("x").csr_pem
    person = x509.load_pem_x509_certificate(authority.issue_person(csr, "Ann Ö", Role.ADMIN, now=NOW))
    usage = person.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert ExtendedKeyUsageOID.SERVER_AUTH not in usage
    server = authority.issue_server(csr, "registry", ["registry.lab", "10.0.0.1"], now=NOW)
    assert names(server) == ["registry.lab", str(ipaddress.ip_address("10.0.0.1"))]
    assert peer_from_certificate(server).role is Role.SERVER
    with pytest.raises(InvalidArgument, match="people are admin or viewer"):
        authority.issue_person(csr, "Eve", Role.MANAGER, now=NOW)
    with pytest.raises(InvalidArgument, match="neither a host name nor an IP"):
        authority.issue_server(csr, "registry", ["no host"], now=NOW)
    with pytest.raises(InvalidArgument, match="at least one"):
        authority.issue_server(csr, "registry", [], now=NOW)
    with pytest.raises(InvalidArgument, match="how a node proves itself"):
        check_server_addresses(["N1"], ["n1"])


def test_names_are_bounded(authority: RootAuthority) -> None:
    csr = new_key_and_request("x").csr_pem
    for name in ("", "x" * 65, "é" * 33, "a\nb"):
        with pytest.raises(InvalidArgument, match="printable characters, 1 to 64 bytes"):
            authority.issue_person(csr, name, Role.ADMIN, now=NOW)


def test_a_host_may_have_a_long_name_of_any_letters(authority: RootAuthority) -> None:
    csr = new_key_and_request("é" * 60).csr_pem
    assert x509.load_pem_x509_csr(csr).subject.rfc4514_string() == "CN=" + "é" * 32


@pytest.mark.parametrize("name", ["swarm-manager", "Swarm-Manager", "swarm-worker.", "localhost"])
def test_nobody_but_a_node_has_the_name_by_which_nodes_prove_themselves(authority: RootAuthority, name: str) -> None:
    csr = new_key_and_request("x").csr_pem
    with pytest.raises(InvalidArgument, match="how a node proves itself"):
        authority.issue_person(csr, name, Role.VIEWER, now=NOW)
    with pytest.raises(InvalidArgument, match="how a node proves itself"):
        authority.issue_server(csr, name, ["registry.lab"], now=NOW)


def _request(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_weak_and_malformed_requests_are_refused(authority: RootAuthority) -> None:
    for csr, problem in (
        (b"", "not a PKCS 10"),
        (b"x" * 20_000, "larger than"),
        (_request(rsa.generate_private_key(65537, 1024)), "must be ECDSA"),
        (_request(ec.generate_private_key(ec.SECP192R1())), "must be ECDSA"),
    ):
        with pytest.raises(InvalidArgument, match=problem):
            authority.issue_node(csr, "n1", types_pb2.NODE_ROLE_WORKER, now=NOW)


def test_a_tampered_request_is_refused(authority: RootAuthority) -> None:
    der = bytearray(
        x509.load_pem_x509_csr(_request(ec.generate_private_key(ec.SECP256R1()))).public_bytes(
            serialization.Encoding.DER
        )
    )
    der[-1] ^= 1
    import base64

    pem = (
        b"-----BEGIN CERTIFICATE REQUEST-----\n"
        + base64.encodebytes(bytes(der))
        + b"-----END CERTIFICATE REQUEST-----\n"
    )
    with pytest.raises(InvalidArgument, match=r"not signed with its own key|not a PKCS 10"):
        authority.issue_node(pem, "n1", types_pb2.NODE_ROLE_WORKER, now=NOW)


def test_an_authority_is_restored_from_the_cluster(authority: RootAuthority) -> None:
    cluster = types_pb2.Cluster(id="c1", ca=authority.state())
    assert RootAuthority.from_cluster(cluster).cluster_id == "c1"
    cluster.ca.private_key_pem = RootAuthority.create("c1", NOW).state().private_key_pem
    with pytest.raises(InternalError, match="do not belong together"):
        RootAuthority.from_cluster(cluster)


def test_a_member_takes_only_a_certificate_for_its_key_and_of_its_ca(authority: RootAuthority) -> None:
    keys, others = new_key_and_request("a"), new_key_and_request("b")
    chain = authority.issue_node(keys.csr_pem, "n1", types_pb2.NODE_ROLE_WORKER, now=NOW)
    check_issued(keys.key_pem, chain, authority.certificate_pem)
    with pytest.raises(InternalError, match="another key"):
        check_issued(others.key_pem, chain, authority.certificate_pem)
    with pytest.raises(InternalError, match="its CA did not sign"):
        check_issued(keys.key_pem, chain, RootAuthority.create("c1", NOW).certificate_pem)
