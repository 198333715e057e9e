"""Calls to whichever manager (or node daemon) answers.

A `Caller` knows several places to knock and keeps to the one that answered last. A place where nobody listens costs a
failed connect and no more. A call that fails because its manager is gone or has no leader is repeated at the others, with
growing pauses and the same request id, until a deadline; a write is thus done once however often it is sent. What a
manager *says* (not found, invalid …) is never repeated, but for the word that it is no manager any more; nor is anything
that a node daemon says, which knows best of its host.

gRPC is imported here and nowhere else in the command line.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import grpc
from swarm.channels import open_blocking_channel, open_blocking_local
from swarm.errors import (
    KIND_METADATA_KEY,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    OutcomeUnknown,
    PermissionDenied,
    SwarmError,
    Unavailable,
    connection_reason,
    from_rpc,
)
from swarm.ids import IdSource, id_source
from swarm.names import MANAGER_TLS_NAME
from swarm.retry import Backoff

from orchestrator.cli.target import Endpoint

if TYPE_CHECKING:
    from swarm.v1.control_pb2 import Replica

StubT = TypeVar("StubT")
RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")

PATIENCE = 12.0  # seconds after which a call that finds no working manager is given up
ATTEMPT_TIMEOUT = 8.0  # seconds for one attempt at one manager, where there are others to try
ANSWER_TIME = 3.5  # seconds in which a manager that finds no leader has said so
CONNECT_TIMEOUT = 2.0  # seconds to find out whether anybody listens at a network address
RESUME_PAUSE = 0.2  # seconds before a broken stream is taken up again
BACKOFF = Backoff(first=0.05, maximum=1.0)


@dataclass(frozen=True)
class Shell:
    """Clock, waiting and randomness of a session; tests hand in their own."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    rng: random.Random = random.Random()  # noqa: RUF009 – jitter only; one generator for the process is what is wanted
    new_id: IdSource = id_source()  # noqa: RUF009 – as above


class _NobodyThere(Unavailable):
    """Nothing was sent: no listener at this place."""


class _Broken(OutcomeUnknown):
    """A connection that broke, or an answer that did not come."""


class Caller(Generic[StubT]):
    """Calls one kind of service at the first of several places that answers."""

    def __init__(
        self,
        endpoints: tuple[Endpoint, ...],
        make_stub: Callable[[grpc.Channel], StubT],
        *,
        what: str = "manager",
        hint: str = "is swarmd running there?",
        final: bool = False,
        patience: float = PATIENCE,
        stale: bool = False,
        shell: Shell | None = None,
    ) -> None:
        """`final`: what one place says holds, also that something cannot be reached; no other place would know better.
        `stale`: reads are content with what the manager that answers has in its replica."""
        self._endpoints = list(endpoints)
        self._make_stub = make_stub
        self._what = what
        self._hint = hint
        self._final = final
        self._patience = patience
        self._stale = stale
        self._shell = shell or Shell()
        self.replica: Replica | None = None  # of which state the last stale answer was
        self._open: dict[Endpoint, tuple[grpc.Channel, StubT]] = {}

    def close(self) -> None:
        for channel, _ in self._open.values():
            channel.close()
        self._open.clear()

    def call(
        self,
        method: Callable[[StubT], grpc.UnaryUnaryMultiCallable[RequestT, ResponseT]],
        request: RequestT,
        *,
        timeout: float = ATTEMPT_TIMEOUT,
    ) -> ResponseT:
        """Calls a method that answers once. A `request_id` and `stale` are filled in where the request has room for them.

        Raises what the manager said; Unavailable where no manager answers; OutcomeUnknown where a write may have happened.
        """
        writes = self._give_id(request)
        stale = self._stale and _has(request, "stale")
        if stale:
            cast(Any, request).stale = True

        def attempt(stub: StubT, seconds: float) -> ResponseT:
            return method(stub)(request, timeout=seconds)

        answer: Any = self._persist(attempt, timeout, writes)
        if stale and _has(answer, "replica") and answer.HasField("replica"):  # an older manager's answer has none
            self.replica = answer.replica
        return cast(ResponseT, answer)

    def stream(
        self,
        method: Callable[[StubT], grpc.UnaryStreamMultiCallable[RequestT, ResponseT]],
        request: Callable[[], RequestT],
        *,
        timeout: float | None = None,
    ) -> Iterator[ResponseT]:
        """Yields the answers of a stream, and goes on at another manager when one goes away.

        `request` is asked for at each (re)start, so that it can say where to go on. Gives up when no answer came for
        `patience` seconds after a break. Ends, and cancels the call, with the caller.
        """
        while True:
            stream = self._persist(lambda stub, _: _first_of(method(stub)(request(), timeout=timeout)), self._patience)
            try:
                yield from stream
                return
            except grpc.RpcError as error:
                broken = from_rpc(error, self._endpoints[0].name)
                if self._final or not isinstance(broken, (Unavailable, OutcomeUnknown)):
                    raise broken from error
            finally:
                stream.cancel()
            self._shell.sleep(RESUME_PAUSE)

    def send_stream(
        self,
        method: Callable[[StubT], grpc.StreamStreamMultiCallable[RequestT, ResponseT]],
        requests: Iterator[RequestT],
        *,
        timeout: float,
    ) -> Iterator[ResponseT]:
        """Sends a stream and yields the answers. Not repeated: what was read from `requests` is gone. What `requests` raises is
        raised, and the call given up."""
        stub = self._first_that_listens()
        begun = threading.Event()
        failures: list[Exception] = []

        def sent() -> Iterator[RequestT]:
            # On a thread of gRPC's, which would print the traceback and say no more than that there was one.
            try:
                yield from requests
            except Exception as error:  # noqa: BLE001 – raised again below
                failures.append(error)
                begun.wait()
                answers.cancel()  # a stream that just ended would be taken for the whole

        answers = method(stub)(sent(), timeout=timeout)
        begun.set()
        try:
            yield from answers
        except grpc.RpcError as error:
            if failures:
                raise failures[0] from None
            raise from_rpc(error, self._endpoints[0].name) from error
        finally:
            answers.cancel()

    def _give_id(self, request: Any) -> bool:
        """Whether the request writes, which is what its `request_id` says."""
        if not _has(request, "request_id"):
            return False
        if not request.request_id:
            request.request_id = self._shell.new_id()
        return True

    def _first_that_listens(self) -> StubT:
        failures: list[SwarmError] = []
        for endpoint in list(self._endpoints):
            try:
                stub = self._stub(endpoint)
            except _NobodyThere as error:
                failures.append(error)
                continue
            self._keep_to(endpoint)
            return stub
        raise self._nobody(failures)

    def _persist(self, attempt: Callable[[StubT, float], ResponseT], timeout: float, writes: bool = False) -> ResponseT:
        began = self._shell.now()
        deadline = began + max(self._patience, timeout)  # of an answer; for the reasons why there is none see `give_up`
        give_up = 0.0
        delays = BACKOFF.delays(self._shell.rng)
        said: SwarmError | None = None  # the managers' own word for why not, rather than our word for their silence
        unknown: SwarmError | None = None
        while True:
            failures: list[SwarmError] = []
            for endpoint in list(self._endpoints):
                left = deadline - self._shell.now()
                if said is not None and left < ANSWER_TIME:
                    break  # cut short, an attempt tells less than what was said before
                seconds = max(0.001, min(timeout, left))
                try:
                    answer = self._attempt(endpoint, attempt, seconds)
                except (Unavailable, OutcomeUnknown) as error:
                    if self._final and not isinstance(error, (_NobodyThere, _Broken)):
                        raise
                    failures.append(error)
                    said = said if isinstance(error, (_NobodyThere, _Broken)) else error
                    if writes and isinstance(error, OutcomeUnknown):
                        unknown = error
                else:
                    self._keep_to(endpoint)
                    return answer
                # A long time for an answer is no reason to ask for long where there is none.
                give_up = give_up or min(deadline, max(began, self._shell.now() - ANSWER_TIME) + self._patience)
                if self._shell.now() >= give_up:
                    break
            nobody = all(isinstance(failure, _NobodyThere) for failure in failures)
            wait = next(delays)
            ends = give_up - ANSWER_TIME if said is not None else give_up
            if (nobody and unknown is None) or self._shell.now() + wait >= ends:
                if unknown is not None:
                    raise OutcomeUnknown(
                        f"{said or unknown}; the change may or may not have been made: look before repeating it"
                    )
                raise self._nobody(failures, said)
            self._shell.sleep(wait)

    def _attempt(self, endpoint: Endpoint, attempt: Callable[[StubT, float], ResponseT], seconds: float) -> ResponseT:
        stub = self._stub(endpoint)
        try:
            return attempt(stub, seconds)
        except grpc.RpcError as error:
            found = from_rpc(error, endpoint.name)
            if not _said_by_server(error):
                details = error.details() if isinstance(error, grpc.Call) else ""
                found = self._broken(endpoint, found, connection_reason(details or ""), seconds)
            raise found from error

    def _broken(self, endpoint: Endpoint, error: SwarmError, reason: str, seconds: float) -> SwarmError:
        """What a failure of the connection (not of the request) means."""
        if isinstance(error, DeadlineExceeded):
            return _Broken(f"{self._what} {endpoint.name} did not answer within {seconds:.0f} s")
        if isinstance(error, Unavailable):
            self._forget(endpoint)
            if any(word in reason.lower() for word in ("ssl", "handshake", "certificate", "tls")):
                return PermissionDenied(
                    f"{self._what} {endpoint.name} and the certificate in {endpoint.tls} do not trust each other "
                    f"({reason}); is it of this cluster, and still valid?"
                )
            return _Broken(f"the connection to {self._what} {endpoint.name} broke ({reason})")
        return error

    def _stub(self, endpoint: Endpoint) -> StubT:
        found = self._open.get(endpoint)
        if found is None:
            _knock(endpoint)
            path = endpoint.socket
            if path is not None:
                channel = open_blocking_local(path)
            elif endpoint.tls is not None:
                from swarm.identity import TlsFiles  # most commands use the local socket

                channel = open_blocking_channel(endpoint.address, TlsFiles(endpoint.tls).read(), MANAGER_TLS_NAME)
            else:
                raise FailedPrecondition(f"{endpoint.name} needs a certificate; give its directory with --tls")
            found = self._open[endpoint] = (channel, self._make_stub(channel))
        return found[1]

    def _forget(self, endpoint: Endpoint) -> None:
        found = self._open.pop(endpoint, None)
        if found is not None:
            found[0].close()

    def _keep_to(self, endpoint: Endpoint) -> None:
        self._endpoints.remove(endpoint)
        self._endpoints.insert(0, endpoint)

    def _nobody(self, failures: list[SwarmError], said: SwarmError | None = None) -> SwarmError:
        heard = [failure for failure in failures if not isinstance(failure, _NobodyThere)]
        if said is not None or heard:
            told = said or heard[-1]
            return told if isinstance(told, Unavailable) else Unavailable(str(told))
        reasons = "; ".join(str(failure) for failure in failures)
        return Unavailable(f"no {self._what} is reachable ({reasons}); {self._hint}")


def _has(message: Any, field: str) -> bool:
    return field in message.DESCRIPTOR.fields_by_name


def _first_of(call: Any) -> Any:
    """A stream after its first answer has come (or its end, or its failure): so that a dead manager shows at once."""
    return _Peeked(call)


class _Peeked(Iterator[Any]):
    """A stream of answers whose first has been fetched already."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._first: list[Any] = []
        self._ended = False
        try:
            self._first.append(next(call))
        except StopIteration:
            self._ended = True

    def __next__(self) -> Any:
        if self._first:
            return self._first.pop()
        if self._ended:
            raise StopIteration
        return next(self._call)

    def cancel(self) -> None:
        self._call.cancel()


def _said_by_server(error: grpc.RpcError) -> bool:
    trailing: Any = error.trailing_metadata() if isinstance(error, grpc.Call) else None
    return any(key == KIND_METADATA_KEY for key, _ in trailing or ())


def _knock(endpoint: Endpoint) -> None:
    """Raises _NobodyThere unless somebody listens: cheaper and clearer than what gRPC makes of it."""
    path = endpoint.socket
    if path is not None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(CONNECT_TIMEOUT)
            try:
                probe.connect(str(path))
            except PermissionError as error:
                raise PermissionDenied(
                    f"{path} is not open to this user; run as root or as a member of the group swarm"
                ) from error
            except OSError as error:
                named = "" if endpoint.name == str(path) else f"{endpoint.name}: "
                raise _NobodyThere(f"{named}nobody listens at {path}") from error
        return
    host, _, port = endpoint.address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT):
            pass
    except UnicodeError as error:
        raise InvalidArgument(f"--host {endpoint.address}: {host!r} is not the name or address of a host") from error
    except OSError as error:
        raise _NobodyThere(f"{endpoint.address}: {error.strerror or error}") from error
