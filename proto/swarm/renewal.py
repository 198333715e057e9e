"""How a member keeps its certificate fresh.

`renewal_time` is pure: half of the lifetime, with jitter, so that a cluster that was made in one minute does not renew in
one minute. `Renewal` is the loop around it: a fresh key, a call to any manager, and the files replaced in one step. It also
renews at once when it is told that the node's role is to change: promotion and demotion travel in the certificate.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Sequence

import grpc

from swarm import apart
from swarm.cancellation import raise_if_cancelled
from swarm.channels import open_channel
from swarm.clock import Clock
from swarm.errors import InternalError, SwarmError, Unauthenticated, Unavailable, from_rpc
from swarm.identity import Peer, TlsFiles, TlsMaterial
from swarm.keys import der_of
from swarm.names import MANAGER_TLS_NAME
from swarm.retry import Backoff
from swarm.v1 import enrolment_pb2
from swarm.v1.enrolment_pb2_grpc import CertificatesStub

log = logging.getLogger(__name__)

CALL_TIMEOUT = 15.0  # seconds
JITTER = 0.1  # of the lifetime, around its half
REQUEST_INTERVAL = (
    5.0  # seconds at least from a renewal to the next that is asked for: a change of role can take a while
)
LONGEST_SLEEP = 3600.0  # seconds: a host that slept or whose clock was set looks again soon
_BACKOFF = Backoff(first=1.0, maximum=300.0)

Call = Callable[[str, TlsMaterial, bytes], Awaitable[enrolment_pb2.RenewResponse]]


def renewal_time(peer: Peer, draw: float) -> float:
    """When to renew (seconds since the epoch), between 45 % and 55 % of the certificate's life. `draw` is from [0, 1)."""
    lifetime = max(0.0, peer.expires_at - peer.issued_at)
    return peer.issued_at + lifetime * (0.5 + JITTER * (draw - 0.5))


async def renew_at(address: str, tls: TlsMaterial, csr_pem: bytes) -> enrolment_pb2.RenewResponse:
    """Asks the manager at `address` (HOST:PORT, cluster port). Raises what it answers, Unavailable where it does not."""
    async with open_channel(address, tls, MANAGER_TLS_NAME) as channel:
        try:
            return await CertificatesStub(channel).Renew(
                enrolment_pb2.RenewRequest(csr_pem=csr_pem), timeout=CALL_TIMEOUT
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, f"manager {address}") from error


class Renewal:
    """Renews the certificate in `files`, as long as `run` runs.

    `managers` gives the cluster addresses to ask, best first. `on_renewed` is told of each new certificate (its role may be
    another). `failed` is the last failure, None after a success.
    """

    def __init__(
        self,
        files: TlsFiles,
        managers: Callable[[], Sequence[str]],
        *,
        clock: Clock,
        rng: random.Random,
        on_renewed: Callable[[Peer], Awaitable[None]],
        call: Call = renew_at,
    ) -> None:
        self._files = files
        self._managers = managers
        self._clock = clock
        self._rng = rng
        self._on_renewed = on_renewed
        self._call = call
        self._now = asyncio.Event()
        self._not_before = 0.0  # of the wall clock: when the next request may be answered
        self.failed: SwarmError | None = None

    def request(self) -> None:
        """Renew without waiting for the time: the desired role changed, or the address did."""
        self._now.set()

    async def run(self) -> None:
        """Until cancelled, or until the cluster says that this node is no member any more (raises Unauthenticated)."""
        failures = _BACKOFF.delays(self._rng)
        due = self._clock.wall()  # where it cannot be read, trying at once says so
        with contextlib.suppress(SwarmError):
            due = renewal_time(self._files.read().peer, self._rng.random())
        while True:
            await self._wait_until(due)
            self._now.clear()
            try:
                peer = await self.renew()
            except Unauthenticated as error:
                self.failed = error
                raise
            except SwarmError as error:
                raise_if_cancelled()
                self.failed = error
                log.warning("the certificate was not renewed and will be tried again: %s", error)
                due = self._clock.wall() + next(failures)
                continue
            self.failed = None
            self._not_before = self._clock.wall() + REQUEST_INTERVAL
            failures = _BACKOFF.delays(self._rng)
            due = renewal_time(peer, self._rng.random())
            await self._on_renewed(peer)

    async def renew(self) -> Peer:
        """Renews now, through the first manager that answers. Raises the refusal, or Unavailable where none answers."""
        tls = await asyncio.to_thread(self._files.read)
        keys = await apart.new_key_and_request(tls.peer.name)
        answer = await self._ask(tls, keys.csr_pem)
        if der_of(answer.ca_pem) != der_of(tls.ca):
            raise InternalError("the manager answered with a certificate of another CA; it was not taken")
        await apart.check_issued(keys.key_pem, answer.certificate_pem, answer.ca_pem)
        await asyncio.to_thread(self._files.write, keys.key_pem, answer.certificate_pem, answer.ca_pem)
        renewed = TlsMaterial(keys.key_pem, answer.certificate_pem, answer.ca_pem).peer
        log.info("the certificate of %s was renewed as %s", renewed.name, renewed.role.value)
        return renewed

    async def _ask(self, tls: TlsMaterial, csr_pem: bytes) -> enrolment_pb2.RenewResponse:
        unreachable: list[str] = []
        for address in self._managers():
            try:
                return await self._call(address, tls, csr_pem)
            except Unavailable as error:
                unreachable.append(str(error))
        raise Unavailable("; ".join(unreachable) or "no manager's address is known")

    async def _wait_until(self, due: float) -> None:
        """Waits for the wall clock to reach `due`, or for `request` (at once, if the last renewal is not just over)."""
        while True:
            asked = self._now.is_set()
            left = (min(due, self._not_before) if asked else due) - self._clock.wall()
            if left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, LONGEST_SLEEP)):
                    await (asyncio.Event() if asked else self._now).wait()
