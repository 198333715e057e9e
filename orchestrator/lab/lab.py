"""Building, breaking and removing a lab: the operations behind `swarmctl lab`.

Each is a sequence of steps that may be interrupted anywhere and repeated: `up` completes what is there, `down` removes
whatever is left. `say` receives one line for each step.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import grpc
from swarm.channels import open_local
from swarm.errors import AlreadyExists, DeadlineExceeded, FailedPrecondition, SwarmError, from_rpc
from swarm.names import ENROLMENT_PORT
from swarm.v1 import control_pb2, control_pb2_grpc, node_pb2, types_pb2

from orchestrator.lab import hosts, registry, wiring
from orchestrator.lab.layout import RUN_ROOT, STATE_ROOT, LabHost, LabLayout, known_labs, load, plan

T = TypeVar("T")
Say = Callable[[str], None]

JOIN_TIMEOUT = 60.0
READY_TIMEOUT = 60.0
LOCK_TIMEOUT = 120.0


@dataclass(frozen=True)
class HostStatus:
    """What one sees of a host from outside."""

    host: LabHost
    powered: bool
    daemon: int | None
    manager: int | None
    link_up: bool
    state: str


async def up(name: str, managers: int, workers: int, say: Say, *, log_level: str = "info") -> LabLayout:
    """Builds a lab, or starts again what is dead of one that was built before.

    Raises AlreadyExists where a lab of that name has another size.
    """
    _require_root()
    async with _exclusively():
        layout = load(name)
        if layout is None:
            await _remove(name, say)  # leftovers without a description are of no use to anybody
            layout = plan(name, managers, workers, await wiring.taken_subnets())
            say(f"Lab {name!r}: {managers} managers and {workers} workers in {layout.subnet}")
            layout.save()
        elif (len(layout.managers), len(layout.hosts)) != (managers, managers + workers):
            raise AlreadyExists(
                f"lab {name!r} exists with {len(layout.managers)} managers and {len(layout.hosts) - len(layout.managers)}"
                f" workers; remove it with `swarmctl lab down --name {name}` or choose another --name"
            )
        await wiring.wire_switch(layout)
    say("Starting the hosts' daemons")
    async with _errors_ungrouped(), asyncio.TaskGroup() as group:
        for host in layout.hosts:
            group.create_task(_power_on(layout, host, log_level))
    await _form_swarm(layout, say)
    say("Waiting until every host is ready")
    await wait_ready(layout, {host.name for host in layout.hosts})
    return layout


async def _power_on(layout: LabLayout, host: LabHost, log_level: str = "info") -> None:
    if await hosts.daemon_state(host) is not None:
        return
    await wiring.wire_host(layout, host)
    await hosts.start_daemon(host, log_level=log_level)


async def _form_swarm(layout: LabLayout, say: Say) -> None:
    """`swarm init` on the first host, the registry, `swarm join` on the others."""
    first = layout.hosts[0]
    states = {host.name: await hosts.daemon_state(host) for host in layout.hosts}
    outside = [host for host in layout.hosts if (state := states[host.name]) is None or state.state == "inactive"]
    if first in outside:
        say(f"Creating the swarm on {first.name}")
        spec = types_pb2.ClusterSpec(name=layout.name, default_registry=layout.registry)
        request = node_pb2.InitRequest(advertise_address=first.address, listen_address=first.address, spec=spec)
        await hosts.initialise(first, request, JOIN_TIMEOUT)
    await _wait_leader(layout)
    say(f"Starting the registry on {layout.registry}")
    await registry.issue_certificate(layout)
    await registry.start(layout)
    joining = [host for host in outside if host is not first]
    if not joining:
        return
    tokens = await _join_tokens(layout)
    addresses = [f"{host.address}:{ENROLMENT_PORT}" for host in layout.managers if host not in joining]
    say(f"Joining {', '.join(host.name for host in joining)}")
    async with _errors_ungrouped(), asyncio.TaskGroup() as group:
        for host in joining:
            if host.role == "worker":
                group.create_task(hosts.join(host, tokens.worker, addresses, JOIN_TIMEOUT))
        for host in joining:
            if host.role == "manager":  # one after the other: Raft changes its membership one at a time
                await hosts.join(host, tokens.manager, addresses, JOIN_TIMEOUT)


async def _join_tokens(layout: LabLayout) -> control_pb2.GetJoinTokensResponse:
    return await _ask_managers(
        layout, lambda stub: stub.GetJoinTokens(control_pb2.GetJoinTokensRequest(), timeout=5), JOIN_TIMEOUT
    )


async def _wait_leader(layout: LabLayout) -> None:
    await _ask_managers(layout, lambda stub: stub.GetCluster(control_pb2.GetClusterRequest(), timeout=5), READY_TIMEOUT)


async def _ask_managers(
    layout: LabLayout, call: Callable[[control_pb2_grpc.ControlAsyncStub], Awaitable[T]], timeout: float
) -> T:
    """Asks the managers in turn until one answers, for `timeout` seconds; raises the last error."""
    last: SwarmError = DeadlineExceeded(f"no manager of lab {layout.name!r} answered within {timeout:g} s")
    try:
        async with asyncio.timeout(timeout):
            while True:
                for host in layout.managers:
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


async def wait_ready(layout: LabLayout, names: set[str], timeout: float = READY_TIMEOUT) -> None:
    """Returns once the cluster sees all the named hosts ready. Raises DeadlineExceeded with the names that are missing."""
    missing = set(names)

    async def seen(stub: control_pb2_grpc.ControlAsyncStub) -> None:
        answer = await stub.ListNodes(control_pb2.ListRequest(), timeout=5)
        ready = {node.description.hostname for node in answer.nodes if node.status.state == types_pb2.NODE_STATE_READY}
        missing.clear()
        missing.update(names - ready)

    try:
        async with asyncio.timeout(timeout):
            while missing:
                await _ask_managers(layout, seen, timeout)
                if missing:
                    await asyncio.sleep(0.1)
    except TimeoutError:
        raise DeadlineExceeded(
            f"{', '.join(sorted(missing))} of lab {layout.name!r} did not become ready within {timeout:g} s;"
            f" the logs are in {layout.state_directory}/HOST/logs"
        ) from None


async def down(name: str, say: Say) -> None:
    """Removes the lab with everything that it made: processes, namespaces, mounts, rules, cgroups, files."""
    _require_root()
    async with _exclusively():
        await _remove(name, say)


async def _remove(name: str, say: Say) -> None:
    layout = load(name)
    names = {host.name for host in layout.hosts} if layout else set()
    for root in (RUN_ROOT / name, STATE_ROOT / name):
        names |= {entry.name for entry in root.iterdir() if entry.is_dir()} if root.is_dir() else set()
    for host_name in sorted(names):
        await hosts.pull_plug(LabHost(name, host_name, "", ""))
    registry.stop(STATE_ROOT / name)
    await wiring.unmount_below(RUN_ROOT / name, STATE_ROOT / name)
    await wiring.unwire(name, layout, last=set(known_labs()) <= {name})
    wiring.remove_cgroups(f"/swarm-lab/{name}")
    existed = any((root / name).exists() for root in (RUN_ROOT, STATE_ROOT))
    for root in (RUN_ROOT, STATE_ROOT):
        if (root / name).exists():
            shutil.rmtree(root / name)
    if existed:
        say(f"Lab {name!r} is gone")


async def status(layout: LabLayout) -> list[HostStatus]:
    """All hosts as they are now."""
    found = []
    for host in layout.hosts:
        running = hosts.processes(host)
        state = await hosts.daemon_state(host)
        found.append(
            HostStatus(
                host,
                powered=wiring.namespace_exists(host.namespace),
                daemon=running.daemon,
                manager=running.manager,
                link_up=await wiring.link_is_up(layout, host),
                state=state.state if state is not None else "no answer",
            )
        )
    return found


async def cut(layout: LabLayout, host: LabHost) -> None:
    """Pulls the host's network cable."""
    _require_powered(host)
    await wiring.set_link(layout, host, up=False)


async def heal(layout: LabLayout, host: LabHost) -> None:
    """Plugs it in again."""
    _require_powered(host)
    await wiring.set_link(layout, host, up=True)


async def kill(layout: LabLayout, host: LabHost) -> None:
    """Pulls the host's power plug."""
    _require_powered(host)
    await hosts.pull_plug(host)


async def start(layout: LabLayout, host: LabHost) -> None:
    """Boots a host that was killed, or starts its daemon again."""
    await _power_on(layout, host)


def _require_powered(host: LabHost) -> None:
    if not wiring.namespace_exists(host.namespace):
        raise FailedPrecondition(f"host {host.name!r} is not running; boot it with `swarmctl lab start {host.name}`")


def _require_root() -> None:
    if os.geteuid() != 0:
        raise FailedPrecondition("a lab makes network namespaces and mounts: run this as root")


@asynccontextmanager
async def _exclusively() -> AsyncIterator[None]:
    """One lab is built or removed at a time on a machine: they share address space and forwarding."""
    RUN_ROOT.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(RUN_ROOT / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        async with asyncio.timeout(LOCK_TIMEOUT):
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.1)
        yield
    except TimeoutError:
        raise DeadlineExceeded("another lab is being built or removed on this machine; try again") from None
    finally:
        os.close(descriptor)


@asynccontextmanager
async def _errors_ungrouped() -> AsyncIterator[None]:
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
