"""The cluster's certificate authority: it makes itself once, and then certificates for nodes, people and servers.

It decides on every field: of a signing request only the public key is used. Certificates begin an hour before they are
issued (hosts' clocks differ) and carry who, what and of which cluster: CN, OU, O. What is handed out is a chain, the
certificate and the CA's, because a joining host finds the CA in what a manager's server shows. Time comes in as an argument
(seconds since the epoch).

A manager calls this through `identity.signing`, and once itself, when a cluster begins.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from swarm.errors import InternalError, InvalidArgument
from swarm.identity import BACKDATED_SECONDS, Role
from swarm.keys import der_of
from swarm.names import MANAGER_TLS_NAME, WORKER_TLS_NAME
from swarm.tokens import JoinToken, ca_digest
from swarm.v1 import types_pb2

if TYPE_CHECKING:  # 70 ms to import: not before a certificate is needed
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

DAY = 86400.0
CA_VALIDITY = 20 * 365 * DAY
NODE_VALIDITY = 90 * DAY
SHORTEST_NODE_VALIDITY = 3600.0  # of what a cluster may be told
PERSON_VALIDITY = 365 * DAY
SERVER_VALIDITY = 365 * DAY
MAX_CSR_BYTES = 16 << 10
MAX_NAME = 64  # bytes: X.520's bound of a common name, as the library counts it
SMALLEST_RSA_KEY = 2048
_HOST_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")

_NODE_ROLES = {types_pb2.NODE_ROLE_MANAGER: Role.MANAGER, types_pb2.NODE_ROLE_WORKER: Role.WORKER}


class RootAuthority:
    """Signs certificates of one cluster."""

    def __init__(self, certificate_pem: bytes, private_key_pem: bytes) -> None:
        """Raises InternalError where the two are not a CA certificate and its key."""
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            self._certificate = x509.load_pem_x509_certificate(certificate_pem)
            key = serialization.load_pem_private_key(private_key_pem, None)
        except (ValueError, TypeError) as error:
            raise InternalError(f"the cluster's CA cannot be read: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != self._certificate.public_key():
            raise InternalError("the cluster's CA certificate and private key do not belong together")
        self._key = key
        self._certificate_pem = certificate_pem
        self._private_key_pem = private_key_pem
        [organization] = self._certificate.subject.get_attributes_for_oid(x509.NameOID.ORGANIZATION_NAME)
        self.cluster_id = str(organization.value)

    @classmethod
    def create(cls, cluster_id: str, now: float) -> RootAuthority:
        """A new CA, self-signed, ECDSA P-256."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, "swarm-ca"),
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster_id),
            ]
        )
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_utc(now - BACKDATED_SECONDS))
            .not_valid_after(_utc(now + CA_VALIDITY))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(certificate_authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(
            certificate.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )

    @classmethod
    def from_cluster(cls, cluster: types_pb2.Cluster) -> RootAuthority:
        """The CA of a replicated cluster object."""
        return cls(cluster.ca.certificate_pem, cluster.ca.private_key_pem)

    @property
    def certificate_pem(self) -> bytes:
        return self._certificate_pem

    def state(self) -> types_pb2.CertificateAuthorityState:
        """What the cluster object keeps of it."""
        return types_pb2.CertificateAuthorityState(
            certificate_pem=self._certificate_pem, private_key_pem=self._private_key_pem
        )

    def token(self, secret: str) -> str:
        """The join token of a secret."""
        return join_token(self._certificate_pem, secret)

    def issue_node(
        self,
        csr_pem: bytes,
        node_id: str,
        role: types_pb2.NodeRole.ValueType,
        *,
        now: float,
        validity: float = NODE_VALIDITY,
    ) -> bytes:
        """A node's certificate and the CA's (PEM). `validity` in seconds from `now`."""
        peer_role = _NODE_ROLES[role]
        tls_name = MANAGER_TLS_NAME if peer_role is Role.MANAGER else WORKER_TLS_NAME
        return self._issue(
            csr_pem, node_id, peer_role, names=(node_id, tls_name, "localhost"), now=now, validity=validity
        )

    def issue_person(
        self, csr_pem: bytes, name: str, role: Role, *, now: float, validity: float = PERSON_VALIDITY
    ) -> bytes:
        """A certificate for somebody who calls the API as `admin` or `viewer`; good for no server."""
        if role not in (Role.ADMIN, Role.VIEWER):
            raise InvalidArgument(f"people are admin or viewer, not {role.value!r}")
        _check_not_reserved(name)
        return self._issue(csr_pem, name, role, names=(), now=now, validity=validity, server=False)

    def issue_server(
        self, csr_pem: bytes, name: str, addresses: Sequence[str], *, now: float, validity: float = SERVER_VALIDITY
    ) -> bytes:
        """A certificate for a service beside the cluster, reached at `addresses` (host names and IP addresses).

        No address may look like a node: such a certificate must never pass for a manager.
        """
        if not addresses:
            raise InvalidArgument("addresses: a server's certificate needs at least one host name or IP address")
        _check_not_reserved(name)
        return self._issue(csr_pem, name, Role.SERVER, names=tuple(addresses), now=now, validity=validity)

    def _issue(
        self,
        csr_pem: bytes,
        name: str,
        role: Role,
        *,
        names: tuple[str, ...],
        now: float,
        validity: float,
        server: bool = True,
    ) -> bytes:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

        if not 0 < len(name.encode()) <= MAX_NAME or not name.isprintable():
            raise InvalidArgument(
                f"name: {name[:MAX_NAME]!r} must be printable characters, 1 to {MAX_NAME} bytes of them"
            )
        public_key = public_key_of_request(csr_pem)
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH] + ([ExtendedKeyUsageOID.SERVER_AUTH] if server else [])
        builder = (
            x509.CertificateBuilder()
            .subject_name(
                x509.Name(
                    [
                        x509.NameAttribute(NameOID.COMMON_NAME, name),
                        x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role.value),
                        x509.NameAttribute(NameOID.ORGANIZATION_NAME, self.cluster_id),
                    ]
                )
            )
            .issuer_name(self._certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_utc(now - BACKDATED_SECONDS))
            .not_valid_after(min(_utc(now + validity), self._certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(certificate_authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if names:
            alternatives = x509.SubjectAlternativeName([_general_name(alternative) for alternative in names])
            builder = builder.add_extension(alternatives, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM) + self._certificate_pem


def join_token(ca_pem: bytes, secret: str) -> str:
    """The join token of a secret, for the cluster of this CA certificate."""
    return str(JoinToken(ca_digest(der_of(ca_pem)), secret))


def check_server_addresses(addresses: Sequence[str], node_ids: Sequence[str]) -> None:
    """Raises InvalidArgument where a server would be given a name by which nodes prove themselves."""
    reserved = {MANAGER_TLS_NAME, WORKER_TLS_NAME, *node_ids}
    for address in addresses:
        if address.lower() in reserved:
            raise InvalidArgument(f"addresses: {address!r} is how a node proves itself; a server cannot carry it")


def _check_not_reserved(name: str) -> None:
    """Some TLS libraries compare the CN with the name that they expect where a certificate carries no other names."""
    if name.lower().rstrip(".") in (MANAGER_TLS_NAME, WORKER_TLS_NAME, "localhost"):
        raise InvalidArgument(f"name: {name!r} is how a node proves itself; choose another")


def public_key_of_request(csr_pem: bytes) -> CertificatePublicKeyTypes:
    """The key of a signing request that was signed with it. Raises InvalidArgument."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    if len(csr_pem) > MAX_CSR_BYTES:
        raise InvalidArgument(f"the signing request is larger than {MAX_CSR_BYTES} bytes")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        valid, key = request.is_signature_valid, request.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidArgument(f"the signing request is not a PKCS 10 request in PEM: {error}") from error
    if not valid:
        raise InvalidArgument("the signing request is not signed with its own key")
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= SMALLEST_RSA_KEY:
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, (ec.SECP256R1, ec.SECP384R1)):
        return key
    raise InvalidArgument(
        f"the signing request's key must be ECDSA P-256 or P-384, or RSA of at least {SMALLEST_RSA_KEY} bits"
    )


def _general_name(address: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        if not _HOST_NAME.fullmatch(address.lower()):
            raise InvalidArgument(f"addresses: {address!r} is neither a host name nor an IP address") from None
        return x509.DNSName(address.lower())


def _key_usage(*, certificate_authority: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=certificate_authority,
        crl_sign=certificate_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _utc(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
