"""VNIs and subnets of networks, and addresses in them.

Subnets come from the cluster's pools, in order, and keep clear of every other network and of the nodes' own addresses; of
the sites that the nodes are in as well, while there is room elsewhere. The gateway is the first address unless the user
named one.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Iterable, Iterator

from swarm.v1.types_pb2 import Network

from orchestrator.allocator.hosts import addresses_of, sites_of
from orchestrator.allocator.rotation import Rotation
from orchestrator.store import Snapshot, copy_of

DEFAULT_POOLS = ("10.0.0.0/8",)
DEFAULT_PREFIX_LENGTH = 20
FIRST_VNI, LAST_VNI = 4096, (1 << 24) - 1  # below: left to people's own tunnels


def needs_allocation(network: Network) -> bool:
    return not (network.vni and network.subnet and network.gateway)


def allocate_network(
    snapshot: Snapshot, network: Network, others: Iterable[Network], rotation: Rotation
) -> Network | None:
    """A copy of `network` with VNI, subnet and gateway; None where the pools are exhausted. `others`: all other networks, as
    they are after the changes of this step."""
    siblings = list(others)
    vnis = {other.vni for other in siblings}
    made = copy_of(network)
    made.vni = network.vni or rotation.next("vni", FIRST_VNI, LAST_VNI, vnis.__contains__) or 0
    if not network.subnet:
        subnet = (
            ipaddress.IPv4Network(network.spec.subnet, strict=False)
            if network.spec.subnet
            else _free_subnet(snapshot, [ipaddress.IPv4Network(other.subnet) for other in siblings if other.subnet])
        )
        if subnet is None:
            return None
        made.subnet = str(subnet)
    subnet = ipaddress.IPv4Network(made.subnet)
    made.gateway = network.spec.gateway or str(subnet.network_address + 1)
    return made


def _free_subnet(snapshot: Snapshot, used: list[ipaddress.IPv4Network]) -> ipaddress.IPv4Network | None:
    hosts = addresses_of(snapshot.nodes)
    sites = sites_of(hosts)
    # Networks share no addresses with each other: of those that begin before a subnet ends, the last one reaches furthest.
    ranges = sorted((int(network.network_address), int(network.broadcast_address)) for network in used)
    firsts = [first for first, _ in ranges]
    near_hosts: ipaddress.IPv4Network | None = None
    for subnet in _candidates(snapshot):
        before = bisect_right(firsts, int(subnet.broadcast_address))
        if before and ranges[before - 1][1] >= int(subnet.network_address):
            continue
        if not any(subnet.overlaps(site) for site in sites):
            return subnet
        if near_hosts is None and not any(host in subnet for host in hosts):
            near_hosts = subnet
    return near_hosts


def _candidates(snapshot: Snapshot) -> Iterator[ipaddress.IPv4Network]:
    spec = snapshot.cluster.spec if snapshot.cluster is not None else None
    pools = (spec.address_pools if spec is not None else None) or DEFAULT_POOLS
    length = (spec.subnet_prefix_length if spec is not None else 0) or DEFAULT_PREFIX_LENGTH
    for text in pools:
        pool = ipaddress.IPv4Network(text, strict=False)
        yield from pool.subnets(new_prefix=max(length, pool.prefixlen))


class AddressBook:
    """The addresses of one network during one step: those in use, and the next free one."""

    def __init__(self, snapshot: Snapshot, network: Network, rotation: Rotation) -> None:
        self.network = network
        self._held = snapshot.tasks.addresses(network.id)
        self._rotation = rotation
        self._subnet = ipaddress.IPv4Network(network.subnet)
        self._taken = {network.gateway}
        for service in snapshot.services:
            self._taken.update(vip.address for vip in service.virtual_ips if vip.network_id == network.id)
        self._full = False
        rotation.begin_after_newest(snapshot, network.id)

    def take(self) -> str | None:
        """The next free address, without a prefix length; None where the subnet is full."""
        first = int(self._subnet.network_address) + 1
        last = int(self._subnet.broadcast_address) - 1
        if self._full or len(self._held) >= last - first + 1:
            return None
        number = self._rotation.next(self.network.id, first, last, self._is_taken)
        if number is None:
            self._full = True  # the next task of this step need not search the whole subnet again
            return None
        address = _dotted(number)
        self._taken.add(address)
        return address

    def give_back(self, address: str) -> None:
        """An address that was taken in this step, by who cannot use it after all."""
        self._taken.discard(address)
        self._full = False

    def _is_taken(self, number: int) -> bool:
        address = _dotted(number)
        return address in self._taken or address in self._held

    def with_prefix(self, address: str) -> str:
        return f"{address}/{self._subnet.prefixlen}"


def _dotted(number: int) -> str:
    """As `str(IPv4Address(number))`, several times quicker: searching a crowded subnet asks for many."""
    return f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
