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
