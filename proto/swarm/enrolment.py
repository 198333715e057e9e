"""How a host becomes a member: the joining side.

The host knows a token and some addresses. It looks at the chain that the server at an address shows, without trusting it,
and takes from it the CA certificate whose digest the token names. Where there is none, that server is of another cluster
and never sees the secret. With that CA as its only trust it then makes one ordinary gRPC call: here is the secret and a
signing request, who am I? The private key is made here and stays here.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from swarm import apart
from swarm.channels import open_enrolment_channel
from swarm.errors import InvalidArgument, OutcomeUnknown, SwarmError, Unauthenticated, Unavailable, from_rpc
from swarm.identity import TlsFiles
from swarm.keys import der_of, pem_of
from swarm.names import CLUSTER_PORT, ENROLMENT_PORT, MANAGER_TLS_NAME
from swarm.retry import Backoff, retry
from swarm.tokens import JoinToken, ca_digest, parse_token
from swarm.v1 import enrolment_pb2, types_pb2
from swarm.v1.enrolment_pb2_grpc import EnrolmentStub

CONNECT_TIMEOUT = 5.0  # seconds, to one address
CALL_TIMEOUT = 20.0  # seconds: a new leader may have to be elected meanwhile
_BACKOFF = Backoff(first=0.2, maximum=2.0, attempts=3)


@dataclass(frozen=True)
class Joined:
    """What a member knows about itself once it joined. Its certificate is already in the TlsFiles."""

    node_id: str
    cluster_id: str
    role: types_pb2.NodeRole.ValueType
    managers: tuple[str, ...]  # HOST:PORT of the managers' cluster ports


async def join(
    token: str,
    addresses: Sequence[str],
    *,
    files: TlsFiles,
    hostname: str,
    advertise_address: str,
    request_id: str,
    availability: types_pb2.Availability.ValueType = types_pb2.AVAILABILITY_ACTIVE,
    rng: random.Random | None = None,
    backoff: Backoff = _BACKOFF,
) -> Joined:
    """Joins the cluster that `token` names through one of `addresses` (HOST[:PORT] of enrolment ports, tried in order), and
    writes key, certificate and CA certificate to `files`.

    The same `request_id` again is the same member again. Raises InvalidArgument (malformed token or address),
    Unauthenticated (another cluster, unknown token), Unavailable (no address answers, or the cluster has no leader).
    """
    parsed = parse_token(token)
    targets = [with_default_port(address) for address in addresses]
    if not targets:
        raise InvalidArgument("joining needs the address of at least one manager, as HOST or HOST:PORT")
    keys = await apart.new_key_and_request(hostname)
    request = enrolment_pb2.JoinRequest(
        secret=parsed.secret,
        csr_pem=keys.csr_pem,
        hostname=hostname,
        address=advertise_address,
        request_id=request_id,
        availability=availability,
    )

    async def attempt() -> enrolment_pb2.JoinResponse:
        return await _first_answer(targets, parsed, request)

    answer = await retry(
        attempt,
        backoff=backoff,
        rng=rng if rng is not None else random.Random(),
        on=(Unavailable, OutcomeUnknown),
    )
    if ca_digest(der_of(answer.ca_pem)) != parsed.digest:
        raise Unauthenticated("the manager answered with another CA certificate than the join token names")
    await apart.check_issued(keys.key_pem, answer.certificate_pem, answer.ca_pem)
    await asyncio.to_thread(files.write, keys.key_pem, answer.certificate_pem, answer.ca_pem)
    return Joined(answer.node_id, answer.cluster_id, answer.role, tuple(answer.managers))


async def _first_answer(
    targets: Sequence[str], token: JoinToken, request: enrolment_pb2.JoinRequest
) -> enrolment_pb2.JoinResponse:
    """Asks the addresses in turn. One that does not answer is passed over; one that refuses ends it."""
    unreachable: list[Unavailable] = []
    for target in targets:
        try:
            ca_pem = await fetch_ca(target, token)
            return await _call(target, ca_pem, request)
        except Unavailable as error:
            unreachable.append(error)
    raise Unavailable("; ".join(str(error) for error in unreachable))


async def _call(target: str, ca_pem: bytes, request: enrolment_pb2.JoinRequest) -> enrolment_pb2.JoinResponse:
    async with open_enrolment_channel(target, ca_pem, MANAGER_TLS_NAME) as channel:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await channel.channel_ready()
        except TimeoutError as error:
            raise Unavailable(
                f"manager {target}: no trusted connection within {CONNECT_TIMEOUT:g} s; {_likely_reason(target)}"
            ) from error
        try:
            return await EnrolmentStub(channel).Join(request, timeout=CALL_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            raise _unless_sent(from_rpc(error, f"manager {target}")) from error


def _likely_reason(target: str) -> str:
    if split_address(target)[1] == CLUSTER_PORT:
        return f"hosts join at port {ENROLMENT_PORT}, {CLUSTER_PORT} is for members"
    return "is its certificate expired, or this host's clock wrong?"


def _unless_sent(error: SwarmError) -> SwarmError:
    """A call that got no answer in time may have been served; our request id makes asking again safe."""
    return OutcomeUnknown(str(error)) if error.status is grpc.StatusCode.DEADLINE_EXCEEDED else error


async def fetch_ca(target: str, token: JoinToken) -> bytes:
    """The CA certificate (PEM) that the server at `target` shows and that `token` names.

    Raises Unauthenticated where the server shows none of that digest, Unavailable where it does not answer.
    """
    for der in await apart.shown_chain(*split_address(target)):
        if ca_digest(der) == token.digest:
            return pem_of(der)
    raise Unauthenticated(
        f"manager {target} belongs to another cluster than the join token; "
        "take the token from that cluster with `swarmctl swarm join-token`, or check the address"
    )


def with_default_port(address: str, port: int = ENROLMENT_PORT) -> str:
    """HOST, HOST:PORT, [V6] or [V6]:PORT → HOST:PORT. Raises InvalidArgument."""
    text = address.strip()
    bracketed = text.startswith("[")
    has_port = "]:" in text if bracketed else text.count(":") == 1
    if text.count(":") > 1 and not bracketed:
        text = f"[{text}]"
    complete = text if has_port else f"{text}:{port}"
    split_address(complete)
    return complete


def split_address(address: str) -> tuple[str, int]:
    """HOST:PORT → (HOST, PORT), without the brackets of an IPv6 address. Raises InvalidArgument."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise InvalidArgument(f"{address!r} is not an address: write HOST or HOST:PORT with a port from 1 to 65535")
    return host, int(port)
