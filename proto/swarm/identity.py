"""Who a peer is, and the files by which a node proves who it is.

A certificate says it in its subject: CN is the node's id (or a person's name), OU the role, O the cluster's id. Nothing
else in a request is believed. Over the local socket there is no certificate: whoever may open the file (root and the
group `swarm`) acts as `Role.LOCAL`.
"""

from __future__ import annotations

import enum
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from swarm import certificate_text
from swarm.errors import FailedPrecondition, ResourceExhausted, Unauthenticated, is_disk_full

BACKDATED_SECONDS = 3600.0  # certificates begin this much before they were issued: hosts' clocks differ
JOINING_GRACE = 60.0  # seconds from the issue of a certificate to when everybody knows its node


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
    issued_at: float = 0.0  # seconds since the epoch; not backdated

    @property
    def is_node(self) -> bool:
        return self.role in (Role.MANAGER, Role.WORKER)


LOCAL_PEER = Peer("local", Role.LOCAL, "")
ANONYMOUS_PEER = Peer("anonymous", Role.ANONYMOUS, "")


@lru_cache(maxsize=4096)
def peer_from_certificate(pem: bytes) -> Peer:
    """The peer that a verified certificate stands for. Raises Unauthenticated where its subject is not of our form."""
    try:
        certificate = certificate_text.read(certificate_text.der_of_pem(pem))
        fields = certificate.subject
        role = Role(fields[certificate_text.ORGANIZATIONAL_UNIT])
        name, cluster_id = fields[certificate_text.COMMON_NAME], fields[certificate_text.ORGANIZATION]
    except (KeyError, ValueError) as error:
        raise Unauthenticated("the peer's certificate does not name a node, a role and a cluster of a swarm") from error
    if role in (Role.LOCAL, Role.ANONYMOUS):
        raise Unauthenticated(f"a certificate cannot carry the role {role.value}")
    expires_at = certificate.not_after
    issued_at = min(certificate.not_before + BACKDATED_SECONDS, expires_at)
    return Peer(name, role, cluster_id, expires_at, issued_at)


def peer_from_auth_context(auth_context: Mapping[str, Iterable[bytes]]) -> Peer:
    """The caller of a gRPC method served with mutual TLS, from `context.auth_context()`.

    Two readers must agree on who that is: ours, and the library that made the TLS connection, which hands on the subject
    that it read. Raises Unauthenticated where they do not, or where there is no certificate.
    """
    pems, subjects = (tuple(auth_context.get(key, ())) for key in ("x509_pem_cert", "x509_subject"))
    if len(pems) != 1:
        raise Unauthenticated("the caller showed no certificate")
    peer = peer_from_certificate(pems[0])
    if subjects != (_subject_text(peer),):
        raise Unauthenticated(f"the certificate of {peer.name!r} reads differently to TLS; have it issued anew")
    return peer


@lru_cache(maxsize=4096)
def _subject_text(peer: Peer) -> bytes:
    """A subject as gRPC writes it: RFC 2253, the last attribute first."""
    values = (("O", peer.cluster_id), ("OU", peer.role.value), ("CN", peer.name))
    return ",".join(f"{name}={_escaped(value)}" for name, value in values).encode()


def _escaped(value: str) -> str:
    """RFC 2253, 2.4, and bytes beyond ASCII in hexadecimal."""
    last = len(value) - 1
    return "".join(
        "".join(f"\\{byte:02X}" for byte in character.encode())
        if not character.isascii()
        else f"\\{character}"
        if character in ',+"\\<>;' or (at == 0 and character in " #") or (at == last and character == " ")
        else character
        for at, character in enumerate(value)
    )


@dataclass(frozen=True)
class TlsFiles:
    """Key, certificate and the cluster's CA certificate, in one directory (mode 0700).

    `node.pem` holds the certificate and the CA's, so that a server shows the whole chain. The three names are links into a
    directory `current`, itself a link to one generation of the files: `write` replaces all three by one rename, and neither
    a reader nor a crash ever meets a key beside the certificate of another.
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
        """Replaces key, certificate and CA certificate in one step that survives a crash. Raises ResourceExhausted where the
        disk has no room, FailedPrecondition where they cannot be written for another reason; the old ones stay."""
        try:
            self._write(key_pem, certificate_pem, ca_pem)
        except OSError as error:
            kind = ResourceExhausted if is_disk_full(error) else FailedPrecondition
            raise kind(f"the certificate cannot be written to {self.directory}: {error}") from error

    def _write(self, key_pem: bytes, certificate_pem: bytes, ca_pem: bytes) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        before = self._generation()
        generation = Path(tempfile.mkdtemp(prefix="generation-", dir=self.directory))
        for name, data in ((self.ca.name, ca_pem), (self.key.name, key_pem), (self.certificate.name, certificate_pem)):
            write_atomically(generation / name, data)
            _link(self.directory / name, Path("current") / name)
        _link(self.directory / "current", Path(generation.name))
        _sync_directory(self.directory)
        # The generation before stays: somebody may just be reading it.
        for old in self.directory.glob("generation-*"):
            if old not in (generation, before):
                shutil.rmtree(old, ignore_errors=True)

    def _generation(self) -> Path:
        current = self.directory / "current"
        return self.directory / current.readlink() if current.is_symlink() else self.directory

    def read(self) -> TlsMaterial:
        """Raises FailedPrecondition where a file is missing or not readable."""
        place = self._generation()
        try:
            return TlsMaterial(
                *((place / name).read_bytes() for name in (self.key.name, self.certificate.name, self.ca.name))
            )
        except OSError as error:
            raise FailedPrecondition(
                f"the certificate cannot be read: {error.filename or place}: {error.strerror}"
            ) from error


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
    _sync_directory(path.parent)


def _link(path: Path, target: Path) -> None:
    """Makes `path` a symbolic link to `target`, replacing what is there by rename."""
    if path.is_symlink() and path.readlink() == target:
        return
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(path)


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
