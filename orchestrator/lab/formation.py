"""Making one swarm of a lab's hosts, whatever some of them are members of already.

`plan_formation` decides, from what each host says of itself: hosts that are in no swarm join the one that the others are
in, and a new one is made only where nobody is in any. A second swarm beside the first would split the lab, and nobody
would have asked for it. `form_swarm` does it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import grpc
from swarm.channels import open_local
from swarm.errors import DeadlineExceeded, FailedPrecondition, SwarmError, Unavailable, from_rpc
from swarm.labs import up_command
from swarm.names import ENROLMENT_PORT
from swarm.v1 import control_pb2, control_pb2_grpc, node_pb2, types_pb2

from orchestrator.lab import hosts, registry, wiring
from orchestrator.lab.layout import LabHost, LabLayout

T = TypeVar("T")
Say = Callable[[str], None]

JOIN_TIMEOUT = 60.0
LEADER_TIMEOUT = 60.0
SETTLE_TIMEOUT = 60.0  # of a join or leave that an interrupted command left under way


@dataclass(frozen=True)
class Formation:
    """What is to be done: the founder makes a swarm (None: there is one), then `joining` join it by one of `managers`."""

    founder: LabHost | None
    joining: tuple[LabHost, ...]
    managers: tuple[LabHost, ...]


def plan_formation(layout: LabLayout, states: Mapping[str, node_pb2.LocalState]) -> Formation:
    """Who makes a swarm, who joins. `states` has each host's own word, by its name.

    Raises FailedPrecondition where the hosts are in different swarms, or in one that has no manager among them.
    """
    members = [host for host in layout.hosts if states[host.name].state != "inactive"]
    outside = tuple(host for host in layout.hosts if host not in members)
    if not members:
        founder = layout.managers[0]
        return Formation(founder, tuple(host for host in outside if host is not founder), (founder,))
    swarms: dict[str, list[str]] = {}
    for host in members:
        swarms.setdefault(states[host.name].cluster_id, []).append(host.name)
    if len(swarms) > 1:
        parts = " and ".join(", ".join(names) for names in swarms.values())
        stranger = min(swarms.values(), key=len)[0]
        raise FailedPrecondition(
            f"the hosts of lab {layout.name!r} are in different swarms: {parts}; take those out that shall join the others"
            f" (`swarmctl --lab {layout.name} --node {stranger} swarm leave --force`) and repeat `{up_command(layout.name)}`"
        )
    # A host's role in its swarm, not the one that the lab planned for it: it may have been promoted or demoted.
    managers = tuple(host for host in members if states[host.name].role == types_pb2.NODE_ROLE_MANAGER)
    if not managers:
        names = ", ".join(host.name for host in members)
        raise FailedPrecondition(
            f"{names} of lab {layout.name!r} belong to a swarm that has no manager here any more; take each out"
            f" (`swarmctl --lab {layout.name} --node {members[0].name} swarm leave --force`) and repeat"
            f" `{up_command(layout.name)}`, or remove the lab with `swarmctl lab down --name {layout.name}`"
        )
    return Formation(None, outside, managers)


async def form_swarm(layout: LabLayout, say: Say) -> None:
    """`swarm init` where nobody is in a swarm, the registry, `swarm join` for who is in none."""
    formation = plan_formation(layout, await _settled_states(layout))
    founder = formation.founder
    if founder is not None:
        say(f"Creating the swarm on {founder.name}")
        spec = types_pb2.ClusterSpec(name=layout.name, default_registry=layout.registry)
        request = node_pb2.InitRequest(advertise_address=founder.address, listen_address=founder.address, spec=spec)
        await hosts.initialise(founder, request, JOIN_TIMEOUT)
    try:
        answer = await ask_managers(
            layout, lambda stub: stub.GetCluster(control_pb2.GetClusterRequest(), timeout=5), LEADER_TIMEOUT
        )
    except Unavailable as error:
        raise Unavailable(f"{error}{way_out(layout, formation)}") from error
    say(f"Starting the registry on {layout.registry}")
    await registry.issue_certificate(layout, formation.managers[0], answer.cluster.ca.certificate_pem)
    await registry.start(layout)
    if not formation.joining:
        return
    tokens = await ask_managers(
        layout, lambda stub: stub.GetJoinTokens(control_pb2.GetJoinTokensRequest(), timeout=5), JOIN_TIMEOUT
    )
    addresses = [f"{host.address}:{ENROLMENT_PORT}" for host in formation.managers]
    say(f"Joining {', '.join(host.name for host in formation.joining)}")
    async with errors_ungrouped(), asyncio.TaskGroup() as group:
        for host in formation.joining:
            if host.role == "worker":
                group.create_task(hosts.join(host, tokens.worker, addresses, JOIN_TIMEOUT))
        for host in formation.joining:
            if host.role == "manager":  # one after the other: Raft changes its membership one at a time
                await hosts.join(host, tokens.manager, addresses, JOIN_TIMEOUT)


def way_out(layout: LabLayout, formation: Formation) -> str:
    """What to add to "no leader" where some managers will not come back by themselves: their disks hold nothing any more."""
    blank = [host.name for host in formation.joining if host.role == "manager"]
    if not blank:
        return ""
    left = formation.managers[0].name
    return (
        f". {', '.join(blank)} of lab {layout.name!r} can only join anew: if too few managers are left for a majority,"
        f" `swarmctl --lab {layout.name} --node {left} swarm recover --force` goes on with {left} alone"
    )


async def _settled_states(layout: LabLayout) -> dict[str, node_pb2.LocalState]:
    """Each host's word, once none is in the midst of joining or leaving. Raises DeadlineExceeded."""
    busy = ""
    try:
        async with asyncio.timeout(SETTLE_TIMEOUT):
            while True:
                found: dict[str, node_pb2.LocalState] = {}
                busy = ""
                for host in layout.hosts:
                    state = await hosts.daemon_state(host)
                    if state is None:
                        busy = f"swarmd of {host.name} does not answer: {hosts.last_lines(host.log)}"
                    elif state.state == "pending" and not state.cluster_id:
                        busy = f"{host.name} is still {state.message}"
                    else:
                        found[host.name] = state
                if not busy:
                    return found
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise DeadlineExceeded(f"{busy}; repeat `{up_command(layout.name)}` later") from None


async def ask_managers(
    layout: LabLayout, call: Callable[[control_pb2_grpc.ControlAsyncStub], Awaitable[T]], timeout: float
) -> T:
    """Asks the managers in turn until one answers, for `timeout` seconds; raises the last error."""
    last: SwarmError = DeadlineExceeded(f"no manager of lab {layout.name!r} answered within {timeout:g} s")
    try:
        async with asyncio.timeout(timeout):
            while True:
                for host in layout.hosts:  # a worker may have been promoted
                    if not host.control_socket.exists():
                        continue
                    async with open_local(host.control_socket) as channel:
                        try:
                            return await call(control_pb2_grpc.ControlStub(channel))
                        except grpc.RpcError as error:
                            last = from_rpc(error, host.name)
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise last from None


async def reasons(layout: LabLayout, names: set[str]) -> str:
    """Why these hosts are not ready, in their own words: `m2, m3: REASON; w1: REASON`; empty where they know none."""
    by_reason: dict[str, list[str]] = {}
    for host in layout.hosts:
        if host.name not in names:
            continue
        state = await hosts.daemon_state(host)
        reason = "swarmd does not answer" if state is None else state.message
        if not await wiring.link_is_up(layout, host):
            reason = "the network cable is pulled; plug it in with `swarmctl lab heal`"
        if state is not None and not reason and state.state != "active":
            reason = f"its membership is {state.state}"
        if reason:
            by_reason.setdefault(reason, []).append(host.name)
    return "; ".join(f"{', '.join(found)}: {reason}" for reason, found in by_reason.items())


@asynccontextmanager
async def errors_ungrouped() -> AsyncIterator[None]:
    """A TaskGroup's first SwarmError instead of the group: people read one sentence."""
    try:
        yield
    except BaseExceptionGroup as group:
        known = group.subgroup(SwarmError)
        if known is None:
            raise
        first: BaseException = known
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from group
