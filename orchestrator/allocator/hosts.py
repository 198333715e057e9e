"""Subnets of networks and addresses of hosts, which must keep clear of each other.

A network's bridge has the network's gateway as its address on every host, and a route to the whole subnet: a host whose own
address lies in there can no longer be reached. So whoever chooses the second of the two asks here: who makes a network, who
chooses its subnet, who takes a host in.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from swarm.v1.types_pb2 import Network, Node

# Hosts of one site mostly share the first two numbers of their addresses. More of them will join, and what hosts talk to
# besides (resolvers, gateways) is there too: subnets that are chosen for people keep clear of all of it, while there is room.
SITE_PREFIX_LENGTH = 16


def ipv4(text: str) -> ipaddress.IPv4Address | None:
    """The address that `text` is; None where it is none, or not of IPv4 (overlays are IPv4 only)."""
    try:
        return ipaddress.IPv4Address(text)
    except ValueError:
        return None


def addresses_of(nodes: Iterable[Node]) -> list[ipaddress.IPv4Address]:
    """What the nodes advertise."""
    return [address for node in nodes if (address := ipv4(node.description.address)) is not None]


def sites_of(hosts: Iterable[ipaddress.IPv4Address]) -> list[ipaddress.IPv4Network]:
    """The networks that the hosts, and others like them, presumably have their addresses in."""
    return sorted({ipaddress.IPv4Network((host, SITE_PREFIX_LENGTH), strict=False) for host in hosts})


def node_within(subnet: ipaddress.IPv4Network, nodes: Iterable[Node]) -> Node | None:
    """A node whose own address lies in `subnet`: the one that joined first."""
    found = [node for node in nodes if (address := ipv4(node.description.address)) is not None and address in subnet]
    return min(found, key=lambda node: node.number, default=None)


def network_around(host: str, networks: Iterable[Network]) -> Network | None:
    """The network whose subnet (allocated, or asked for and not yet allocated) has the host's address in it."""
    address = ipv4(host)
    if address is None:
        return None
    for network in networks:
        subnet = network.subnet or network.spec.subnet
        if subnet and address in ipaddress.IPv4Network(subnet, strict=False):
            return network
    return None
