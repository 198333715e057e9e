"""Which bridges, tunnel devices, forwarding and neighbour entries a host needs, and what leads there from what it has.

Pure: `desired` reads a view, `changes` compares two states. A network is realised where the view names it (the node then has
a task on it) or where a container is still attached; the ingress network is always in the view. Nothing is learned from
traffic: every remote endpoint is one entry for its MAC (which tunnel end) and one for its address (which MAC).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from swarm import names

from agent.network.interface import NetworkView, OverlayView
from agent.network.layout import tunnel_mtu


@dataclass(frozen=True)
class Overlay:
    """The devices of one network."""

    network_id: str
    name: str
    vni: int
    subnet: str
    gateway: str  # CIDR on the bridge; empty: no way out of the network
    mac: str  # of the bridge
    mtu: int
    local: str  # end of the tunnels; empty: the kernel chooses
    ingress: bool
    internal: bool


@dataclass(frozen=True)
class HostState:
    """Everything on a host that the overlays consist of."""

    overlays: Mapping[int, Overlay] = field(default_factory=dict)  # by VNI
    forwards: Mapping[tuple[int, str], str] = field(default_factory=dict)  # (VNI, MAC) → tunnel end
    neighbours: Mapping[tuple[int, str], str] = field(default_factory=dict)  # (VNI, address) → MAC


@dataclass(frozen=True)
class HostChanges:
    removed_overlays: tuple[int, ...] = ()
    added_overlays: tuple[Overlay, ...] = ()
    changed_overlays: tuple[Overlay, ...] = ()
    removed_forwards: tuple[tuple[int, str], ...] = ()
    added_forwards: tuple[tuple[int, str, str], ...] = ()
    removed_neighbours: tuple[tuple[int, str], ...] = ()
    added_neighbours: tuple[tuple[int, str, str], ...] = ()

    def __bool__(self) -> bool:
        return self != HostChanges()


def overlay_of(view: NetworkView, overlay: OverlayView, underlay_mtu: int, *, local: bool) -> Overlay:
    """The devices of one network of the view. `local`: the node's address is one of this host's own."""
    network = overlay.network
    prefix_length = _prefix_length(network.subnet)
    reaches_outside = bool(network.gateway) and not network.spec.internal
    fitting = tunnel_mtu(underlay_mtu)
    return Overlay(
        network_id=network.id,
        name=network.spec.name,
        vni=network.vni,
        subnet=network.subnet,
        gateway=f"{network.gateway}/{prefix_length}" if reaches_outside else "",
        mac=names.bridge_mac(view.node_number),
        mtu=min(network.spec.mtu, fitting) if network.spec.mtu else fitting,
        local=view.address if local and _is_ipv4(view.address) else "",
        ingress=network.spec.ingress,
        internal=network.spec.internal,
    )


@lru_cache(maxsize=4096)  # asked for each network at each change of anything
def _prefix_length(subnet: str) -> int:
    return ipaddress.IPv4Network(subnet).prefixlen


def desired(view: NetworkView, overlays: Mapping[str, Overlay]) -> HostState:
    """The state that the view asks for; `overlays` are the networks to realise, by id."""
    tunnel_ends = {peer.node_id: peer for peer in view.peers if peer.node_id != view.node_id and _is_ipv4(peer.address)}
    forwards: dict[tuple[int, str], str] = {}
    neighbours: dict[tuple[int, str], str] = {}
    for seen in view.overlays:
        overlay = overlays.get(seen.network.id)
        if overlay is None:
            continue
        for endpoint in seen.endpoints:
            peer = tunnel_ends.get(endpoint.node_id)
            if peer is None or not endpoint.address:
                continue
            mac = (endpoint.mac or names.endpoint_mac(endpoint.address)).lower()
            forwards[overlay.vni, mac] = peer.address
            neighbours[overlay.vni, endpoint.address] = mac
        if overlay.ingress:
            # Replies through the mesh are addressed to the bridge of the node that the client came through.
            for peer in tunnel_ends.values():
                if peer.number:
                    forwards[overlay.vni, names.bridge_mac(peer.number)] = peer.address
    return HostState({overlay.vni: overlay for overlay in overlays.values()}, forwards, neighbours)


@lru_cache(maxsize=4096)
def _is_ipv4(address: str) -> bool:
    """Whether a tunnel can end there; one node with another kind of address must not cut the others off."""
    try:
        ipaddress.IPv4Address(address)
    except ValueError:
        return False
    return True


def changes(old: HostState, new: HostState) -> HostChanges:
    """What leads from `old` to `new`. Entries of a network that goes, go with its device; those of a network whose tunnel
    device is made anew are all added again."""
    removed = tuple(vni for vni in old.overlays if vni not in new.overlays)
    added = tuple(overlay for vni, overlay in new.overlays.items() if vni not in old.overlays)
    changed = tuple(
        overlay for vni, overlay in new.overlays.items() if vni in old.overlays and old.overlays[vni] != overlay
    )
    fresh = {overlay.vni for overlay in (*added, *changed)}
    gone = {*removed, *fresh}
    return HostChanges(
        removed_overlays=removed,
        added_overlays=added,
        changed_overlays=changed,
        removed_forwards=tuple(key for key in old.forwards if key not in new.forwards and key[0] not in gone),
        added_forwards=tuple(
            (*key, end) for key, end in new.forwards.items() if key[0] in fresh or old.forwards.get(key) != end
        ),
        removed_neighbours=tuple(key for key in old.neighbours if key not in new.neighbours and key[0] not in gone),
        added_neighbours=tuple(
            (*key, mac) for key, mac in new.neighbours.items() if key[0] in fresh or old.neighbours.get(key) != mac
        ),
    )
