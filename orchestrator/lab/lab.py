"""Building, breaking and removing a lab: the operations behind `swarmctl lab`.

Each is a sequence of steps that may be interrupted anywhere and repeated: `up` completes what is there, `down` removes
whatever is left. `say` receives one line for each step.
"""

from __future__ import annotations

import asyncio
import fcntl
import ipaddress
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from swarm import labs
from swarm.errors import AlreadyExists, DeadlineExceeded, FailedPrecondition, InvalidArgument
from swarm.v1 import control_pb2, control_pb2_grpc, types_pb2

from orchestrator.lab import hosts, registry, wiring
from orchestrator.lab.formation import Say, ask_managers, errors_ungrouped, form_swarm, reasons
from orchestrator.lab.layout import RUN_ROOT, STATE_ROOT, LabHost, LabLayout, known_labs, load, plan

READY_TIMEOUT = 60.0
LOCK_TIMEOUT = 120.0
LOG_LEVELS = ("debug", "info", "warning", "error")  # swarmd's


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

    Raises AlreadyExists where a lab of that name has another size, and FailedPrecondition where its hosts are no longer of
    one swarm.
    """
    require_root()
    if log_level not in LOG_LEVELS:
        raise InvalidArgument(f"--log-level {log_level!r} is not known; write one of {', '.join(LOG_LEVELS)}")
    async with _exclusively():
        layout = load(name)
        if layout is None:
            await _remove(name, say)  # leftovers without a description are of no use to anybody
            layout = plan(name, managers, workers, [*await wiring.taken_subnets(), *_subnets_of_labs()])
            say(f"Lab {name!r}: {layout.size} in {layout.subnet}")
        elif (len(layout.managers), len(layout.hosts)) != (managers, managers + workers):
            raise AlreadyExists(
                f"lab {name!r} exists with {layout.size}; remove it with `swarmctl lab down --name {name}`"
                " or choose another --name"
            )
        layout.save()  # also of one that is there: after a reboot only the copy beside the disks is left
        await wiring.wire_switch(layout)
        say("Starting the hosts' daemons")
        async with errors_ungrouped(), asyncio.TaskGroup() as group:
            for host in layout.hosts:
                group.create_task(_power_on(layout, host, log_level))
    await form_swarm(layout, say)
    say("Waiting until every host is ready")
    await wait_ready(layout, {host.name for host in layout.hosts})
    return layout


def _subnets_of_labs() -> list[ipaddress.IPv4Network]:
    """Also of those that have not been started since this machine was."""
    return [layout.subnet for name in known_labs() if (layout := load(name)) is not None]


async def _power_on(layout: LabLayout, host: LabHost, log_level: str = "info") -> None:
    if await hosts.daemon_state(host) is not None:
        return
    await wiring.wire_host(layout, host)
    await hosts.start_daemon(host, log_level=log_level)


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
                await ask_managers(layout, seen, timeout)
                if missing:
                    await asyncio.sleep(0.1)
    except TimeoutError:
        why = await reasons(layout, missing)
        raise DeadlineExceeded(
            f"{', '.join(sorted(missing))} of lab {layout.name!r} did not become ready within {timeout:g} s"
            f"{f' ({why})' if why else ''}; the logs are in {layout.state_directory}/HOST/logs"
        ) from None


def holders(layout: LabLayout) -> list[str]:
    """The hosts on whose disk a manager's log is: while there are any, what the swarm holds may be of use to somebody."""
    return [host.name for host in layout.hosts if (host.state_directory / "manager" / "raft").exists()]


async def down(name: str, say: Say) -> None:
    """Removes the lab with everything that it made: processes, namespaces, mounts, rules, cgroups, files.

    Where there is none it says so, and that is all: the next one who asks may have been the same, interrupted.
    """
    require_root()
    async with _exclusively():
        if not await _remove(name, say):
            others = labs.described()
            say(f"There is no lab {name!r} on this machine" + (f"; there is {', '.join(others)}" if others else ""))


async def _remove(name: str, say: Say) -> bool:
    """Whether there was anything to remove."""
    layout = load(name)
    existed = bool(wiring.namespaces_of(name)) or any((root / name).exists() for root in (RUN_ROOT, STATE_ROOT))
    (STATE_ROOT / name / labs.DESCRIPTION).unlink(missing_ok=True)  # what is half removed is not to be started again
    names = {host.name for host in layout.hosts} if layout else set()
    for root in (RUN_ROOT / name, STATE_ROOT / name):
        names |= {entry.name for entry in root.iterdir() if entry.is_dir()} if root.is_dir() else set()
    for host_name in sorted(names):
        await hosts.pull_plug(LabHost(name, host_name, "", ""))
    registry.stop(STATE_ROOT / name)
    await wiring.unmount_below(RUN_ROOT / name, STATE_ROOT / name)
    await wiring.unwire(name, layout, last=set(known_labs()) <= {name})
    wiring.remove_cgroups(f"/swarm-lab/{name}")
    for root in (RUN_ROOT, STATE_ROOT):
        if (root / name).exists():
            shutil.rmtree(root / name)
    if existed:
        say(f"Lab {name!r} is gone")
    return existed


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
    if not wiring.namespace_exists(layout.switch_namespace):
        raise FailedPrecondition(
            f"lab {layout.name!r} was not started since this machine was; start all of it with `{labs.up_command(layout.name)}`"
        )
    await _power_on(layout, host)


def _require_powered(host: LabHost) -> None:
    if not wiring.namespace_exists(host.namespace):
        raise labs.not_running(host.lab, host.name)


def require_root() -> None:
    """Raises FailedPrecondition for anybody else."""
    if os.geteuid() != 0:
        raise FailedPrecondition("a lab makes network namespaces and mounts: run this as root")


@asynccontextmanager
async def _exclusively() -> AsyncIterator[None]:
    """One lab is built or removed at a time on a machine: they share address space and forwarding."""
    RUN_ROOT.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(RUN_ROOT / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        try:
            async with asyncio.timeout(LOCK_TIMEOUT):
                while True:
                    try:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        await asyncio.sleep(0.1)
        except TimeoutError:
            raise DeadlineExceeded("another lab is being built or removed on this machine; try again") from None
        yield
    finally:
        os.close(descriptor)
