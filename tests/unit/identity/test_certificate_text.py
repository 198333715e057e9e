"""Reading certificates without a cryptographic library, beside what the library reads."""

from __future__ import annotations

import contextlib
import random

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from swarm import certificate_text
from swarm.errors import Unauthenticated
from swarm.identity import Role, peer_from_certificate
from swarm.keys import new_key_and_request

from orchestrator.identity.authority import RootAuthority


def test_a_certificate_is_read_as_the_library_reads_it() -> None:
    now = 1_780_000_000.0
    authority = RootAuthority.create("cluster", now)
    for validity, name in ((7200.0, "n1"), (30 * 365 * 86400.0, "é" * 32)):
        chain = authority.issue_person(new_key_and_request("x").csr_pem, name, Role.ADMIN, now=now, validity=validity)
        theirs = x509.load_pem_x509_certificate(chain)
        ours = certificate_text.read(certificate_text.der_of_pem(chain))
        assert ours.subject == {
            certificate_text.COMMON_NAME: name,
            certificate_text.ORGANIZATIONAL_UNIT: "swarm-admin",
            certificate_text.ORGANIZATION: "cluster",
        }
        assert ours.not_before == theirs.not_valid_before_utc.timestamp()
        assert ours.not_after == theirs.not_valid_after_utc.timestamp()
        der = theirs.public_bytes(serialization.Encoding.DER)
        assert certificate_text.der_of_pem(chain) == der
        assert certificate_text.pem_of_der(der) == theirs.public_bytes(serialization.Encoding.PEM)


def test_damaged_certificates_are_refused_and_break_nothing() -> None:
    chain = RootAuthority.create("cluster", 1_780_000_000.0).certificate_pem
    der = certificate_text.der_of_pem(chain)
    rng = random.Random(7)
    for _ in range(2000):
        damaged = bytearray(der[: rng.choice((len(der), rng.randrange(len(der))))])
        if damaged:
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        with contextlib.suppress(ValueError):
            certificate_text.read(bytes(damaged))
    for pem in (
        b"",
        chain.replace(b"BEGIN", b"BEGUN"),
        chain[:200],
        b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----",
    ):
        with pytest.raises(Unauthenticated):
            peer_from_certificate(pem)
