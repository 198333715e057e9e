"""What a network may be told, and whether its subnet collides with others."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from swarm.v1 import types_pb2

from orchestrator.api.validation.fields import check_labels, check_name, check_range, refuse

DRIVERS = ("overlay",)
SMALLEST_PREFIX, LONGEST_PREFIX = 8, 29  # from 16 million addresses to 6
SMALLEST_MTU, LARGEST_MTU = 576, 65535
RESERVED = {  # RFC 6890: what no container can have an address of
    ipaddress.IPv4Network("0.0.0.0/8"): '"this network"',
    ipaddress.IPv4Network("127.0.0.0/8"): "loopback",
    ipaddress.IPv4Network("169.254.0.0/16"): "link-local",
    ipaddress.IPv4Network("224.0.0.0/4"): "multicast",
    ipaddress.IPv4Network("240.0.0.0/4"): "kept for later and broadcast",
}


def check_network_spec(spec: types_pb2.NetworkSpec) -> None:
    """Raises InvalidArgument for the first thing that is wrong."""
    check_name("name", spec.name, dots=True)
    check_labels("labels", spec.labels)
    check_labels("options", spec.options)
    if spec.driver and spec.driver not in DRIVERS:
        raise refuse("driver", f"{spec.driver!r} is not known; networks of a swarm have the driver {DRIVERS[0]}")
    if spec.mtu:
        check_range("mtu", spec.mtu, SMALLEST_MTU, LARGEST_MTU)
    if spec.ingress and (spec.internal or spec.attachable):
        raise refuse("ingress", "the ingress network can be neither internal nor attachable")
    subnet = parse_subnet("subnet", spec.subnet) if spec.subnet else None
    if spec.gateway:
        _check_gateway(spec.gateway, subnet)


def parse_subnet(field: str, text: str) -> ipaddress.IPv4Network:
    """Raises InvalidArgument where `text` is not an IPv4 network that containers can have addresses of."""
    try:
        subnet = ipaddress.IPv4Network(text, strict=True)
    except ValueError as error:
        raise refuse(field, f"{text!r} is not an IPv4 network as 10.5.0.0/24 ({error})") from None
    if not SMALLEST_PREFIX <= subnet.prefixlen <= LONGEST_PREFIX:
        raise refuse(field, f"{text} must have a prefix length from {SMALLEST_PREFIX} to {LONGEST_PREFIX}")
    for reserved, purpose in RESERVED.items():
        if subnet.overlaps(reserved):
            raise refuse(
                field,
                f"{text} is reserved, or has reserved addresses in it ({reserved}: {purpose}); choose a private network, "
                "as 10.5.0.0/24",
            )
    return subnet


def _check_gateway(gateway: str, subnet: ipaddress.IPv4Network | None) -> None:
    try:
        address = ipaddress.IPv4Address(gateway)
    except ValueError:
        raise refuse("gateway", f"{gateway!r} is not an IPv4 address") from None
    if subnet is None:
        raise refuse("gateway", "a gateway can be given together with a subnet only")
    if address not in subnet or address in (subnet.network_address, subnet.broadcast_address):
        raise refuse("gateway", f"{gateway} is not a host address of {subnet}")


def overlapping(subnet: ipaddress.IPv4Network, networks: Iterable[types_pb2.Network]) -> types_pb2.Network | None:
    """The network whose subnet (allocated, or asked for and not yet allocated) shares addresses with `subnet`."""
    for network in networks:
        taken = network.subnet or network.spec.subnet
        if taken and subnet.overlaps(ipaddress.IPv4Network(taken)):
            return network
    return None
