"""Life after a lost quorum, and from a snapshot: the daemon's part.

The work on the manager's files is the manager program's (`orchestrator.manager recover | restore`); the daemon keeps the
manager stopped meanwhile, and starts it again or for the first time. A manager that still has a leader is not recovered:
that would cut a healthy swarm in two.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Any

import grpc
from swarm.channels import open_local
from swarm.errors import DeadlineExceeded, FailedPrecondition, InternalError, InvalidArgument, from_rpc
from swarm.process import run
from swarm.v1 import control_pb2 as control
from swarm.v1 import node_pb2 as node
from swarm.v1.control_pb2_grpc import ControlStub

from agent.node import description
from agent.node.manager_process import ManagerProcess
from agent.node.member import Member, cluster_address
from agent.node.membership import Membership, advertised_address
from agent.node.record import NodeRecord

log = logging.getLogger(__name__)

OFFLINE_TIMEOUT = 300.0  # seconds to read and write the whole state
READY_TIMEOUT = 60.0  # seconds for the manager to serve afterwards
ASK_TIMEOUT = 3.0
QUORUM_TIME = 2.0  # seconds after which a leader without a quorum leads no more, and its followers know


class Recovery:
    """Recovers or restores the manager of the node that `membership` is about."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._options = membership.options

    async def recover(self, *, dry_run: bool) -> node.RecoverResponse:
        """Makes this node's manager the only one. Raises FailedPrecondition."""
        if dry_run:
            member, _ = self._manager()
            return _recovered(await self._offline("recover", "--dry-run", *self._who_am_i(member)))
        async with self._membership.change("recovering the swarm"):
            member, manager = self._manager()
            await _refuse_where_led(manager)
            log.warning("the swarm is rebuilt from what this node's manager holds")
            async with manager.stopped():
                made = await self._offline("recover", *self._who_am_i(member))
            await self._serves(manager)
        return _recovered(made)

    async def restore(self, request: node.RestoreRequest) -> node.RestoreResponse:
        """Founds a one-manager swarm with the state of a snapshot: on a host that is no member, or on one that has a manager of
        the same swarm, which loses the state that it has. Raises InvalidArgument, FailedPrecondition."""
        if not Path(request.path).is_absolute():
            raise InvalidArgument(f"{request.path!r} is not an absolute path")
        if self._membership.member is not None:
            async with self._membership.change("restoring a snapshot"):
                member, manager = self._manager()
                await _refuse_where_led(manager)
                async with manager.stopped():
                    made = await self._offline("restore", request.path, *self._who_am_i(member))
                await self._serves(manager)
            return _restored(made)
        address = advertised_address(request.advertise_address)
        description.check_listening(request.listen_address)
        async with self._membership.change("restoring a snapshot"):
            self._membership.refuse_members()
            await self._membership.wipe()
            try:
                made = await self._offline("restore", request.path, *self._who(address))
            except BaseException:
                await self._membership.wipe()
                raise
            await self._membership.begin_anew(
                NodeRecord(
                    str(made["node_id"]),
                    str(made["cluster_id"]),
                    address,
                    listen_address=request.listen_address or NodeRecord.listen_address,
                    managers=(cluster_address(address),),
                )
            )
        return _restored(made)

    def _manager(self) -> tuple[Member, ManagerProcess]:
        member = self._membership.member
        if member is None:
            raise FailedPrecondition("this node is not part of a swarm")
        if member.manager is None:
            raise FailedPrecondition("this node is a worker; do this on a manager")
        return member, member.manager

    def _who(self, address: str) -> list[str]:
        options = self._options
        return [
            "--state-dir", str(options.state), "--run-dir", str(options.run),
            "--advertise", address, "--hostname", options.hostname,
        ]  # fmt: skip

    def _who_am_i(self, member: Member) -> list[str]:
        return [*self._who(member.record.address), "--seen-epoch", str(member.mirror.epoch)]

    async def _offline(self, *arguments: str) -> dict[str, Any]:
        """Runs the manager program, which prints a line of JSON."""
        done = await run(
            [sys.executable, "-m", "orchestrator.manager", *arguments], timeout=OFFLINE_TIMEOUT, check=False
        )
        if done.exit_code != 0:
            kind = InvalidArgument if done.exit_code == InvalidArgument.exit_code else FailedPrecondition
            raise kind(done.complaint.removeprefix("error: "))
        try:
            made: dict[str, Any] = json.loads(done.stdout)
        except ValueError as error:
            raise InternalError(f"the manager did not say what it made: {done.text!r}") from error
        return made

    async def _serves(self, manager: ManagerProcess) -> None:
        try:
            async with asyncio.timeout(READY_TIMEOUT):
                await manager.ready.wait()
        except TimeoutError as error:
            raise DeadlineExceeded(f"the manager does not serve yet: {manager.problem}; its log says more") from error


async def _refuse_where_led(manager: ManagerProcess) -> None:
    """Raises FailedPrecondition where the manager still knows a leader, other than itself as the only one, after the time in
    which a leader notices that it has lost its quorum."""
    if not manager.ready.is_set():
        return
    loop = asyncio.get_running_loop()
    patience = loop.time() + QUORUM_TIME
    async with open_local(manager.control_socket) as channel:
        while True:
            try:
                info = await ControlStub(channel).GetInfo(control.GetInfoRequest(), timeout=ASK_TIMEOUT)
            except grpc.RpcError as error:
                log.warning("this node's manager does not answer: %s", from_rpc(error))
                return
            members = info.raft.members
            if not info.leader_id or len(members) <= 1:
                return
            if loop.time() > patience:
                break
            await asyncio.sleep(0.1)
    raise FailedPrecondition(
        f"the swarm has a leader ({info.leader_id}), {sum(member.reachable for member in members)} of {len(members)} managers "
        "can be reached: its quorum is not lost; remove managers that are gone with `swarmctl node rm --force`, or stop the "
        "others first"
    )


def _recovered(made: dict[str, Any]) -> node.RecoverResponse:
    return node.RecoverResponse(
        node_id=made["node_id"],
        last_index=made["last_index"],
        term=made["term"],
        lost=[node.LostManager(**lost) for lost in made["lost"]],
    )


def _restored(made: dict[str, Any]) -> node.RestoreResponse:
    return node.RestoreResponse(
        node_id=made["node_id"], cluster_id=made["cluster_id"], index=made["index"], services=made["services"]
    )
