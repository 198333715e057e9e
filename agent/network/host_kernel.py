"""Puts a host's overlays into the kernel and reads back what is there.

Thin: `read` turns dumps into a `HostState`, `carry_out` turns `HostChanges` into batches of netlink requests. Runs on a thread
in the host's namespace. Only interfaces whose alias says that they are ours are looked at.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from swarm import names

from agent.network import rtnetlink
from agent.network.layout import ALIAS, REMOVAL_GROUP, bridge_name, overlay_alias, tunnel_name, vni_of
from agent.network.namespaces import write_sysctl
from agent.network.netlink import NetlinkSocket, Request
from agent.network.overlay_plan import HostChanges, HostState, Overlay
from agent.network.rtnetlink import NTF_SELF, NUD_PERMANENT, Link


@dataclass(frozen=True)
class Underlay:
    """What carries the tunnels: its MTU, and whether the node's address is one of this host's own."""

    mtu: int
    local: bool


def underlay(address: str) -> Underlay:
    """The interface that has the address, else the one of the default route (an address that is translated on its way, or one
    that the host announces from its loopback interface, whose own MTU says nothing of the way)."""
    with NetlinkSocket() as netlink:
        links = {link.index: link for link in rtnetlink.list_links(netlink)}
        own = [
            links.get(index) for index, cidr in rtnetlink.list_addresses(netlink) if cidr.partition("/")[0] == address
        ]
        carrier = next((link for link in own if link is not None and link.name != "lo"), None)
        if carrier is None:
            carrier = links.get(rtnetlink.default_route_link(netlink))
        return Underlay(carrier.mtu if carrier else 0, bool(own))


def our_links() -> list[Link]:
    """The interfaces that carry our alias."""
    with NetlinkSocket() as netlink:
        return [link for link in rtnetlink.list_links(netlink) if link.alias.startswith(ALIAS)]


def prepare() -> None:
    """What every host needs before its first overlay: forwarding, and frames that pass a bridge without passing the host's
    packet filter. With the latter, a firewall that drops forwarded packets cuts every overlay (Docker installs one and turns
    that on), and a container could not reach itself through a port of its host."""
    write_sysctl("net.ipv4.ip_forward", "1")
    _set_where_present("net.bridge.bridge-nf-call-iptables", "0")


def read(expected: Iterable[Overlay]) -> HostState:
    """What is in the kernel. An overlay counts as present only where its devices are as `expected`; what is there but
    differs appears with an empty description, so that a comparison changes it."""
    wanted = {overlay.vni: overlay for overlay in expected}
    with NetlinkSocket() as netlink:
        links = {link.name: link for link in rtnetlink.list_links(netlink) if link.alias.startswith(ALIAS)}
        addresses = rtnetlink.list_addresses(netlink)
        tunnel_entries = rtnetlink.list_neighbours(netlink, socket.AF_BRIDGE)
        neighbours = rtnetlink.list_neighbours(netlink, socket.AF_INET)
    overlays: dict[int, Overlay] = {}
    vnis: dict[int, int] = {}
    for link in links.values():
        if link.kind not in ("bridge", "vxlan") or not link.alias.startswith(overlay_alias("")):
            continue
        vni = vni_of(link.name)
        if vni is None:  # somebody gave it another name
            continue
        if link.kind == "vxlan":
            vnis[link.index] = vni
        overlay = wanted.get(vni)
        overlays[vni] = overlay if overlay and _as_wanted(overlay, links, addresses) else _unknown(vni)
    own: dict[tuple[int, str], str] = {}
    port: set[tuple[int, str]] = set()
    for entry in tunnel_entries:
        if entry.index not in vnis:
            continue
        if entry.flags & NTF_SELF:
            own[vnis[entry.index], entry.mac] = entry.address
        elif not entry.state & NUD_PERMANENT:  # permanent in a bridge is its port's own address
            port.add((vnis[entry.index], entry.mac))
    # An entry of which only one half is there is shown with no destination: it is wrong whatever is wanted.
    forwards = {key: own.get(key, "") if key in port else "" for key in {*own, *port}}
    return HostState(
        overlays,
        forwards,
        {
            (vnis[one.index], one.address): one.mac
            for one in neighbours
            if one.index in vnis and one.state & NUD_PERMANENT and one.address
        },
    )


def _unknown(vni: int) -> Overlay:
    return Overlay("", "", vni, "", "", "", 0, "", False, False)


def _as_wanted(overlay: Overlay, links: dict[str, Link], addresses: list[tuple[int, str]]) -> bool:
    bridge, tunnel = links.get(bridge_name(overlay.vni)), links.get(tunnel_name(overlay.vni))
    if bridge is None or tunnel is None or not (bridge.up and tunnel.up):
        return False
    given = {cidr for index, cidr in addresses if index == bridge.index}
    return (
        tunnel.master == bridge.index
        and bridge.mac == overlay.mac
        and tunnel.local == overlay.local
        and bridge.mtu == tunnel.mtu == overlay.mtu
        and given == ({overlay.gateway} if overlay.gateway else set())
    )


def carry_out(changes: HostChanges) -> None:
    """Carries the changes out. Raises OSError, KernelRefused among them."""
    with NetlinkSocket() as netlink:
        links = {link.name: link for link in rtnetlink.list_links(netlink)}
        removed = [
            links[name].index
            for vni in changes.removed_overlays
            for name in (tunnel_name(vni), bridge_name(vni))
            if name in links
        ]
        remove_links(netlink, removed)
        for overlay in (*changes.changed_overlays, *changes.added_overlays):
            _realise(netlink, overlay, links)
        if changes.changed_overlays or changes.added_overlays:
            links = {link.name: link for link in rtnetlink.list_links(netlink)}
        netlink.execute(_entry_requests(changes, {name: link.index for name, link in links.items()}))


def remove_links(netlink: NetlinkSocket, indexes: Iterable[int]) -> None:
    """Removes interfaces together: the kernel waits once, not once for each."""
    chosen = list(indexes)
    if chosen:
        netlink.execute(
            [
                *(rtnetlink.set_link(index, "mark an interface for removal", group=REMOVAL_GROUP) for index in chosen),
                rtnetlink.delete_group(REMOVAL_GROUP),
            ]
        )


def _realise(netlink: NetlinkSocket, overlay: Overlay, links: dict[str, Link]) -> None:
    bridge, tunnel = bridge_name(overlay.vni), tunnel_name(overlay.vni)
    alias = overlay_alias(overlay.network_id)
    # A tunnel device cannot change its end; made anew it costs the network a moment, and happens when addresses change.
    if tunnel in links:
        remove_links(netlink, [links[tunnel].index])
    netlink.execute([rtnetlink.add_bridge(bridge, overlay.mac, overlay.mtu), rtnetlink.set_alias(bridge, alias)])
    index = socket.if_nametoindex(bridge)
    _set_where_present(f"net.ipv6.conf.{bridge}.disable_ipv6", "1")
    if overlay.gateway:
        # Lets the host's own 127.0.0.1 reach a published port; host_rules keeps containers from using it.
        _set_where_present(f"net.ipv4.conf.{bridge}.route_localnet", "1")
    requests: list[Request] = [
        *(
            rtnetlink.delete_address(index, cidr, bridge)
            for owner, cidr in rtnetlink.list_addresses(netlink)
            if owner == index and cidr != overlay.gateway
        ),
        rtnetlink.set_link(index, f"start the bridge {bridge}", up=True, mtu=overlay.mtu, mac=overlay.mac),
        rtnetlink.add_vxlan(
            tunnel,
            vni=overlay.vni,
            local=overlay.local,
            port=names.VXLAN_PORT,
            mtu=overlay.mtu,
            master=index,
        ),
        rtnetlink.set_alias(tunnel, alias),
    ]
    if overlay.gateway:
        requests.append(rtnetlink.add_address(index, overlay.gateway, bridge))
    netlink.execute(requests)
    _set_where_present(f"net.ipv6.conf.{tunnel}.disable_ipv6", "1")
    netlink.execute([rtnetlink.set_learning(socket.if_nametoindex(tunnel), tunnel, False)])


def _set_where_present(name: str, value: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6, without br_netfilter
        write_sysctl(name, value)


def _entry_requests(changes: HostChanges, indexes: dict[str, int]) -> Iterable[Request]:
    for vni, mac in changes.removed_forwards:
        index = indexes.get(tunnel_name(vni))
        if index:
            what = f"remove the entry of {mac} from {tunnel_name(vni)}"
            yield rtnetlink.delete_tunnel_entry(index, mac, what)
            yield rtnetlink.delete_port_entry(index, mac, what)
    for vni, address in changes.removed_neighbours:
        index = indexes.get(tunnel_name(vni))
        if index:
            yield rtnetlink.delete_neighbour(index, address, f"remove the neighbour {address} from {tunnel_name(vni)}")
    for vni, mac, end in changes.added_forwards:
        index = _index(indexes, vni)
        what = f"add an entry for {mac} via {end} to {tunnel_name(vni)}"
        yield rtnetlink.add_tunnel_entry(index, mac, end, what)
        yield rtnetlink.add_port_entry(index, mac, what)
    for vni, address, mac in changes.added_neighbours:
        index = _index(indexes, vni)
        yield rtnetlink.add_neighbour(index, address, mac, f"add the neighbour {address} to {tunnel_name(vni)}")


def _index(indexes: dict[str, int], vni: int) -> int:
    """Raises OSError where somebody removed the device: the caller then reads the kernel again, and it is made anew."""
    index = indexes.get(tunnel_name(vni))
    if index is None:
        raise OSError(errno.ENODEV, f"the tunnel device {tunnel_name(vni)} is gone")
    return index
