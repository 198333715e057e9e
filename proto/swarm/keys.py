"""A node's private key and the request for a certificate over it. The key is made where it is used and never leaves.

Agents call what needs the cryptographic library through `swarm.apart`.
"""

from __future__ import annotations

from dataclasses import dataclass

from swarm import certificate_text
from swarm.errors import InternalError, InvalidArgument


@dataclass(frozen=True)
class KeyAndRequest:
    """PEM, the key unencrypted (PKCS 8)."""

    key_pem: bytes
    csr_pem: bytes


def new_key_and_request(common_name: str) -> KeyAndRequest:
    """A fresh ECDSA P-256 key and a signing request. The issuer decides on every name; `common_name` is a hint."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    hint = common_name.encode()[:64].decode(errors="ignore") or "swarm"  # the library counts X.520's 64 in bytes
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hint)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return KeyAndRequest(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        request.public_bytes(serialization.Encoding.PEM),
    )


def der_of(pem: bytes) -> bytes:
    """The first certificate of `pem`, in DER. Raises InvalidArgument where there is none."""
    try:
        return certificate_text.der_of_pem(pem)
    except ValueError as error:
        raise InvalidArgument(f"not a certificate in PEM: {error}") from error


def pem_of(der: bytes) -> bytes:
    """Raises InvalidArgument where `der` is not a certificate."""
    try:
        return certificate_text.pem_of_der(der)
    except ValueError as error:
        raise InvalidArgument(f"not a certificate in DER: {error}") from error


def check_issued(key_pem: bytes, certificate_pem: bytes, ca_pem: bytes) -> None:
    """Raises InternalError unless the certificate is for this key and signed by this CA: what a node was handed must work
    before it replaces what it has."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import serialization

    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca_pem))
        key = serialization.load_pem_private_key(key_pem, None)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise InternalError(f"the manager answered with a certificate that its CA did not sign: {error}") from error
    encoding = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if certificate.public_key().public_bytes(*encoding) != key.public_key().public_bytes(*encoding):
        raise InternalError("the manager answered with a certificate for another key")
