"""What a certificate says of its owner, read from its bytes: subject and validity, and PEM to DER and back.

Only for certificates that are believed already – verified by gRPC against the cluster's CA, or our own files. It reads just
the parts of X.509 that our authority writes and refuses everything else, so that daemons need no cryptographic library for
the one question that each connection asks: who is this?
"""

from __future__ import annotations

import base64
import binascii
import datetime
import re
from collections.abc import Iterator
from dataclasses import dataclass

COMMON_NAME = bytes.fromhex("550403")
ORGANIZATION = bytes.fromhex("55040a")
ORGANIZATIONAL_UNIT = bytes.fromhex("55040b")

_SEQUENCE, _SET, _IDENTIFIER, _VERSION = 0x30, 0x31, 0x06, 0xA0
_STRINGS = (0x0C, 0x13, 0x16)  # UTF8String, PrintableString, IA5String
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_TIME = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})([0-9]{2})([0-9]{2})([0-9]{2})Z")
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
    [(_, outer)] = _expect(der, _SEQUENCE)
    (tag, body), *_ = _elements(outer)
    if tag != _SEQUENCE:
        raise ValueError("not a certificate")
    fields = [content for tag, content in _elements(body) if tag != _VERSION]
    if len(fields) < 6:
        raise ValueError("the certificate is cut short")
    _serial, _signature, _issuer, validity, subject, *_ = fields
    times = [_time(tag, content) for tag, content in _elements(validity)]
    if len(times) != 2:
        raise ValueError("the certificate's validity is not two times")
    return CertificateText(_name(subject), *times)


def _name(content: bytes) -> dict[bytes, str]:
    found: dict[bytes, str] = {}
    for _, attributes in _expect(content, _SET):
        for _, attribute in _expect(attributes, _SEQUENCE):
            (first, identifier), (second, text) = _elements(attribute)
            if first != _IDENTIFIER or second not in _STRINGS or identifier in found:
                raise ValueError("the certificate's subject is not of our form")
            found[identifier] = text.decode()
    return found


def _time(tag: int, content: bytes) -> float:
    if tag not in (_UTC_TIME, _GENERALIZED_TIME):
        raise ValueError("the certificate's validity is not a time")
    text = content.decode("ascii")
    if tag == _UTC_TIME:  # RFC 5280: two digits of a year from 1950 to 2049
        text = ("19" if text[:2] >= "50" else "20") + text
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError("the certificate's validity is not a time of our form")
    year, month, day, hour, minute, second = map(int, found.groups())
    return datetime.datetime(year, month, day, hour, minute, second, tzinfo=datetime.UTC).timestamp()


def _expect(data: bytes, tag: int) -> list[tuple[int, bytes]]:
    """The elements of `data`, all of which must have the tag."""
    found = list(_elements(data))
    if not found or any(each != tag for each, _ in found):
        raise ValueError("not a certificate of our form")
    return found


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each element, in order (X.690's distinguished encoding). Raises ValueError where one is cut."""
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
            position += size
        if position + length > len(data):
            raise ValueError("the certificate is cut short")
        yield tag, data[position : position + length]
        position += length
