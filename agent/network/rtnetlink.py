"""The kernel's interfaces, addresses, routes, neighbours and forwarding entries as netlink messages, and back.

Pure encoders (a function per message, each returning a `Request`) and decoders of dumps. Decides nothing.
Numbers are those of linux/rtnetlink.h, if_link.h, neighbour.h and fib_rules.h.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass

from agent.network.netlink import (
    EXISTS,
    GONE,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NetlinkSocket,
    Request,
    attribute,
    attributes,
    nested,
    text,
    u8,
    u32,
)

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_GETROUTE = 24, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWRULE = 32

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_PROTINFO = 1, 3, 4, 10, 12
IFLA_LINKINFO, IFLA_IFALIAS, IFLA_GROUP, IFLA_NET_NS_FD = 18, 20, 27, 28
IFLA_INFO_KIND, IFLA_INFO_DATA = 1, 2
IFLA_BRPORT_LEARNING = 8
VETH_INFO_PEER = 1
IFLA_VXLAN_ID, IFLA_VXLAN_LOCAL, IFLA_VXLAN_LEARNING = 1, 4, 7
IFLA_VXLAN_PROXY, IFLA_VXLAN_PORT, IFLA_VXLAN_UDP_CSUM = 11, 15, 18
IFF_UP = 1

NDA_DST, NDA_LLADDR = 1, 2
NUD_REACHABLE, NUD_NOARP, NUD_PERMANENT = 0x02, 0x40, 0x80
NTF_SELF, NTF_MASTER = 0x02, 0x04

IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS, IFA_F_NOPREFIXROUTE = 1, 2, 8, 0x200
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_TABLE = 1, 4, 5, 6, 7, 15
RT_TABLE_MAIN, RTPROT_STATIC, RTN_UNICAST = 254, 4, 1
FRA_PRIORITY, FRA_FWMARK, FRA_TABLE, FRA_FWMASK = 6, 10, 15, 16
FR_ACT_TO_TBL = 1

_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_ROUTE = struct.Struct("=BBBBBBBBI")


@dataclass(frozen=True)
class Link:
    """An interface as a dump shows it."""

    index: int
    name: str
    alias: str
    kind: str  # bridge, vxlan, veth …; empty for hardware
    master: int
    mtu: int
    mac: str
    up: bool
    local: str = ""  # of a VXLAN device: its own end


@dataclass(frozen=True)
class Neighbour:
    """A neighbour entry (address set) or a forwarding entry (no address) of an interface."""

    index: int
    mac: str
    address: str  # of a forwarding entry: where the tunnel leads
    flags: int
    state: int


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _mac_text(data: bytes) -> str:
    return data.hex(":")


def _link(index: int = 0, *, up: bool | None = None, family: int = 0) -> bytes:
    return _IFINFO.pack(family, 0, index, IFF_UP if up else 0, 0 if up is None else IFF_UP)


def add_bridge(name: str, mac: str, mtu: int) -> Request:
    info = nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, "bridge"))
    payload = _link() + text(IFLA_IFNAME, name) + attribute(IFLA_ADDRESS, mac_bytes(mac)) + u32(IFLA_MTU, mtu) + info
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, payload, f"create the bridge {name}", EXISTS)


def add_vxlan(name: str, *, vni: int, local: str, port: int, mtu: int, master: int) -> Request:
    """A VXLAN device that learns nothing, answers ARP from its neighbour table, and carries UDP checksums."""
    data = [
        u32(IFLA_VXLAN_ID, vni),
        u8(IFLA_VXLAN_LEARNING, 0),
        u8(IFLA_VXLAN_PROXY, 1),
        attribute(IFLA_VXLAN_PORT, struct.pack(">H", port)),
        u8(IFLA_VXLAN_UDP_CSUM, 1),
    ]
    if local:
        data.append(attribute(IFLA_VXLAN_LOCAL, socket.inet_aton(local)))
    info = nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, "vxlan"), nested(IFLA_INFO_DATA, *data))
    payload = _link(up=True) + text(IFLA_IFNAME, name) + u32(IFLA_MTU, mtu) + u32(IFLA_MASTER, master) + info
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, payload, f"create the tunnel device {name} (VNI {vni})")


def add_veth(name: str, *, peer: str, peer_mac: str, peer_namespace: int, mtu: int, master: int) -> Request:
    """A pair: `name` here, up, a port of the bridge `master`; `peer` in the namespace of that descriptor, still down (the
    kernel refuses to start it before the pair is complete)."""
    inner = _link() + text(IFLA_IFNAME, peer) + attribute(IFLA_ADDRESS, mac_bytes(peer_mac)) + u32(IFLA_MTU, mtu)
    inner += u32(IFLA_NET_NS_FD, peer_namespace)
    data = nested(IFLA_INFO_DATA, nested(VETH_INFO_PEER, inner))
    info = nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, "veth"), data)
    payload = _link(up=True) + text(IFLA_IFNAME, name) + u32(IFLA_MTU, mtu) + u32(IFLA_MASTER, master) + info
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, payload, f"create the interface {name}")


def set_link(index: int, what: str, *, up: bool | None = None, mtu: int = 0, group: int = 0, mac: str = "") -> Request:
    payload = _link(index, up=up)
    if mac:
        payload += attribute(IFLA_ADDRESS, mac_bytes(mac))
    if mtu:
        payload += u32(IFLA_MTU, mtu)
    if group:
        payload += u32(IFLA_GROUP, group)
    return Request(RTM_SETLINK, 0, payload, what, GONE if group else frozenset())


def set_learning(index: int, name: str, learning: bool) -> Request:
    """Whether a bridge port teaches the bridge where source addresses live."""
    payload = _link(index, family=socket.AF_BRIDGE) + nested(IFLA_PROTINFO, u8(IFLA_BRPORT_LEARNING, int(learning)))
    return Request(RTM_SETLINK, 0, payload, f"set up the bridge port {name}")


def set_alias(name: str, alias: str) -> Request:
    """Marks an interface (the kernel ignores an alias where an interface is created)."""
    payload = _link() + text(IFLA_IFNAME, name) + text(IFLA_IFALIAS, alias)
    return Request(RTM_SETLINK, 0, payload, f"mark the interface {name}")


def delete_group(group: int) -> Request:
    """Removes all interfaces of a group in one step of the kernel's: as quick for a hundred as for one."""
    return Request(RTM_DELLINK, 0, _link() + u32(IFLA_GROUP, group), "remove interfaces", GONE)


def _address(index: int, cidr: str) -> bytes:
    interface = ipaddress.IPv4Interface(cidr)
    packed = interface.ip.packed
    head = _IFADDR.pack(socket.AF_INET, interface.network.prefixlen, 0, 0, index)
    return head + attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)


def add_address(index: int, cidr: str, name: str, *, route: bool = True) -> Request:
    """Gives an interface an address. Without `route` the subnet's route is left to the caller."""
    what = f"give {name} the address {cidr}"
    payload = _address(index, cidr) + (b"" if route else u32(IFA_FLAGS, IFA_F_NOPREFIXROUTE))
    return Request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, payload, what, EXISTS)


def delete_address(index: int, cidr: str, name: str) -> Request:
    return Request(RTM_DELADDR, 0, _address(index, cidr), f"take the address {cidr} from {name}", GONE)


def add_route(
    destination: str,
    *,
    index: int,
    gateway: str = "",
    source: str = "",
    table: int = RT_TABLE_MAIN,
    priority: int = 0,
) -> Request:
    """A route; `destination` is a CIDR or empty for the default route, `source` the address that the route suggests."""
    length = 0
    tail = b""
    if destination:
        network = ipaddress.IPv4Network(destination, strict=False)
        length = network.prefixlen
        tail = attribute(RTA_DST, network.network_address.packed)
    if gateway:
        tail += attribute(RTA_GATEWAY, socket.inet_aton(gateway))
    if source:
        tail += attribute(RTA_PREFSRC, socket.inet_aton(source))
    tail += u32(RTA_OIF, index) + u32(RTA_TABLE, table)
    if priority:
        tail += u32(RTA_PRIORITY, priority)
    scope = 0 if gateway else 253
    head = _ROUTE.pack(socket.AF_INET, length, 0, 0, _short_table(table), RTPROT_STATIC, scope, RTN_UNICAST, 0)
    what = f"add the route to {destination or 'default'} via {gateway or 'the link'}"
    return Request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, head + tail, what)


def _short_table(table: int) -> int:
    """What the old one-byte field holds beside the attribute."""
    return table if table < 256 else 0


def add_mark_rule(mark: int, mask: int, table: int, priority: int) -> Request:
    """Packets whose mark, under the mask, is `mark` are routed by `table`."""
    head = _ROUTE.pack(socket.AF_INET, 0, 0, 0, _short_table(table), 0, 0, FR_ACT_TO_TBL, 0)
    tail = u32(FRA_PRIORITY, priority) + u32(FRA_FWMARK, mark) + u32(FRA_FWMASK, mask) + u32(FRA_TABLE, table)
    return Request(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, head + tail, f"add the rule for mark {mark:#x}", EXISTS)


def _forward(index: int, mac: str, flags: int, destination: str = "") -> bytes:
    # NOARP makes it static for the bridge, REACHABLE satisfies the VXLAN device, which ages no entry that has NOARP.
    head = _NEIGHBOUR.pack(socket.AF_BRIDGE, index, NUD_NOARP | NUD_REACHABLE, flags, 0)
    head += attribute(NDA_LLADDR, mac_bytes(mac))
    return head + attribute(NDA_DST, socket.inet_aton(destination)) if destination else head


def add_port_entry(index: int, mac: str, what: str) -> Request:
    """Tells the bridge that `mac` lives behind its port `index`."""
    return Request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, _forward(index, mac, NTF_MASTER), what)


def delete_port_entry(index: int, mac: str, what: str) -> Request:
    return Request(RTM_DELNEIGH, 0, _forward(index, mac, NTF_MASTER), what, GONE)


def add_tunnel_entry(index: int, mac: str, destination: str, what: str) -> Request:
    """Tells a VXLAN device which tunnel end `mac` lives behind."""
    return Request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, _forward(index, mac, NTF_SELF, destination), what)


def delete_tunnel_entry(index: int, mac: str, what: str) -> Request:
    return Request(RTM_DELNEIGH, 0, _forward(index, mac, NTF_SELF), what, GONE)


def _neighbour(index: int, address: str) -> bytes:
    head = _NEIGHBOUR.pack(socket.AF_INET, index, NUD_PERMANENT, 0, 0)
    return head + attribute(NDA_DST, socket.inet_aton(address))


def add_neighbour(index: int, address: str, mac: str, what: str) -> Request:
    payload = _neighbour(index, address) + attribute(NDA_LLADDR, mac_bytes(mac))
    return Request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, payload, what)


def delete_neighbour(index: int, address: str, what: str) -> Request:
    return Request(RTM_DELNEIGH, 0, _neighbour(index, address), what, GONE)


def list_links(netlink: NetlinkSocket) -> list[Link]:
    return [_decode_link(body) for body in netlink.dump(RTM_GETLINK, _link())]


def _decode_link(body: bytes) -> Link:
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    found = attributes(body[_IFINFO.size :])
    info = attributes(found.get(IFLA_LINKINFO, b""))
    kind = _string(info.get(IFLA_INFO_KIND, b""))
    data = attributes(info.get(IFLA_INFO_DATA, b"")) if kind == "vxlan" else {}
    local = data.get(IFLA_VXLAN_LOCAL, b"")
    return Link(
        index=index,
        name=_string(found.get(IFLA_IFNAME, b"")),
        alias=_string(found.get(IFLA_IFALIAS, b"")),
        kind=kind,
        master=_number(found.get(IFLA_MASTER, b"")),
        mtu=_number(found.get(IFLA_MTU, b"")),
        mac=_mac_text(found.get(IFLA_ADDRESS, b"")),
        up=bool(flags & IFF_UP),
        local=socket.inet_ntoa(local) if len(local) == 4 else "",
    )


def list_addresses(netlink: NetlinkSocket) -> list[tuple[int, str]]:
    """(interface index, CIDR) of all IPv4 addresses."""
    found = []
    for body in netlink.dump(RTM_GETADDR, _IFADDR.pack(socket.AF_INET, 0, 0, 0, 0)):
        family, length, _, _, index = _IFADDR.unpack_from(body)
        values = attributes(body[_IFADDR.size :])
        local = values.get(IFA_LOCAL) or values.get(IFA_ADDRESS)
        if family == socket.AF_INET and local:
            found.append((index, f"{socket.inet_ntoa(local)}/{length}"))
    return found


def default_route_link(netlink: NetlinkSocket) -> int:
    """The index of the interface that the default route leaves by; 0 where there is none."""
    for body in netlink.dump(RTM_GETROUTE, _ROUTE.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)):
        _, length, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(body)
        if length == 0 and table == RT_TABLE_MAIN and kind == RTN_UNICAST:
            return _number(attributes(body[_ROUTE.size :]).get(RTA_OIF, b""))
    return 0


def list_neighbours(netlink: NetlinkSocket, family: int) -> list[Neighbour]:
    """Neighbour entries (AF_INET) or forwarding entries (AF_BRIDGE) of all interfaces."""
    found = []
    head = _IFINFO.pack(family, 0, 0, 0, 0) if family == socket.AF_BRIDGE else _NEIGHBOUR.pack(family, 0, 0, 0, 0)
    for body in netlink.dump(RTM_GETNEIGH, head):
        _, index, state, flags, _ = _NEIGHBOUR.unpack_from(body)
        values = attributes(body[_NEIGHBOUR.size :])
        address = values.get(NDA_DST, b"")
        mac = _mac_text(values.get(NDA_LLADDR, b""))
        found.append(Neighbour(index, mac, socket.inet_ntoa(address) if len(address) == 4 else "", flags, state))
    return found


def _string(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")


def _number(data: bytes) -> int:
    return int.from_bytes(data[:4], "little") if data else 0
