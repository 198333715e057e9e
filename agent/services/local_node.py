"""The service `LocalNode` on the daemon's socket: the state of this node, and init, join, leave, recover, restore."""

from __future__ import annotations

from typing import Any

from swarm.v1 import node_pb2 as node
from swarm.v1.node_pb2_grpc import LocalNodeServicer

from agent.node.membership import Membership
from agent.node.recovery import Recovery

# `swarmctl` may be gone before a join has ended; what was begun is carried through or undone, never left half-way.


class LocalNodeService(LocalNodeServicer):
    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._recovery = Recovery(membership)

    async def GetState(self, request: node.GetStateRequest, context: Any) -> node.LocalState:
        return self._membership.local_state()

    async def Init(self, request: node.InitRequest, context: Any) -> node.InitResponse:
        return await self._membership.init(request)

    async def Join(self, request: node.LocalJoinRequest, context: Any) -> node.LocalState:
        return await self._membership.join(request)

    async def Leave(self, request: node.LeaveRequest, context: Any) -> node.LocalState:
        return await self._membership.leave(request.force)

    async def Recover(self, request: node.RecoverRequest, context: Any) -> node.RecoverResponse:
        return await self._recovery.recover(dry_run=request.dry_run)

    async def Restore(self, request: node.RestoreRequest, context: Any) -> node.RestoreResponse:
        return await self._recovery.restore(request)
