"""The one error hierarchy.

Each error knows its gRPC status, the exit code of a command that ends with it, and carries one sentence for the user:
what happened, to what, and what to do.  `to_status` and `from_rpc` carry an error over the wire without losing its kind;
anything that is not a `SwarmError` is a bug and reaches the user as `InternalError` with the log's place, never as a
traceback.

Exit codes are stable (documented in docs/exit-codes.md): 0 done, 1 internal, 2 usage or invalid input, 3 not found,
4 already exists or in use, 5 no manager reachable or no quorum, 6 not allowed, 7 deadline passed or not converged,
8 a resource is exhausted, 9 outcome unknown, 10 the state does not allow it, 130 interrupted.
"""

from __future__ import annotations

import errno
import re
from typing import ClassVar

import grpc

KIND_METADATA_KEY = "swarm-error-kind"
MAX_MESSAGE_LENGTH = 4000  # HTTP/2 trailers are limited to 8 KiB by default


class SwarmError(Exception):
    """Base of all errors that are shown to people. `str(error)` is the sentence."""

    status: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    exit_code: ClassVar[int] = 1

    @property
    def kind(self) -> str:
        """What travels: the nearest class of this module. Classes of other modules are for those who know them, and may
        bear names that are taken here."""
        return next(kind.__name__ for kind in type(self).__mro__ if kind.__module__ == __name__)


class InternalError(SwarmError):
    """A defect of ours, or of a part below us."""


class InvalidArgument(SwarmError):
    """The request itself is wrong, whatever the state."""

    status = grpc.StatusCode.INVALID_ARGUMENT
    exit_code = 2


class NotFound(SwarmError):
    status = grpc.StatusCode.NOT_FOUND
    exit_code = 3


class AlreadyExists(SwarmError):
    """A name, a port or an address is taken."""

    status = grpc.StatusCode.ALREADY_EXISTS
    exit_code = 4


class Conflict(SwarmError):
    """The object changed since it was read; read it again and repeat."""

    status = grpc.StatusCode.ABORTED
    exit_code = 4


class InUse(SwarmError):
    """Something still needs the object."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    exit_code = 4


class FailedPrecondition(SwarmError):
    """The state does not allow the request now."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    exit_code = 10


class Unavailable(SwarmError):
    """No manager reachable, no leader, no quorum, or a peer is not there: repeat later."""

    status = grpc.StatusCode.UNAVAILABLE
    exit_code = 5


class NotLeader(Unavailable):
    """The manager that was asked does not lead (any more); nothing was written, so asking the leader is always safe."""


class PermissionDenied(SwarmError):
    status = grpc.StatusCode.PERMISSION_DENIED
    exit_code = 6


class ManagerDemoted(PermissionDenied):
    """The caller speaks for somebody as a manager does, and is none (any more). Nothing was done; another manager can."""


class Unauthenticated(SwarmError):
    """A certificate or token is missing, foreign, expired or revoked."""

    status = grpc.StatusCode.UNAUTHENTICATED
    exit_code = 6


class NodeRemoved(Unauthenticated):
    """To this manager the caller is not, or no longer, a member of the swarm. A majority of managers knows for sure."""


class HistoryCut(Unauthenticated):
    """The caller is a manager that the swarm was recovered, or restored from a snapshot, without. Its host does not leave by
    itself, as after `NodeRemoved`: what its manager holds may still be of use."""


class DeadlineExceeded(SwarmError):
    status = grpc.StatusCode.DEADLINE_EXCEEDED
    exit_code = 7


class ResourceExhausted(SwarmError):
    """A disk, a queue, an address pool is full."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    exit_code = 8


class OutcomeUnknown(SwarmError):
    """A write may or may not have happened; repeating it with the same request id is safe."""

    status = grpc.StatusCode.UNKNOWN
    exit_code = 9


def is_disk_full(error: BaseException) -> bool:
    """Whether a file system had no room, or a quota none left."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def first_error(errors: BaseExceptionGroup) -> BaseException:
    """The failure that a group of jobs ended with; a SwarmError where there is one."""
    expected, unexpected = errors.split(SwarmError)
    group: BaseExceptionGroup | None = expected if expected is not None else unexpected
    assert group is not None
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first


def _all_kinds() -> dict[str, type[SwarmError]]:
    found: dict[str, type[SwarmError]] = {}
    waiting: list[type[SwarmError]] = [SwarmError]
    while waiting:
        kind = waiting.pop()
        found[kind.__name__] = kind
        waiting.extend(derived for derived in kind.__subclasses__() if derived.__module__ == __name__)
    return found


def kind_named(name: str) -> type[SwarmError]:
    """The class of that name (`SwarmError.kind`); InternalError where this version does not know it."""
    return _all_kinds().get(name, InternalError)


_BY_STATUS: dict[grpc.StatusCode, type[SwarmError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNKNOWN: OutcomeUnknown,
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.UNIMPLEMENTED: FailedPrecondition,
}


def to_status(error: SwarmError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]:
    """The status, the details and the trailing metadata that carry `error` to a caller."""
    return error.status, str(error)[:MAX_MESSAGE_LENGTH], ((KIND_METADATA_KEY, error.kind),)


def from_rpc(error: grpc.RpcError, peer: str = "") -> SwarmError:
    """The error that a call failed with. `peer` names whom we called, for failures of the connection itself."""
    # Both kinds of stubs raise an error that is a call as well, with the same three methods.
    if not isinstance(error, (grpc.aio.AioRpcError, grpc.Call)):
        return InternalError(f"the call failed: {error}")
    details = error.details() or error.code().name.lower()
    for key, value in error.trailing_metadata() or ():
        if key == KIND_METADATA_KEY:
            kind = _all_kinds().get(value.decode() if isinstance(value, bytes) else value)
            if kind is not None:
                return kind(details)
    kind = _BY_STATUS.get(error.code(), InternalError)
    return kind(_in_our_words(error.code(), details, peer or "the other side"))


def _in_our_words(code: grpc.StatusCode, details: str, peer: str) -> str:
    """What gRPC itself says of a call, in a sentence."""
    match code:
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            reason = connection_reason(details)
            if "connect" in details.partition(";")[0] and "all addresses" in details:
                return f"{peer} cannot be reached ({reason})"
            return f"the connection to {peer} broke ({reason})"
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"{peer} did not answer in time"
        case grpc.StatusCode.UNIMPLEMENTED:
            return f"{peer} does not offer this call: it is another port than 2378, or another version of the program"
        case _:
            return f"{peer}: {details}"


def connection_reason(details: str) -> str:
    """What is worth telling of gRPC's account of a failed connection: its last and innermost part."""
    last = details.rpartition("last error: ")[2]
    verification = re.search(r"CERTIFICATE_VERIFY_FAILED: ([a-z ]+)", last)
    if verification is not None:
        return f"TLS: {verification[1].strip()}"
    reason = re.sub(r"^(?:[A-Z_]+: )?(?:(?:ipv[46]|unix):\S+: )?", "", last).partition(";")[0]
    reason = re.sub(r"^Stream removed \((.*)\)$", r"\1", reason)
    reason = re.sub(
        r"^(?:Failed to connect to remote host: )?(?:recvmsg:|connect: |getsockopt\(SO_ERROR\): )?", "", reason
    )
    reason = re.sub(r"\s*\(\d+\)", "", reason)
    return reason or "no reason given"
