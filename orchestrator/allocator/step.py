"""NEW → PENDING: everything that must be unique in the cluster is given to networks, services and tasks here.

A pure step over a snapshot (and the leader's `Rotation`, a hint): networks get a VNI and a subnet; services their published
ports and one virtual IP on each of their networks; tasks an address on each network of their revision, and on the ingress
network where their service publishes through the mesh. What does not fit any more stays as it is, with a message.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

from swarm.clock import timestamp
from swarm.names import DEFAULT_NETWORK, endpoint_mac
from swarm.v1.types_pb2 import (
    ENDPOINT_MODE_DNSRR,
    PUBLISH_MODE_HOST,
    TASK_STATE_NEW,
    TASK_STATE_PENDING,
    Network,
    NetworkAttachment,
    PortConfig,
    Service,
    Task,
    TaskSpec,
    VirtualIp,
)

from orchestrator.allocator.networks import AddressBook, allocate_network, needs_allocation
from orchestrator.allocator.ports import has_ingress_ports, host_mode_ports, publish
from orchestrator.allocator.rotation import Rotation
from orchestrator.store import Change, Decision, Snapshot, Update, copy_of
from orchestrator.store.decisions import waiting_because
from orchestrator.store.tables import PortKey

__all__ = ["Rotation", "networks_of", "step", "waits"]


def networks_of(snapshot: Snapshot, spec: TaskSpec) -> list[tuple[str, Sequence[str]]]:
    """(network id, aliases) of each network that a task of `spec` joins, without the ingress network."""
    if spec.networks:
        return [(config.network, list(config.aliases)) for config in spec.networks]
    default = snapshot.networks.by_name(DEFAULT_NETWORK)
    return [] if default is None else [(default.id, [])]


def step(snapshot: Snapshot, services: Iterable[str] | None, now: float, rotation: Rotation) -> Decision:
    """Allocates for all networks, the given services (None: all) and every new task. `now`: wall clock."""
    changes: list[Change] = _networks(snapshot, rotation)
    if changes:
        snapshot = snapshot.with_changes(changes)
    allocation = _Allocation(snapshot, now, rotation)
    ids = sorted(snapshot.services.ids() if services is None else services)
    for service_id in ids:
        service = snapshot.services.get(service_id)
        if service is not None and not service.removing:
            changes += allocation.service(service)
    for task in sorted(snapshot.tasks.unplaced(), key=lambda task: (task.service_id, task.slot, task.id)):
        if task.status.state == TASK_STATE_NEW:
            changes += allocation.task(task)
    return Decision(tuple(changes))


def waits(snapshot: Snapshot, service_id: str) -> bool:
    """Whether a service lacks a port or a virtual IP still: whatever another service gives up may be what it waits for."""
    service = snapshot.services.get(service_id)
    if service is None or service.removing:
        return False
    if len(service.published_ports) != len(service.spec.ports):
        return True
    if service.spec.endpoint_mode == ENDPOINT_MODE_DNSRR:
        return False
    wanted = [network_id for network_id, _ in networks_of(snapshot, service.spec.task)]
    return [vip.network_id for vip in service.virtual_ips] != wanted


def _networks(snapshot: Snapshot, rotation: Rotation) -> list[Change]:
    waiting = sorted((network for network in snapshot.networks if needs_allocation(network)), key=lambda n: n.id)
    known = {network.id: network for network in snapshot.networks} if waiting else {}
    changes: list[Change] = []
    # Users' own subnets first: the chosen ones keep clear of them.
    for network in sorted(waiting, key=lambda network: not network.spec.subnet):
        made = allocate_network(
            snapshot, network, [other for other in known.values() if other.id != network.id], rotation
        )
        if made is not None:
            known[network.id] = made
            changes.append(Update(made))
    return changes


class _Allocation:
    """One step's view: the snapshot, and what the step itself has given away."""

    def __init__(self, snapshot: Snapshot, now: float, rotation: Rotation) -> None:
        self.snapshot = snapshot
        self.now = now
        self.rotation = rotation
        self.books: dict[str, AddressBook] = {}
        self.reserved_ports: set[PortKey] = set()
        self.services: dict[str, Service] = {}  # as they are after this step

    @cached_property
    def _host_mode(self) -> dict[PortKey, set[str]]:
        return host_mode_ports(self.snapshot)

    def service(self, service: Service) -> Iterable[Change]:
        changed = copy_of(service)
        ports = self._ports(service)
        if ports is not None and ports != list(service.published_ports):
            del changed.published_ports[:]
            changed.published_ports.extend(ports)
        virtual_ips = self._virtual_ips(service)
        if virtual_ips is not None and virtual_ips != list(service.virtual_ips):
            del changed.virtual_ips[:]
            changed.virtual_ips.extend(virtual_ips)
        if changed != service:
            self.services[service.id] = changed
            yield Update(changed)

    def _ports(self, service: Service) -> list[PortConfig] | None:
        if not service.spec.ports:
            return []
        return publish(self.snapshot, service, self.reserved_ports, self.rotation, lambda: self._host_mode)

    def _virtual_ips(self, service: Service) -> list[VirtualIp] | None:
        """One for each network of the current revision; None where an address is missing still."""
        if service.spec.endpoint_mode == ENDPOINT_MODE_DNSRR:
            return []
        existing = {vip.network_id: vip for vip in service.virtual_ips}
        wanted: list[VirtualIp] = []
        given: list[tuple[AddressBook, str]] = []
        for network_id, _ in networks_of(self.snapshot, service.spec.task):
            if network_id in existing:
                wanted.append(existing[network_id])
                continue
            book = self._book(network_id)
            address = book.take() if book is not None else None
            if book is None or address is None:
                _give_back(given)
                return None
            given.append((book, address))
            wanted.append(VirtualIp(network_id=network_id, address=address))
        return wanted

    def task(self, task: Task) -> Iterable[Change]:
        revision = self.snapshot.revisions.get(task.revision_id)
        service = self.services.get(task.service_id) or self.snapshot.services.get(task.service_id)
        if revision is None or service is None:
            return
        wanted = networks_of(self.snapshot, revision.spec.task)
        if has_ingress_ports(service):
            ingress = self.snapshot.networks.ingress()
            if ingress is None:
                yield from waiting_because(self.now, task, "waits for the ingress network, which does not exist")
                return
            wanted.append((ingress.id, []))
        host_ports = [port for port in service.published_ports if port.mode == PUBLISH_MODE_HOST]
        if len(service.published_ports) != len(service.spec.ports):
            yield from waiting_because(self.now, task, "no published port is free between 30000 and 32767")
            return
        attachments: list[NetworkAttachment] = []
        given: list[tuple[AddressBook, str]] = []
        for network_id, aliases in wanted:
            book = self._book(network_id)
            if book is None:
                _give_back(given)
                yield from waiting_because(
                    self.now, task, f"waits for network {network_id}, which does not exist or has no subnet"
                )
                return
            address = book.take()
            if address is None:
                _give_back(given)
                yield from waiting_because(self.now, task, f'network "{book.network.spec.name}" has no free address')
                return
            given.append((book, address))
            attachments.append(
                NetworkAttachment(
                    network_id=network_id,
                    address=book.with_prefix(address),
                    mac=endpoint_mac(address),
                    aliases=aliases,
                )
            )
        allocated = copy_of(task)
        allocated.attachments.extend(attachments)
        allocated.host_ports.extend(host_ports)
        allocated.status.state = TASK_STATE_PENDING
        allocated.status.message = ""
        allocated.status.at.CopyFrom(timestamp(self.now))
        yield Update(allocated)

    def _book(self, network_id: str) -> AddressBook | None:
        if network_id not in self.books:
            network: Network | None = self.snapshot.networks.get(network_id)
            if network is None or not network.subnet:
                return None
            self.books[network_id] = AddressBook(self.snapshot, network, self.rotation)
        return self.books[network_id]


def _give_back(given: Iterable[tuple[AddressBook, str]]) -> None:
    """What is of no use without the address that is lacking may be another's in this step."""
    for book, address in given:
        book.give_back(address)
