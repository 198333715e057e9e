"""What a certificate says of its owner, read from its bytes: subject and validity, and PEM to DER and back.

Only for certificates that are believed already – verified by gRPC against the cluster's CA, or our own files. It reads the one
form that our authority writes, element by element, and refuses whatever differs: another order or number of fields, a length
that is not written in the shortest way, an attribute twice or beside another, a string type or character that we do not use.
So it can be wrong about a certificate only by refusing it, and daemons need no cryptographic library for the one question that
each connection asks: who is this? What it accepts is tested against the `cryptography` library, with generated and with
damaged certificates; and `identity.peer_from_auth_context` holds its answer against what TLS itself read.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import re
from dataclasses import dataclass

COMMON_NAME = bytes.fromhex("550403")
ORGANIZATION = bytes.fromhex("55040a")
ORGANIZATIONAL_UNIT = bytes.fromhex("55040b")

MAX_VALUE = 64  # characters of an attribute: X.520's bound
MAX_DER_BYTES = 64 << 10  # far more than our authority writes

_SEQUENCE, _SET, _IDENTIFIER, _INTEGER, _BIT_STRING = 0x30, 0x31, 0x06, 0x02, 0x03
_VERSION, _EXTENSIONS = 0xA0, 0xA3
_UTF8, _PRINTABLE = 0x0C, 0x13
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_VERSION_3 = bytes.fromhex("020102")
# RFC 5280, 4.1: certificate, and what of it is signed. We issue no unique identifiers, and always extensions.
_CERTIFICATE = (_SEQUENCE, _SEQUENCE, _BIT_STRING)
_SIGNED = (_VERSION, _INTEGER, _SEQUENCE, _SEQUENCE, _SEQUENCE, _SEQUENCE, _SEQUENCE, _EXTENSIONS)
_KNOWN = (COMMON_NAME, ORGANIZATION, ORGANIZATIONAL_UNIT)
_TIME = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})([0-9]{2})([0-9]{2})([0-9]{2})Z")
_PRINTABLE_STRING = re.compile(r"[A-Za-z0-9 '()+,./:=?-]*")
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\s+(.*?)-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True)
class CertificateText:
    """`subject` by the attribute's object identifier (its encoding); times in seconds since the epoch."""

    subject: dict[bytes, str]
    not_before: float
    not_after: float


def der_of_pem(pem: bytes) -> bytes:
    """The first certificate of `pem`. Raises ValueError where there is none."""
    found = _PEM.search(pem)
    if found is None:
        raise ValueError("there is no certificate in PEM")
    try:
        der = base64.b64decode(b"".join(found[1].split()), validate=True)
    except binascii.Error as error:
        raise ValueError(f"the PEM is damaged: {error}") from error
    read(der)
    return der


def pem_of_der(der: bytes) -> bytes:
    """Raises ValueError where `der` is not a certificate."""
    read(der)
    text = base64.b64encode(der)
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return b"\n".join([b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b""])


def read(der: bytes) -> CertificateText:
    """Raises ValueError where `der` is not a certificate of our kind."""
    if len(der) > MAX_DER_BYTES:
        raise ValueError(f"the certificate is larger than {MAX_DER_BYTES} bytes")
    (outer,) = _contents(der, (_SEQUENCE,))
    signed, *_ = _contents(outer, _CERTIFICATE)
    version, _serial, _algorithm, _issuer, validity, subject, *_ = _contents(signed, _SIGNED)
    if version != _VERSION_3:
        raise ValueError("not a certificate of version 3")
    times = [_time(tag, content) for tag, content in _elements(validity)]
    if len(times) != 2:
        raise ValueError("the certificate's validity is not two times")
    return CertificateText(_name(subject), *times)


def _name(content: bytes) -> dict[bytes, str]:
    found: dict[bytes, str] = {}
    for tag, attributes in _elements(content):
        if tag != _SET:
            raise ValueError("the certificate's subject is not of our form")
        (attribute,) = _contents(attributes, (_SEQUENCE,))  # one attribute in each set
        (first, identifier), (second, text) = _elements(attribute)
        if first != _IDENTIFIER or identifier not in _KNOWN or identifier in found:
            raise ValueError("the certificate's subject is not of our form")
        found[identifier] = _text(second, text)
    return found


def _text(tag: int, content: bytes) -> str:
    if tag not in (_UTF8, _PRINTABLE):
        raise ValueError("the certificate's subject has a string of another type")
    text = content.decode()
    if not 0 < len(text) <= MAX_VALUE or not text.isprintable():
        raise ValueError(f"the certificate's subject has a value that is not 1 to {MAX_VALUE} printable characters")
    if tag == _PRINTABLE and not _PRINTABLE_STRING.fullmatch(text):
        raise ValueError("the certificate's subject has a character that its type does not allow")
    return text


def _time(tag: int, content: bytes) -> float:
    text = content.decode("ascii")
    if tag == _UTC_TIME:  # RFC 5280: two digits of a year from 1950 to 2049
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME or text[:4] < "2050":
        raise ValueError("the certificate's validity is not a time of our form")
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError("the certificate's validity is not a time of our form")
    year, month, day, hour, minute, second = map(int, found.groups())
    return datetime.datetime(year, month, day, hour, minute, second, tzinfo=datetime.UTC).timestamp()


def _contents(data: bytes, tags: tuple[int, ...]) -> list[bytes]:
    """The contents of the elements of `data`, which must have just these tags, in this order."""
    found = _elements(data)
    if tuple(tag for tag, _ in found) != tags:
        raise ValueError("not a certificate of our form")
    return [content for _, content in found]


def _elements(data: bytes) -> list[tuple[int, bytes]]:
    """Tag and content of each element, in order (X.690's distinguished encoding). Raises ValueError where one is cut, or its
    length is not written in the shortest way."""
    found: list[tuple[int, bytes]] = []
    position = 0
    while position < len(data):
        if len(data) - position < 2:
            raise ValueError("the certificate is cut short")
        tag, length = data[position], data[position + 1]
        position += 2
        if length & 0x80:
            size = length & 0x7F
            if not 1 <= size <= 4 or position + size > len(data):
                raise ValueError("the certificate is damaged")
            length = int.from_bytes(data[position : position + size], "big")
            if length < 0x80 or length >> 8 * (size - 1) == 0:
                raise ValueError("the certificate has a length that is not written in the shortest way")
            position += size
        if position + length > len(data):
            raise ValueError("the certificate is cut short")
        found.append((tag, data[position : position + length]))
        position += length
    return found
