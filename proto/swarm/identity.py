"""Who a peer is, and the files by which a node proves who it is.

A certificate says it in its subject: CN is the node's id (or a person's name), OU the role, O the cluster's id. Nothing
else in a request is believed. Over the local socket there is no certificate: whoever may open the file (root and the
group `swarm`) acts as `Role.LOCAL`.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from swarm.errors import FailedPrecondition, Unauthenticated


class Role(enum.Enum):
    """What a peer may be; the value is the certificate's OU."""

    MANAGER = "swarm-manager"
    WORKER = "swarm-worker"
    ADMIN = "swarm-admin"
    VIEWER = "swarm-viewer"
    SERVER = "swarm-server"  # a service beside the cluster, as a registry: may call nothing
    LOCAL = "local"  # the local socket; never in a certificate
    ANONYMOUS = "anonymous"  # the enrolment port; never in a certificate


@dataclass(frozen=True)
class Peer:
    """An authenticated caller."""

    name: str  # node id, person's name, or "local"
    role: Role
    cluster_id: str
    expires_at: float = float("inf")  # seconds since the epoch

    @property
    def is_node(self) -> bool:
        return self.role in (Role.MANAGER, Role.WORKER)


LOCAL_PEER = Peer("local", Role.LOCAL, "")
ANONYMOUS_PEER = Peer("anonymous", Role.ANONYMOUS, "")


@lru_cache(maxsize=4096)
def peer_from_certificate(pem: bytes) -> Peer:
    """The peer that a verified certificate stands for. Raises Unauthenticated where its subject is not of our form."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    certificate = x509.load_pem_x509_certificate(pem)
    fields = {attribute.oid: str(attribute.value) for attribute in certificate.subject}
    try:
        role = Role(fields[NameOID.ORGANIZATIONAL_UNIT_NAME])
        name, cluster_id = fields[NameOID.COMMON_NAME], fields[NameOID.ORGANIZATION_NAME]
    except (KeyError, ValueError) as error:
        raise Unauthenticated("the peer's certificate does not name a node, a role and a cluster of a swarm") from error
    if role in (Role.LOCAL, Role.ANONYMOUS):
        raise Unauthenticated(f"a certificate cannot carry the role {role.value}")
    return Peer(name, role, cluster_id, certificate.not_valid_after_utc.timestamp())


def peer_from_auth_context(auth_context: Mapping[str, Iterable[bytes]]) -> Peer:
    """The caller of a gRPC method served with mutual TLS, from `context.auth_context()`."""
    pems = list(auth_context.get("x509_pem_cert", ()))
    if not pems:
        raise Unauthenticated("the caller showed no certificate")
    return peer_from_certificate(pems[0])


@dataclass(frozen=True)
class TlsFiles:
    """Key, certificate and the cluster's CA certificate, in one directory (mode 0700).

    `node.pem` may hold a chain. Replaced together by `write`, each file by rename, so that a reader never sees half a file.
    """

    directory: Path

    @property
    def key(self) -> Path:
        return self.directory / "node.key"

    @property
    def certificate(self) -> Path:
        return self.directory / "node.pem"

    @property
    def ca(self) -> Path:
        return self.directory / "ca.pem"

    def exists(self) -> bool:
        return self.key.exists() and self.certificate.exists() and self.ca.exists()

    def write(self, key_pem: bytes, certificate_pem: bytes, ca_pem: bytes) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path, data in ((self.ca, ca_pem), (self.key, key_pem), (self.certificate, certificate_pem)):
            write_atomically(path, data)

    def read(self) -> TlsMaterial:
        """Raises FailedPrecondition where a file is missing or not readable."""
        try:
            return TlsMaterial(self.key.read_bytes(), self.certificate.read_bytes(), self.ca.read_bytes())
        except OSError as error:
            raise FailedPrecondition(f"the node's certificate cannot be read: {error}") from error


@dataclass(frozen=True)
class TlsMaterial:
    """PEM bytes, ready for gRPC."""

    key: bytes
    certificate: bytes
    ca: bytes

    @property
    def peer(self) -> Peer:
        return peer_from_certificate(self.certificate)


def write_atomically(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Writes, syncs and renames: after a crash there is the old file or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb", closefd=True) as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
