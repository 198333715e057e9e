"""What things are called in the kernel and which numbers they carry: pure functions, the same on every host and at every start.

Interfaces are found again by their alias: only what begins with `ALIAS` is ours to change or remove.
"""

from __future__ import annotations

import functools
import hashlib

ALIAS = "swarm:"
TABLE = "swarm"  # nftables, in the host's and in the containers' namespaces

VXLAN_OVERHEAD = 50  # outer Ethernet is not counted: IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14
MINIMUM_MTU = 576
DEFAULT_MTU = 1500

RESOLVER_ADDRESS = "127.0.0.11"
# Where the resolver really listens inside a container; port 53 is redirected, so that a container may serve DNS itself.
RESOLVER_PORT = 9953

MARK_PREFIX = 0x53000000  # of connections that came through a published port; the low 24 bits are the node's number
MARK_MASK = 0xFF000000
INGRESS_ROUTES = 5353  # routing table, inside a container, of what goes back through the mesh
INGRESS_RULE_PRIORITY = 100
REMOVAL_GROUP = 0x53574D00  # interfaces that are to be removed together
MAX_ZONE = 65535


def bridge_name(vni: int) -> str:
    return f"sw{vni:x}"


def tunnel_name(vni: int) -> str:
    return f"sx{vni:x}"


def vni_of(name: str) -> int | None:
    """The network that a bridge or tunnel device of this name belongs to; None where the name is not one of ours."""
    try:
        vni = int(name[2:], 16)
    except ValueError:
        return None
    return vni if name in (bridge_name(vni), tunnel_name(vni)) else None


def port_name(task_id: str, network_id: str) -> str:
    """The host's end of a container's interface."""
    return "sv" + hashlib.sha256(f"{task_id}/{network_id}".encode()).hexdigest()[:12]


def overlay_alias(network_id: str) -> str:
    return f"{ALIAS}network {network_id}"


def port_alias(task_id: str) -> str:
    return f"{ALIAS}task {task_id}"


def node_mark(number: int) -> int:
    return MARK_PREFIX | number


def node_zone(number: int) -> int:
    """The conntrack zone of connections that came through that node (0 is everyone else's)."""
    return (number - 1) % MAX_ZONE + 1


@functools.lru_cache(maxsize=4096)  # asked for with each change of any service
def rotation(name: str) -> int:
    """A number that differs from name to name: where a balancer begins."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def tunnel_mtu(underlay: int) -> int:
    """The MTU inside the overlay, from that of the interface which carries the tunnels."""
    return max(MINIMUM_MTU, (underlay or DEFAULT_MTU) - VXLAN_OVERHEAD)
