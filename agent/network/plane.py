"""The data plane of a Linux host: joins the pure planners to the kernel and to the resolver.

One view at a time is put in force: the overlays' devices and entries, the host's table, each container's tables, the
resolver's names, in the order that lets no name lead to a place that is not reachable yet. What was programmed is remembered,
so that a view costs what it changes; where a step failed, the next call reads the kernel again instead of trusting the memory.

A container is built apart from that, in parallel with others, from the newest view; if a newer one came meanwhile its tables
are brought up to it before `attach` returns. Wirings are kept in `RUN/network/tasks`, which lives as long as the namespaces
do, so that an agent that was killed at any point finds what it had made and removes what it had only begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from swarm.errors import FailedPrecondition, InternalError, SwarmError
from swarm.v1 import types_pb2 as types

from agent.network import connections, host_kernel, namespaces, task_kernel
from agent.network.dns_records import hosts_file, network_records, resolv_conf
from agent.network.host_rules import host_table, published_ports
from agent.network.interface import ContainerNetwork, NetworkView
from agent.network.layout import ALIAS, TABLE, port_alias
from agent.network.namespaces import NamespaceThreads
from agent.network.netlink import NetlinkSocket
from agent.network.nft import NftContexts
from agent.network.overlay_plan import HostState, Overlay, changes, desired, overlay_of
from agent.network.resolver_client import ResolverClient
from agent.network.ruleset import Table, difference, removal, replacement
from agent.network.task_kernel import Tools
from agent.network.task_rules import Backends, balancing, bridge_macs, task_tables
from agent.network.wiring import Wiring, wire

HOST_RESOLV_CONF = Path("/etc/resolv.conf")
RESOLVER_PAUSE_SECONDS = 2.0  # between attempts to start a resolver that does not start, or does not stay

log = logging.getLogger(__name__)


@dataclass
class Attached:
    """A container here: its wiring and what its namespace was last programmed with (None: not known)."""

    wiring: Wiring
    inode: int
    tables: tuple[Table, ...] | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class LinuxDataPlane:
    """A `DataPlane` on namespaces, VXLAN and nftables. Methods may be called at the same time."""

    def __init__(self, state_dir: Path, run_dir: Path, *, resolv_conf_path: Path = HOST_RESOLV_CONF) -> None:
        self._namespaces = run_dir / "netns"
        self._records = run_dir / "network" / "tasks"
        self._resolv_conf_path = resolv_conf_path
        self._threads = NamespaceThreads()
        self._tools = Tools(self._threads, NftContexts())
        self._resolver = ResolverClient(run_dir, state_dir / "logs" / "resolver.log", resolv_conf_path)
        self._attached: dict[str, Attached] = {}
        self._building: dict[str, Wiring] = {}
        self._view: NetworkView | None = None
        self._in_force: NetworkView | None = None
        self._overlays: dict[str, Overlay] = {}
        self._virtual_ips: dict[str, Backends] = {}
        self._macs: dict[int, str] = {}
        self._port_backends: set[str] = set()
        self._withdrawn: dict[str, set[str]] = {}  # backends, by network, whose flows are still to be forgotten
        self._withdrawn_ports: set[str] = set()  # the same for published ports
        self._host: HostState | None = None  # None: not known, read the kernel
        self._host_table: Table | None = None
        self._applying = asyncio.Lock()
        self._shaping = asyncio.Lock()  # while bridges come and go nobody may choose one to be attached to
        self._detached_ports: list[str] = []
        self._removing = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------------------------------------------ life

    async def start(self) -> None:
        """Takes up the containers of an earlier process, removes what it had only begun, starts the resolver."""
        self._namespaces.mkdir(parents=True, exist_ok=True)
        self._records.mkdir(parents=True, exist_ok=True)
        with _as_swarm_error("the network of this host cannot be prepared"):
            await self._threads.run(host_kernel.prepare)
            self._attached = await self._threads.run(self._take_up)
        await self._resolver.start(self._resolver_containers())
        if self._watch is None:  # else what came after this failed, and all is begun again
            self._watch = asyncio.create_task(self._watch_resolver())

    def _take_up(self) -> dict[str, Attached]:
        """On a thread: the containers that have both a record and a namespace; everything else of ours is removed."""
        found: dict[str, Attached] = {}
        for record in self._records.iterdir():
            if record.suffix != ".json":
                record.unlink(missing_ok=True)
                continue
            try:
                wiring = Wiring.from_json(record.read_text())
            except (ValueError, KeyError, TypeError):
                record.unlink(missing_ok=True)
                continue
            path = self._namespaces / wiring.task_id
            if namespaces.is_namespace(path):
                found[wiring.task_id] = Attached(wiring, path.stat().st_ino)
            else:
                record.unlink(missing_ok=True)
        for path in self._namespaces.iterdir():
            if path.name not in found:
                namespaces.delete(path)
        kept = {interface.port for attached in found.values() for interface in attached.wiring.interfaces}
        task_kernel.remove_ports(
            link.name
            for link in host_kernel.our_links()
            if link.alias.startswith(port_alias("")) and link.name not in kept
        )
        return found

    async def stop(self, *, remove: bool = False) -> None:
        """Ends our part; containers, tables and the resolver stay. With `remove` everything goes."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
            self._watch = None
        try:
            async with self._applying:
                with _as_swarm_error("the network of this host cannot be removed"):
                    try:
                        await self._resolver.stop(remove=remove)
                    finally:
                        if remove:
                            await self._threads.run(self._remove_everything)
                            self._attached.clear()
        finally:
            await asyncio.to_thread(self._tools.contexts.close)
            self._threads.close()

    def _remove_everything(self) -> None:
        """Nobody comes back for what stays: so a step that fails does not keep the next from being tried."""
        with contextlib.ExitStack() as steps:
            steps.callback(self._remove_namespaces)
            steps.callback(_remove_links)
            steps.callback(task_kernel.program_host, self._tools, removal(Table("ip", TABLE)))  # the first

    def _remove_namespaces(self) -> None:
        for path in self._namespaces.glob("*"):
            namespaces.delete(path)
        for record in self._records.glob("*"):
            record.unlink(missing_ok=True)
        for directory in (self._namespaces, self._records, self._records.parent):
            with contextlib.suppress(FileNotFoundError):
                directory.rmdir()

    async def _watch_resolver(self) -> None:
        """Starts the resolver again where it died."""
        while True:
            try:
                with _as_swarm_error("the resolver cannot be kept running"):
                    await self._resolver.ended()
                    await self._resolver.refresh()
            except SwarmError as error:
                log.warning("%s", error)
            await asyncio.sleep(RESOLVER_PAUSE_SECONDS)

    # ------------------------------------------------------------------------------------------------------ views

    async def apply(self, view: NetworkView) -> None:
        """Puts the view in force. Of several that wait only the last is put in force; all return then."""
        self._view = view
        await self._apply_newest()

    async def _apply_newest(self) -> None:
        async with self._applying:
            newest = self._view
            if newest is None or newest is self._in_force:
                return
            self._in_force = None
            with _as_swarm_error("the networks of this host cannot be programmed"):
                await self._put_in_force(newest)
            self._in_force = newest

    async def _put_in_force(self, view: NetworkView) -> None:
        async with self._shaping:
            await self._program_overlays(view)
        virtual_ips = balancing(view)
        for network_id, backends in _withdrawn(self._virtual_ips, virtual_ips).items():
            self._withdrawn.setdefault(network_id, set()).update(backends)
        self._virtual_ips, self._macs = virtual_ips, bridge_macs(view)
        await self._program_host_table(view)
        # One container that cannot be programmed must not keep the others from what they need.
        results = await asyncio.gather(
            *(self._program_task(task_id) for task_id in list(self._attached)), return_exceptions=True
        )
        await self._forget_flows()
        await self._resolver.set_networks(network_records(view))
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _program_overlays(self, view: NetworkView) -> None:
        under = await self._threads.run(host_kernel.underlay, view.address)
        overlays = {
            one.network.id: overlay_of(view, one, under.mtu, local=under.local)
            for one in view.overlays
            if one.network.vni
        }
        # A task that is about to end may be the last one of a network that the view no longer names.
        for wiring in (*(attached.wiring for attached in self._attached.values()), *self._building.values()):
            for interface in wiring.interfaces:
                known = self._overlays.get(interface.network_id)
                if known is not None:
                    overlays.setdefault(interface.network_id, known)
        wanted = desired(view, overlays)
        if self._host is None:
            self._host = await self._threads.run(host_kernel.read, tuple(overlays.values()))
        difference_ = changes(self._host, wanted)
        if difference_:
            self._host = None
            await self._threads.run(host_kernel.carry_out, difference_)
        self._host, self._overlays = wanted, overlays

    async def _program_host_table(self, view: NetworkView) -> None:
        wirings = {task_id: attached.wiring for task_id, attached in self._attached.items()}
        ports = published_ports(view, wirings)
        table = host_table(ports, self._overlays.values(), view.node_id)
        commands = difference(self._host_table, table)
        if commands:
            self._host_table = None
            await self._threads.run(task_kernel.program_host, self._tools, commands)
            self._host_table = table
        backends = {address for port in ports for address in port.backends}
        self._withdrawn_ports |= self._port_backends - backends
        self._port_backends = backends

    async def _refresh_host_ports(self, task_id: str) -> None:
        """The task came or went: the ports that it publishes in host mode with it."""
        async with self._applying:
            view = self._view
            if view is not None and any(port.task_id == task_id for port in view.host_ports):
                with _as_swarm_error("the published ports of this host cannot be programmed"):
                    await self._program_host_table(view)

    async def _program_task(self, task_id: str) -> None:
        attached = self._attached.get(task_id)
        if attached is None:
            return
        async with attached.lock:
            if self._attached.get(task_id) is not attached:
                return
            tables = task_tables(attached.wiring, self._virtual_ips, self._macs)
            before = {table.identity: table for table in attached.tables or ()}
            commands = "".join(difference(before.get(table.identity), table) for table in tables)
            if commands:
                attached.tables = None
                await self._threads.run(task_kernel.program, self._tools, self._namespaces / task_id, commands)
                attached.tables = tables

    async def _forget_flows(self) -> None:
        """Lets flows go that lead to backends which were withdrawn since the last time."""
        if self._withdrawn:
            for task_id, attached in list(self._attached.items()):
                gone = set().union(*(self._withdrawn.get(one.network_id, set()) for one in attached.wiring.interfaces))
                path = self._namespaces / task_id
                if not gone:
                    continue
                async with attached.lock:
                    if self._attached.get(task_id) is attached and path.exists():  # else it is being detached
                        await self._threads.run(_forget_inside, self._threads, path, gone)
            self._withdrawn = {}
        if self._withdrawn_ports:
            await self._threads.run(connections.forget, self._withdrawn_ports)
            self._withdrawn_ports = set()

    # ------------------------------------------------------------------------------------------------------ containers

    async def reserve(self, task_id: str) -> Path:
        """See `DataPlane`."""
        path = self._namespaces / task_id
        if task_id not in self._attached:
            with _as_swarm_error(f"task {task_id}: its network namespace cannot be made"):
                await self._threads.run(task_kernel.reserve, self._tools, path)
        return path

    async def attach(
        self,
        task_id: str,
        attachments: tuple[types.NetworkAttachment, ...],
        *,
        hostname: str,
        extra_hosts: tuple[str, ...] = (),
        dns: types.DnsConfig | None = None,
        sysctls: dict[str, str] | None = None,
    ) -> ContainerNetwork:
        """See `DataPlane`. Attaching a task again that is attached already returns what it has."""
        if task_id not in self._attached:
            if task_id in self._building:
                raise FailedPrecondition(f"task {task_id} is being attached already")
            nameservers = tuple(dns.nameservers) if dns is not None else ()
            await self._realised({attachment.network_id for attachment in attachments})
            async with self._shaping:
                wiring = wire(task_id, attachments, self._overlays, hostname=hostname, nameservers=nameservers)
                self._building[task_id] = wiring
            try:
                await self._build(wiring, {k: v for k, v in (sysctls or {}).items() if k.startswith("net.")})
            finally:
                del self._building[task_id]
        wiring = self._attached[task_id].wiring
        addresses = tuple(interface.address for interface in wiring.interfaces if not interface.ingress)
        return ContainerNetwork(
            namespace=self._namespaces / task_id,
            resolv_conf=resolv_conf(dns, self._host_resolv_conf()),
            hosts=hosts_file(hostname, addresses, extra_hosts),
            addresses=addresses,
        )

    async def _realised(self, network_ids: set[str]) -> None:
        """Waits for networks that the newest view names: an older one without them may just be put in force."""
        view = self._view
        if view is None or view is self._in_force:
            return
        if network_ids <= {overlay.network.id for overlay in view.overlays}:
            async with self._shaping:
                missing = not network_ids <= self._overlays.keys()
            if missing:
                await self._apply_newest()  # which may be another one by now

    async def _build(self, wiring: Wiring, sysctls: dict[str, str]) -> None:
        task_id = wiring.task_id
        path = self._namespaces / task_id
        record = self._records / f"{task_id}.json"
        tables = task_tables(wiring, self._virtual_ips, self._macs)
        rules = "".join(replacement(table) for table in tables)
        try:
            with _as_swarm_error(f"task {task_id}: its network cannot be set up"):
                await self._threads.run(task_kernel.build, self._tools, path, wiring, sysctls, rules)
                # Only what is complete has a record: who finds a namespace without one removes it.
                temporary = record.with_suffix(".new")
                temporary.write_text(wiring.to_json())
                inode = path.stat().st_ino
                temporary.replace(record)
        except BaseException:
            # A cancelled build may have come to its end on its thread.
            with _as_swarm_error(f"task {task_id}: its network cannot be removed"):
                await self._threads.run(task_kernel.tear_down, path, [one.port for one in wiring.interfaces])
            raise
        self._attached[task_id] = Attached(wiring, inode, tables)
        try:
            await self._resolver.set_container(task_id, self._resolver_container(self._attached[task_id]))
            with _as_swarm_error(f"task {task_id}: its virtual IPs cannot be set up"):
                await self._program_task(task_id)  # a newer view may have come while it was built
            await self._refresh_host_ports(task_id)
        except BaseException:
            await self.detach(task_id)
            raise

    async def detach(self, task_id: str) -> None:
        """See `DataPlane`."""
        attached = self._attached.pop(task_id, None)
        if attached is None:  # reserved only, or gone
            with _as_swarm_error(f"task {task_id}: its network namespace cannot be removed"):
                await self._threads.run(namespaces.delete, self._namespaces / task_id)
            return
        async with attached.lock:
            with _as_swarm_error(f"task {task_id}: the record of its network cannot be removed"):
                (self._records / f"{task_id}.json").unlink(missing_ok=True)
            with contextlib.suppress(SwarmError):  # it is told again when it answers
                await self._resolver.set_container(task_id, None)
            self._detached_ports += [interface.port for interface in attached.wiring.interfaces]
            async with self._removing:
                # All that were detached while an earlier removal ran go together.
                ports, self._detached_ports = self._detached_ports, []
                with _as_swarm_error(f"task {task_id}: its network cannot be removed"):
                    await self._threads.run(task_kernel.remove_ports, ports)
            with _as_swarm_error(f"task {task_id}: its network namespace cannot be removed"):
                await self._threads.run(namespaces.delete, self._namespaces / task_id)
        await self._refresh_host_ports(task_id)

    async def attached(self) -> set[str]:
        return set(self._attached)

    async def connections(self, task_id: str) -> int:
        """See `DataPlane`; 0 where the task is not attached."""
        if task_id not in self._attached:
            return 0
        with _as_swarm_error(f"task {task_id}: its connections cannot be counted"):
            sockets = await self._threads.run(_list_tcp_inside, self._threads, self._namespaces / task_id)
        return connections.inbound(sockets)

    # ------------------------------------------------------------------------------------------------------ helpers

    def _resolver_containers(self) -> dict[str, dict[str, object]]:
        return {task_id: self._resolver_container(attached) for task_id, attached in self._attached.items()}

    def _resolver_container(self, attached: Attached) -> dict[str, object]:
        return {
            "namespace": str((self._namespaces / attached.wiring.task_id).absolute()),
            "inode": attached.inode,
            "networks": [interface.network_id for interface in attached.wiring.interfaces if not interface.ingress],
            "nameservers": list(attached.wiring.nameservers),
            "outside": attached.wiring.reaches_outside,
        }

    def _host_resolv_conf(self) -> str:
        try:
            return self._resolv_conf_path.read_text(errors="replace")
        except OSError:
            return ""


def _remove_links() -> None:
    links = host_kernel.our_links()
    with NetlinkSocket() as netlink:
        host_kernel.remove_links(netlink, [link.index for link in links if link.alias.startswith(ALIAS)])


def _withdrawn(old: Mapping[str, Backends], new: Mapping[str, Backends]) -> dict[str, set[str]]:
    """The backends of each network that no virtual IP leads to any more."""
    found = {}
    for network_id, services in old.items():
        before = _all_backends(services.values())
        gone = before - _all_backends(new.get(network_id, {}).values())
        if gone:
            found[network_id] = gone
    return found


def _all_backends(backends: Iterable[tuple[str, ...]]) -> set[str]:
    return {address for addresses in backends for address in addresses}


def _forget_inside(threads: NamespaceThreads, path: Path, backends: set[str]) -> None:
    with threads.inside(path):
        connections.forget(backends)


def _list_tcp_inside(threads: NamespaceThreads, path: Path) -> list[connections.TcpSocket]:
    with threads.inside(path):
        return connections.list_tcp()


@contextlib.contextmanager
def _as_swarm_error(what: str) -> Iterator[None]:
    """Turns a refusal of the kernel's into a sentence for the user."""
    try:
        yield
    except OSError as error:
        raise InternalError(f"{what}: {error.strerror or error}") from error
