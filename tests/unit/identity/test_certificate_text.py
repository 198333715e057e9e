"""Reading certificates without a cryptographic library, beside what the library reads.

The rule: whatever ours accepts, the library reads in the same way; where it is not of our authority's form, ours refuses.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.name import _ASN1Type as StringType
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from swarm import certificate_text
from swarm.channels import open_channel
from swarm.errors import Unauthenticated
from swarm.identity import Role, peer_from_auth_context, peer_from_certificate
from swarm.keys import new_key_and_request

from orchestrator.identity.authority import RootAuthority
from tests.unit.identity.certificates import TestAuthority

NOW = 1_780_000_000.0
KEY = ec.generate_private_key(ec.SECP256R1())
AUTHORITY = RootAuthority.create("cluster", NOW)
CSR = new_key_and_request("x").csr_pem
OIDS = {
    NameOID.COMMON_NAME: certificate_text.COMMON_NAME,
    NameOID.ORGANIZATIONAL_UNIT_NAME: certificate_text.ORGANIZATIONAL_UNIT,
    NameOID.ORGANIZATION_NAME: certificate_text.ORGANIZATION,
}
GOOD = certificate_text.der_of_pem(AUTHORITY.issue_person(CSR, "alice", Role.ADMIN, now=NOW))


def names() -> st.SearchStrategy[str]:
    """What the authority takes as a name."""
    return st.text(min_size=1, max_size=64).filter(lambda name: name.isprintable() and len(name.encode()) <= 64)


@st.composite
def subjects(draw: st.DrawFn) -> x509.Name:
    """Attributes of any kind, number, order and string type, several in one set as well."""
    attributes = st.builds(
        _attribute,
        st.sampled_from([*OIDS, NameOID.COUNTRY_NAME, NameOID.EMAIL_ADDRESS, NameOID.SERIAL_NUMBER]),
        st.one_of(
            st.sampled_from([role.value for role in Role]),
            st.text(min_size=1, max_size=64),
            st.sampled_from(["a\x00b", "n1\n", "OU=swarm-admin", "a,CN=b", "Ａ", "a\u202eb"]),
        ),
        st.sampled_from(
            [StringType.UTF8String, StringType.PrintableString, StringType.IA5String, StringType.BMPString]
        ),
    )
    sets = draw(st.lists(st.lists(attributes, min_size=1, max_size=2, unique_by=lambda each: each.oid), max_size=5))
    return x509.Name([x509.RelativeDistinguishedName(each) for each in sets])


def _attribute(oid: x509.ObjectIdentifier, value: str, kind: StringType) -> x509.NameAttribute[str]:
    if oid == NameOID.COUNTRY_NAME:
        return x509.NameAttribute(oid, "XX")
    return x509.NameAttribute(oid, value, kind, _validate=False)


def encoded(subject: x509.Name, begin: datetime.datetime, end: datetime.datetime, *, ca: bool = False) -> bytes:
    builder = (
        x509.CertificateBuilder(subject, subject, KEY.public_key(), x509.random_serial_number(), begin, end)
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"x"), critical=True)
    )
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def agrees_with_the_library(der: bytes) -> bool:
    """Whether ours accepts; raises AssertionError where it then says anything else than the library."""
    try:
        ours = certificate_text.read(der)
    except ValueError:
        return False
    try:
        theirs = x509.load_der_x509_certificate(der)
        subject = list(theirs.subject)
        validity = theirs.not_valid_before_utc.timestamp(), theirs.not_valid_after_utc.timestamp()
    except ValueError:
        return True  # damaged beside subject and validity: TLS refuses it, as the library does
    assert {OIDS[attribute.oid]: attribute.value for attribute in subject} == ours.subject
    assert len(subject) == len(ours.subject)
    assert len(theirs.subject.rdns) == len(ours.subject)
    assert (ours.not_before, ours.not_after) == validity
    return True


@given(name=names(), validity=st.floats(60.0, 40 * 365 * 86400.0))
@example(name="n1", validity=7200.0)
@example(
    name="é" * 32, validity=30 * 365 * 86400.0
)  # past 2049, where another kind of time begins – but for the CA's end
@settings(max_examples=100, deadline=None)
def test_what_our_authority_issues_is_accepted_and_read_as_the_library_reads_it(name: str, validity: float) -> None:
    chain = AUTHORITY.issue_person(CSR, name, Role.ADMIN, now=NOW, validity=validity)
    der = certificate_text.der_of_pem(chain)
    assert agrees_with_the_library(der)
    assert certificate_text.read(der).subject == {
        certificate_text.COMMON_NAME: name,
        certificate_text.ORGANIZATIONAL_UNIT: "swarm-admin",
        certificate_text.ORGANIZATION: "cluster",
    }
    theirs = x509.load_pem_x509_certificate(chain)
    assert der == theirs.public_bytes(serialization.Encoding.DER)
    assert certificate_text.pem_of_der(der) == theirs.public_bytes(serialization.Encoding.PEM)
    assert peer_from_certificate(chain).name == name


@given(
    subject=subjects(),
    begin=st.datetimes(datetime.datetime(1951, 1, 1), datetime.datetime(2120, 1, 1)),
    lifetime=st.timedeltas(datetime.timedelta(seconds=1), datetime.timedelta(days=9000)),
    ca=st.booleans(),
)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
def test_a_certificate_of_any_form_is_read_as_the_library_reads_it_or_refused(
    subject: x509.Name, begin: datetime.datetime, lifetime: datetime.timedelta, ca: bool
) -> None:
    begin, end = (each.replace(microsecond=0, tzinfo=datetime.UTC) for each in (begin, begin + lifetime))
    assume(end > begin)
    try:
        der = encoded(subject, begin, end, ca=ca)
    except (ValueError, UnicodeEncodeError):
        assume(False)
    agrees_with_the_library(der)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@given(data=st.data())
@settings(max_examples=1500, deadline=None)
def test_a_damaged_certificate_is_read_as_the_library_reads_it_or_refused(data: st.DataObject) -> None:
    der = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        # Mostly in the first half, where names, times and their lengths are.
        at = data.draw(st.integers(0, len(der) - 1) | st.integers(0, min(len(der), 200) - 1))
        length = data.draw(st.integers(0, 3))
        der[at : at + length] = data.draw(st.binary(max_size=4))
        assume(der)
    agrees_with_the_library(bytes(der))


def element(tag: int, *contents: bytes, long_form: int = 0) -> bytes:
    """DER, or with `long_form` a length in more bytes than it needs."""
    content = b"".join(contents)
    size = long_form or (0 if len(content) < 0x80 else (len(content).bit_length() + 7) // 8)
    length = bytes([0x80 | size]) + len(content).to_bytes(size) if size else bytes([len(content)])
    return bytes([tag]) + length + content


def attribute(oid: bytes, value: bytes, tag: int = 0x0C) -> bytes:
    return element(0x30, element(0x06, oid), element(tag, value))


CN, OU, O = (attribute(oid, b"x") for oid in (certificate_text.COMMON_NAME, certificate_text.ORGANIZATIONAL_UNIT, certificate_text.ORGANIZATION))  # fmt: skip  # noqa: E741,E501


def with_subject(*sets: bytes) -> bytes:
    """GOOD with another subject, its lengths mended."""
    outer = certificate_text._elements(GOOD)[0][1]
    signed, *rest = certificate_text._elements(outer)
    fields = certificate_text._elements(signed[1])
    fields[5] = (0x30, b"".join(sets))
    return element(0x30, element(0x30, *(element(*each) for each in fields)), *(element(*each) for each in rest))


def test_a_subject_of_our_form_may_be_put_in() -> None:
    assert agrees_with_the_library(with_subject(*(element(0x31, each) for each in (CN, OU, O))))


@pytest.mark.parametrize(
    "sets",
    [
        (element(0x31, CN), element(0x31, CN)),  # twice
        (element(0x31, CN, OU),),  # two in one set
        (element(0x31),),  # an empty set
        (element(0x30, CN),),  # not a set
        (element(0x31, CN, long_form=1),),
        (element(0x31, CN, long_form=4),),
        (element(0x31, attribute(certificate_text.COMMON_NAME, b"a\x00b")),),
        (element(0x31, attribute(certificate_text.COMMON_NAME, b"")),),
        (element(0x31, attribute(certificate_text.COMMON_NAME, b"a" * 65)),),
        (element(0x31, attribute(certificate_text.COMMON_NAME, b"\xc0\x80")),),  # NUL, in too many bytes
        (element(0x31, attribute(certificate_text.COMMON_NAME, b"a\n")),),
        (element(0x31, attribute(certificate_text.COMMON_NAME, b"\x00a", 0x1E)),),  # BMPString
        (element(0x31, attribute(certificate_text.COMMON_NAME, b"a", 0x16)),),  # IA5String
        (element(0x31, attribute(certificate_text.COMMON_NAME, b"a@b", 0x13)),),  # not printable
        (element(0x31, attribute(certificate_text.COMMON_NAME, b"a", 0x2C)),),  # a constructed string
        (element(0x31, attribute(bytes.fromhex("550406"), b"XX")),),  # another attribute
        (element(0x31, element(0x30, element(0x06, certificate_text.COMMON_NAME))),),
        (element(0x31, CN) + b"\x00",),
        (element(0x31, CN) + b"\x31\x80" + OU + b"\x00\x00",),  # indefinite length
    ],
)
def test_a_subject_of_another_form_is_refused(sets: Iterable[bytes]) -> None:
    with pytest.raises(ValueError):
        certificate_text.read(with_subject(*sets))


@pytest.mark.parametrize(
    "der",
    [
        b"",
        GOOD[:-1],
        GOOD + b"\x00",
        GOOD + GOOD,
        element(0x31, certificate_text._elements(GOOD)[0][1]),
        element(0x30, certificate_text._elements(GOOD)[0][1], long_form=4),
        element(0x30, certificate_text._elements(GOOD)[0][1], element(0x05)),
        element(0x30, element(0x30, bytes(certificate_text.MAX_DER_BYTES))),
    ],
)
def test_what_is_around_a_certificate_is_refused(der: bytes) -> None:
    with pytest.raises(ValueError):
        certificate_text.read(der)


def test_pem_without_a_certificate_is_refused() -> None:
    chain = AUTHORITY.certificate_pem
    for pem in (
        b"",
        chain.replace(b"BEGIN", b"BEGUN"),
        chain[:200],
        b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----",
        chain,  # the CA's own certificate names no role
    ):
        with pytest.raises(Unauthenticated):
            peer_from_certificate(pem)


NAMES = [
    "n1",
    "é" * 32,
    ' "x',
    "#a",
    "a b ",
    'a,b+c"d\\e<f>g;h',
    "a=b/c",
    "日本語😀",
    " ",
    "  ",
    "a#b",
    "a,OU=swarm-admin",
]


async def test_tls_reads_the_same_subject_whatever_the_name() -> None:
    """The names that RFC 2253 writes in a particular way, over real connections."""
    authority = TestAuthority()
    server_tls = authority.node("m1")
    seen: list[tuple[str, Role]] = []

    class Handlers(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
            async def serve(_: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
                peer = peer_from_auth_context(context.auth_context())
                seen.append((peer.name, peer.role))
                return b""

            return grpc.unary_unary_rpc_method_handler(serve)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handlers(),))
    credentials = grpc.ssl_server_credentials([(server_tls.key, server_tls.certificate)], server_tls.ca, True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        for name in NAMES:
            tls = authority.person(name, Role.VIEWER)
            async with open_channel(f"127.0.0.1:{port}", tls, "m1") as channel:
                who: Any = channel.unary_unary("/test/Who")
                await who(b"", timeout=10)
    finally:
        await server.stop(None)
    assert seen == [(name, Role.VIEWER) for name in NAMES]


def test_a_caller_of_whom_tls_read_something_else_is_refused() -> None:
    pem = TestAuthority().person("alice", Role.VIEWER).certificate
    right = b"O=cluster1,OU=swarm-viewer,CN=alice"
    assert peer_from_auth_context({"x509_pem_cert": [pem], "x509_subject": [right]}).name == "alice"
    for subjects_read in ([], [right, right], [right.replace(b"viewer", b"admin")], [right + b"+CN=n1"]):
        with pytest.raises(Unauthenticated, match="reads differently"):
            peer_from_auth_context({"x509_pem_cert": [pem], "x509_subject": subjects_read})
    for pems in ([], [pem, pem]):
        with pytest.raises(Unauthenticated, match="no certificate"):
            peer_from_auth_context({"x509_pem_cert": pems, "x509_subject": [right]})
