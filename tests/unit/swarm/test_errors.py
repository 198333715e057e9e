"""Errors keep their kind on their way, and only kinds that both sides know travel."""

from __future__ import annotations

import grpc
import pytest
from swarm import errors
from swarm.errors import KIND_METADATA_KEY, InternalError, SwarmError, from_rpc, kind_named, to_status


class Conflict(InternalError):
    """A module's own error that happens to be called as one of ours."""


def over_the_wire(error: SwarmError) -> SwarmError:
    status, details, metadata = to_status(error)
    return from_rpc(grpc.aio.AioRpcError(status, grpc.aio.Metadata(), grpc.aio.Metadata(*metadata), details))


@pytest.mark.parametrize("kind", sorted(errors._all_kinds()))
def test_each_kind_arrives_as_itself(kind: str) -> None:
    arrived = over_the_wire(kind_named(kind)("a sentence"))
    assert type(arrived) is getattr(errors, kind)
    assert str(arrived) == "a sentence"


def test_an_error_of_a_module_travels_as_its_base_and_takes_no_ones_name() -> None:
    assert type(over_the_wire(Conflict("inside"))) is InternalError
    assert kind_named("Conflict") is errors.Conflict
    assert type(over_the_wire(errors.Conflict("changed"))) is errors.Conflict


def test_a_kind_of_a_newer_version_falls_back_to_its_status() -> None:
    metadata = grpc.aio.Metadata((KIND_METADATA_KEY, "Future"))
    error = grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), metadata, "gone")
    assert type(from_rpc(error)) is errors.NotFound
    assert kind_named("Future") is InternalError


def test_long_sentences_fit_into_a_trailer() -> None:
    assert len(to_status(InternalError("x" * 10_000))[1]) == errors.MAX_MESSAGE_LENGTH


@pytest.mark.parametrize(
    ("status", "details", "kind", "sentence"),
    [
        (
            grpc.StatusCode.UNAVAILABLE,
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.9.0.1:2378: Failed to connect to remote host: "
            "connect: Connection refused (111)",
            errors.Unavailable,
            "manager m1 cannot be reached (Connection refused)",
        ),
        (
            grpc.StatusCode.UNAVAILABLE,
            "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:10.9.0.1:2378: Ssl handshake failed "
            "(TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1000007d:SSL routines:OPENSSL_internal:"
            "CERTIFICATE_VERIFY_FAILED: self signed certificate",
            errors.Unavailable,
            "manager m1 cannot be reached (TLS: self signed certificate)",
        ),
        (
            grpc.StatusCode.UNAVAILABLE,
            "recvmsg:Connection reset by peer",
            errors.Unavailable,
            "the connection to manager m1 broke (Connection reset by peer)",
        ),
        (
            grpc.StatusCode.UNAVAILABLE,
            "Stream removed (recvmsg:Connection timed out)",
            errors.Unavailable,
            "the connection to manager m1 broke (Connection timed out)",
        ),
        (
            grpc.StatusCode.UNAVAILABLE,
            "GOAWAY received; Error code: 2; Debug Text: Cancelling all calls {http2_error:2}",
            errors.Unavailable,
            "the connection to manager m1 broke (GOAWAY received)",
        ),
        (
            grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", errors.DeadlineExceeded,
            "manager m1 did not answer in time",
        ),
        (
            grpc.StatusCode.UNIMPLEMENTED, "Method not found!", errors.FailedPrecondition,
            "manager m1 does not offer this call: it is another port than 2378, or another version of the program",
        ),
    ],
)  # fmt: skip
def test_what_grpc_says_of_itself_becomes_a_sentence(
    status: grpc.StatusCode, details: str, kind: type[SwarmError], sentence: str
) -> None:
    error = from_rpc(grpc.aio.AioRpcError(status, grpc.aio.Metadata(), grpc.aio.Metadata(), details), "manager m1")
    assert (type(error), str(error)) == (kind, sentence)
