"""How a manager stops being one before its node leaves: only where the others can go on without it.

`refusal` is pure. A manager that leaves takes its vote along: the managers that remain must then still be able to agree, and
they must be able to agree to its going now.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import grpc
from swarm.channels import open_local
from swarm.errors import DeadlineExceeded, FailedPrecondition, SwarmError, from_rpc
from swarm.identity import Role
from swarm.ids import id_source
from swarm.v1 import control_pb2 as control
from swarm.v1 import types_pb2 as types
from swarm.v1.control_pb2_grpc import ControlStub

from agent.node.member import Member

if TYPE_CHECKING:
    from swarm.v1.control_pb2_grpc import ControlAsyncStub

log = logging.getLogger(__name__)

CALL_TIMEOUT = 10.0
DEMOTION_TIMEOUT = 20.0  # seconds for this node to be a worker


def refusal(managers: int, reachable_others: int) -> str:
    """Why one of `managers` managers may not leave, where `reachable_others` of the others answer; empty: it may."""
    if managers <= 1:
        return "this node is the last manager: when it leaves, the swarm and everything in it is lost; --force does it"
    remaining = managers - 1
    needed = remaining // 2 + 1
    if reachable_others >= needed:
        return ""
    return (
        f"this node is one of {managers} managers, of the other {remaining} only {reachable_others} can be reached, and "
        f"{needed} of them are needed to go on: the swarm would lose its quorum; --force does it nevertheless"
    )


async def leave_managers(member: Member, *, force: bool) -> None:
    """Demotes this node and waits until it is a worker. With `force` only as far as that is possible."""
    if member.manager is None:
        if not force:
            raise FailedPrecondition(
                "this node is a manager, and its daemon has not taken its manager up yet; try again in a moment, or leave with "
                "--force"
            )
        return
    async with open_local(member.manager.control_socket) as channel:
        stub = ControlStub(channel)
        try:
            info = await stub.GetInfo(control.GetInfoRequest(), timeout=CALL_TIMEOUT)
            members = list(info.raft.members)
            others = sum(each.reachable or each.leader for each in members if each.node_id != member.record.node_id)
            reason = refusal(len(members) or info.managers, others)
            if reason and not force:
                raise FailedPrecondition(reason)
            if reason:
                return
            await _demote(stub, member)
        except grpc.RpcError as error:
            if not force:
                raise from_rpc(error, "this node's manager") from error
            log.warning("leaving without telling the other managers: %s", from_rpc(error))
        except SwarmError as error:
            if not force:
                raise
            log.warning("leaving although this node is still a manager: %s", error)


async def _demote(stub: ControlAsyncStub, member: Member) -> None:
    found = await stub.GetNode(control.GetRequest(reference=member.record.node_id), timeout=CALL_TIMEOUT)
    spec = types.NodeSpec()
    spec.CopyFrom(found.node.spec)
    spec.desired_role = types.NODE_ROLE_WORKER
    await stub.UpdateNode(
        control.UpdateNodeRequest(
            reference=found.node.id, spec=spec, version=found.node.meta.version, request_id=id_source()()
        ),
        timeout=CALL_TIMEOUT,
    )
    try:
        async with asyncio.timeout(DEMOTION_TIMEOUT):
            while member.role is Role.MANAGER or member.manager is not None:  # noqa: ASYNC110 – rare, bounded, and nothing tells both
                await asyncio.sleep(0.05)
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"this node is still a manager {DEMOTION_TIMEOUT:g} s after its demotion; try again, or leave with --force"
        ) from error
