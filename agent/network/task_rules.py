"""The nftables tables inside one container's namespace: virtual IPs, the resolver's redirection, and the way back of
published ports.

Pure: from a view and a wiring to `Table`s.

Virtual IPs. The output hook leads a new connection to one of the service's serving backends in turn; conntrack keeps it there.
What is still addressed to a virtual IP after that has no backend and is refused at once.

Published ports. A packet arrives with the client's own address, sent by the bridge of the node that the client came to.
Its source MAC gives the connection a mark; replies carry the mark, which routes them out of the ingress interface, where
the egress hook addresses them to that bridge. Each node has a conntrack zone, since the same client address and port may
arrive through two nodes at once (the nat chain on input lets conntrack tell the replies apart). The destination becomes
the container's first address: a UDP server answers from there, and some programs listen only there.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from swarm import names

from agent.network.interface import NetworkView
from agent.network.layout import (
    MARK_MASK,
    MARK_PREFIX,
    RESOLVER_ADDRESS,
    RESOLVER_PORT,
    TABLE,
    node_mark,
    node_zone,
    rotation,
)
from agent.network.ruleset import Chain, ElementSet, Table, balanced
from agent.network.wiring import Interface, Wiring

Backends = Mapping[str, tuple[str, ...]]  # virtual IP → addresses of the serving tasks


def balancing(view: NetworkView) -> dict[str, Backends]:
    """The virtual IPs of each network, by network id: what all containers on it share."""
    found: dict[str, Backends] = {}
    for overlay in view.overlays:
        serving: dict[str, list[str]] = {}
        for endpoint in overlay.endpoints:
            if endpoint.serving:
                serving.setdefault(endpoint.service_id, []).append(endpoint.address)
        found[overlay.network.id] = {
            service.virtual_ip: tuple(sorted(serving.get(service.service_id, ())))
            for service in overlay.services
            if service.virtual_ip
        }
    return found


def bridge_macs(view: NetworkView) -> dict[int, str]:
    """The bridge MAC of every node, this one included, by node number."""
    numbers = {peer.number for peer in view.peers if peer.number} | {view.node_number}
    return {number: names.bridge_mac(number) for number in sorted(numbers)}


def task_tables(wiring: Wiring, virtual_ips: Mapping[str, Backends], macs: Mapping[int, str]) -> tuple[Table, ...]:
    """All tables of one container's namespace."""
    chains: dict[str, Chain] = {}
    leading: dict[str, str] = {}
    addresses: dict[str, str] = {}
    start = rotation(wiring.task_id)
    for interface in wiring.interfaces:
        if interface.ingress:
            continue
        for address, backends in virtual_ips.get(interface.network_id, {}).items():
            addresses[address] = ""
            if backends:
                name = f"vip_{int(ipaddress.IPv4Address(address)):08x}"
                chains[name] = Chain((f"dnat to {balanced(backends, start)}",))
                leading[address] = f"goto {name}"
    chains["output_nat"] = Chain(
        (
            *(
                f"ip daddr {RESOLVER_ADDRESS} {protocol} dport 53 dnat to {RESOLVER_ADDRESS}:{RESOLVER_PORT}"
                for protocol in ("udp", "tcp")
            ),
            "ip daddr vmap @vips",
        ),
        "type nat hook output priority -100; policy accept;",
    )
    refusals = ["ip daddr @addresses meta l4proto tcp reject with tcp reset", "ip daddr @addresses reject"]
    ingress = wiring.ingress
    if ingress is not None:
        refusals.append(f'oifname "{ingress.name}" ct direction original ct state new reject')
        chains |= _arrival(ingress, wiring.primary, macs)
    chains["output_filter"] = Chain(tuple(refusals), "type filter hook output priority 0; policy accept;")
    table = Table(
        "ip",
        TABLE,
        sets={
            "vips": ElementSet("map", "ipv4_addr : verdict", leading),
            "addresses": ElementSet("set", "ipv4_addr", addresses),
        },
        chains=chains,
    )
    return (table,) if ingress is None else (table, _departure(ingress, macs))


def _arrival(ingress: Interface, primary: Interface | None, macs: Mapping[int, str]) -> dict[str, Chain]:
    zones = ", ".join(f"{mac} : {node_zone(number)}" for number, mac in macs.items())
    marks = ", ".join(f"{mac} : {node_mark(number):#x}" for number, mac in macs.items())
    arriving = f'iifname "{ingress.name}"'
    chains = {
        "arrival_zone": Chain(
            (f"{arriving} ct original zone set ether saddr map {{ {zones} }}",),
            "type filter hook prerouting priority -300; policy accept;",
        ),
        "arrival_mark": Chain(
            (f"{arriving} ct state new ct mark set ether saddr map {{ {marks} }}",),
            "type filter hook prerouting priority -150; policy accept;",
        ),
        "input_nat": Chain((), "type nat hook input priority 100; policy accept;"),
        "reply_mark": Chain(
            (f"ct direction reply ct mark and {MARK_MASK:#x} == {MARK_PREFIX:#x} meta mark set ct mark",),
            "type route hook output priority -150; policy accept;",
        ),
    }
    if primary is not None:
        rule = f"{arriving} ip daddr {ingress.address} dnat to {primary.address}"
        chains["arrival_nat"] = Chain((rule,), "type nat hook prerouting priority -100; policy accept;")
    return chains


def _departure(ingress: Interface, macs: Mapping[int, str]) -> Table:
    choices = ", ".join(f"{node_mark(number):#x} : {mac}" for number, mac in macs.items())
    rule = f"ether daddr set meta mark map {{ {choices} }}"
    hook = f'type filter hook egress device "{ingress.name}" priority 0; policy accept;'
    return Table("netdev", TABLE, chains={"egress": Chain((rule,), hook)})
