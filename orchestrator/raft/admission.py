"""How managers become members of the log, and leave it.

A new manager proves who it is by its certificate (role manager) and says where it listens. It may ask any member; who does
not lead names the leader. The leader adds it as a learner, brings it up to date, gives it its vote, and only then answers.
Asking again is harmless: a member that is there is only given its new address.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol

import grpc
from swarm.cancellation import raise_if_cancelled
from swarm.channels import open_channel
from swarm.errors import FailedPrecondition, InvalidArgument, SwarmError, Unavailable, from_rpc
from swarm.identity import Role, TlsMaterial, peer_from_auth_context
from swarm.retry import Backoff, retry
from swarm.v1 import raft_pb2 as pb
from swarm.v1 import raft_pb2_grpc as rpc

from orchestrator.consensus import Leadership, Member
from orchestrator.raft.config import RaftConfig

log = logging.getLogger(__name__)

_ANY_MANAGER = Role.MANAGER.value  # the TLS name that every manager's certificate carries
_CHANGE_TIMEOUT = 20.0
_ATTEMPT_TIMEOUT = 25.0
_PATIENCE = Backoff(first=0.05, maximum=1.0)

_Call = Callable[["rpc.RaftMembershipAsyncStub", float], Awaitable[pb.RaftMembershipResponse]]


async def join_cluster(
    addresses: Iterable[str], tls: TlsMaterial, member: Member, timeout: float, *, feature_level: int = 1
) -> tuple[Member, ...]:
    """Has this manager added to the log of the managers at `addresses`; returns all members once it has its vote.

    `member.node_id` must be the one of the certificate, and the manager must already serve its cluster port with
    `RaftNode.register`, its RaftNode being started. Raises Unavailable after `timeout` seconds; asking again is harmless.
    """
    response = await _ask_leader(
        addresses,
        tls,
        lambda stub, left: stub.Join(
            pb.RaftJoinRequest(address=member.address, feature_level=feature_level), timeout=left
        ),
        timeout,
    )
    return tuple(Member(m.node_id, m.address) for m in response.members)


async def leave_cluster(addresses: Iterable[str], tls: TlsMaterial, timeout: float) -> None:
    """Has the member whose certificate `tls` is removed from the log."""
    await _ask_leader(addresses, tls, lambda stub, left: stub.Leave(pb.RaftLeaveRequest(), timeout=left), timeout)


async def supported_level(member: Member, tls: TlsMaterial, timeout: float) -> int:
    """The feature level that the program of a manager supports. Raises Unavailable."""
    response = await _ask(
        member.address, tls, lambda stub, left: stub.List(pb.RaftListRequest(), timeout=left), timeout
    )
    return max(1, response.feature_level)


async def _ask_leader(
    addresses: Iterable[str], tls: TlsMaterial, call: _Call, timeout: float
) -> pb.RaftMembershipResponse:
    """Asks each manager in turn, follows to the leader, and repeats until the deadline."""
    known = list(dict.fromkeys(addresses))
    if not known:
        raise InvalidArgument("no manager's address was given")
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    last: list[SwarmError] = [Unavailable(f"no manager answered at {', '.join(known)}")]

    async def attempt() -> pb.RaftMembershipResponse:
        for address in list(known):
            left = min(_ATTEMPT_TIMEOUT, deadline - loop.time())
            if left <= 0:
                break
            try:
                response = await _ask(address, tls, call, left)
            except Unavailable as error:
                raise_if_cancelled()
                last[0] = error
                continue
            if response.done:
                return response
            # The leader goes to the front of the next round.
            if response.leader.address:
                if response.leader.address in known:
                    known.remove(response.leader.address)
                known.insert(0, response.leader.address)
                raise Unavailable(f"manager {response.leader.node_id} leads")
            last[0] = Unavailable("the managers know no leader at the moment; repeat later")
        raise last[0]

    try:
        async with asyncio.timeout_at(deadline):
            return await retry(attempt, backoff=_PATIENCE, rng=random.Random(), on=(Unavailable, FailedPrecondition))
    except TimeoutError:
        raise last[0] from None


async def _ask(address: str, tls: TlsMaterial, call: _Call, timeout: float) -> pb.RaftMembershipResponse:
    async with open_channel(address, tls, _ANY_MANAGER) as channel:
        try:
            return await call(rpc.RaftMembershipStub(channel), timeout)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise Unavailable(f"the manager at {address} did not answer in time") from error
            raise from_rpc(error, address) from error


class Admitting(Protocol):
    """What the service needs of a `RaftNode`, which offers the service itself."""

    @property
    def config(self) -> RaftConfig: ...

    def leadership(self) -> Leadership: ...

    def members(self) -> Sequence[Member]: ...

    async def add_member(self, member: Member, *, timeout: float) -> None: ...

    async def remove_member(self, node_id: str, *, timeout: float) -> None: ...


class MembershipService(rpc.RaftMembershipServicer):
    """Joining and leaving, on the manager's server. Followers answer with the leader's address."""

    def __init__(self, node: Admitting) -> None:
        self._node = node

    async def Join(
        self, request: pb.RaftJoinRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.RaftMembershipResponse:
        """Adds the caller."""
        if not request.address.rpartition(":")[0]:
            raise InvalidArgument(f"{request.address!r} is not an address of the form HOST:PORT")
        supported, required = max(1, request.feature_level), self._node.config.required_level()
        if supported < required:
            raise FailedPrecondition(
                f"the swarm is at feature level {required}, this manager supports up to {supported}; update it"
            )
        member = Member(_caller(context), request.address)
        return await self._on_leader(lambda: self._node.add_member(member, timeout=_CHANGE_TIMEOUT))

    async def Leave(
        self, request: pb.RaftLeaveRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.RaftMembershipResponse:
        """Removes the caller."""
        caller = _caller(context)

        async def remove() -> None:
            if any(member.node_id == caller for member in self._node.members()):
                await self._node.remove_member(caller, timeout=_CHANGE_TIMEOUT)

        return await self._on_leader(remove)

    async def List(
        self, request: pb.RaftListRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.RaftMembershipResponse:
        """The members as this manager knows them."""
        return self._answer(done=True)

    async def _on_leader(self, action: Callable[[], Awaitable[None]]) -> pb.RaftMembershipResponse:
        if not self._node.leadership().ready:
            return self._answer(done=False)
        await action()
        return self._answer(done=True)

    def _answer(self, *, done: bool) -> pb.RaftMembershipResponse:
        leadership, members = self._node.leadership(), self._node.members()
        response = pb.RaftMembershipResponse(
            done=done,
            members=[pb.RaftMember(node_id=m.node_id, address=m.address) for m in members],
            feature_level=self._node.config.feature_level,
        )
        for member in members:
            if member.node_id == leadership.leader_id and not leadership.is_leader:
                response.leader.node_id, response.leader.address = member.node_id, member.address
        return response


def _caller(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    return peer_from_auth_context(context.auth_context()).name
