"""The host's nftables table: published ports, the way outside, and what keeps the overlays apart.

Pure: from a view to a `Table`.

A packet for a published port is sent on to a healthy task without touching its source address; the reply comes back to this
host because the task remembers whose bridge it came from (task_rules). The source is replaced only where the reply could not
return: 127.0.0.0/8, and addresses inside the overlays, which are the same or mean something else on other hosts.
A published port with no healthy task refuses connections. Overlays do not reach one another, and nobody outside reaches into
them except through a published port. Other tables of the host stay as they are: a firewall that drops forwarded packets
must allow ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from swarm.v1 import types_pb2 as types

from agent.network.interface import NetworkView
from agent.network.layout import TABLE, bridge_name, rotation
from agent.network.overlay_plan import Overlay
from agent.network.ruleset import Chain, ElementSet, Table, balanced
from agent.network.wiring import Wiring


@dataclass(frozen=True, order=True)
class PublishedPort:
    """A port of this host and where it leads."""

    protocol: str
    number: int
    target: int
    backends: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"{self.protocol} . {self.number}"

    @property
    def chain(self) -> str:
        return f"port_{self.protocol}_{self.number}"


def protocol_name(protocol: int) -> str:
    """As nftables writes it. `protocol` is a PortProtocol."""
    return "udp" if protocol == int(types.PORT_PROTOCOL_UDP) else "tcp"


def published_ports(view: NetworkView, wirings: Mapping[str, Wiring]) -> tuple[PublishedPort, ...]:
    """All ports that this host answers on. `wirings`: the containers here, by task id."""
    found: dict[tuple[str, int], PublishedPort] = {}
    for overlay in view.overlays:
        if not overlay.network.spec.ingress:
            continue
        backends: dict[str, list[str]] = {}
        for endpoint in overlay.endpoints:
            if endpoint.serving:
                backends.setdefault(endpoint.service_id, []).append(endpoint.address)
        for service in overlay.services:
            for port in service.ports:
                if port.published_port and port.mode != types.PUBLISH_MODE_HOST:
                    _add(found, port, backends.get(service.service_id, ()))
    serving = {endpoint.task_id: endpoint.serving for overlay in view.overlays for endpoint in overlay.endpoints}
    for host_port in view.host_ports:
        wiring = wirings.get(host_port.task_id)
        if wiring is not None and serving.get(host_port.task_id, True) and wiring.host_port_address:
            _add(found, host_port.port, [wiring.host_port_address])
        elif (protocol_name(host_port.port.protocol), host_port.port.published_port) not in found:
            _add(found, host_port.port, ())
    return tuple(sorted(found.values()))


def _add(found: dict[tuple[str, int], PublishedPort], port: types.PortConfig, backends: Iterable[str]) -> None:
    protocol = protocol_name(port.protocol)
    published = PublishedPort(protocol, port.published_port, port.target_port, tuple(sorted(backends)))
    found[protocol, port.published_port] = published


def host_table(ports: Iterable[PublishedPort], overlays: Iterable[Overlay], node_id: str) -> Table:
    """The whole table of a host."""
    realised = sorted(overlays, key=lambda overlay: overlay.vni)
    chains: dict[str, Chain] = {}
    leading: dict[str, str] = {}
    refused: dict[str, str] = {}
    for port in ports:
        if port.backends:
            target = balanced(port.backends, rotation(f"{node_id} {port.key}"))
            chains[port.chain] = Chain((f"meta l4proto {port.protocol} dnat to {target}:{port.target}",))
            leading[port.key] = f"goto {port.chain}"
        else:
            refused[port.key] = ""
    chains["published"] = Chain(("meta l4proto . th dport vmap @ports",))
    for hook in ("prerouting", "output"):
        chains[f"{hook}_nat"] = Chain(
            ("fib daddr type local jump published",), f"type nat hook {hook} priority -100; policy accept;"
        )
    chains |= _filters() | {"source_nat": _postrouting(realised)}
    return Table(
        "ip",
        TABLE,
        sets={
            "ports": ElementSet("map", "inet_proto . inet_service : verdict", leading),
            "refused": ElementSet("set", "inet_proto . inet_service", refused),
            "bridges": _bridges(realised),
            "closed_bridges": _bridges([overlay for overlay in realised if overlay.internal]),
            "ingress_bridges": _bridges([overlay for overlay in realised if overlay.ingress]),
            "passages": ElementSet(
                "set", "ifname . ifname", {f"{_quoted(one)} . {_quoted(one)}": "" for one in realised}
            ),
        },
        chains=chains,
    )


def _quoted(overlay: Overlay) -> str:
    return f'"{bridge_name(overlay.vni)}"'


def _bridges(overlays: list[Overlay]) -> ElementSet:
    return ElementSet("set", "ifname", {_quoted(overlay): "" for overlay in overlays})


def _filters() -> dict[str, Chain]:
    return {
        # route_localnet lets replies to 127.0.0.1 return; it must not let containers reach the host's loopback.
        "loopback_guard": Chain(
            ("iifname @bridges ip daddr 127.0.0.0/8 drop",), "type filter hook prerouting priority -300; policy accept;"
        ),
        "local_input": Chain(
            (
                "iifname @closed_bridges drop",
                "ct state new meta l4proto tcp meta l4proto . th dport @refused reject with tcp reset",
                "ct state new meta l4proto udp meta l4proto . th dport @refused reject",
            ),
            "type filter hook input priority 0; policy accept;",
        ),
        "forwarding": Chain(
            (
                "iifname . oifname @passages accept",  # frames within a bridge, on hosts that show them to this hook
                "iifname @closed_bridges drop",
                "ct state established,related accept",
                "oifname @bridges ct status dnat accept",
                "oifname @bridges reject with icmp admin-prohibited",
                "iifname @ingress_bridges reject with icmp admin-prohibited",
            ),
            "type filter hook forward priority 0; policy accept;",
        ),
    }


def _postrouting(overlays: list[Overlay]) -> Chain:
    returning = ["127.0.0.0/8", *sorted({overlay.subnet for overlay in overlays})]
    rules = [f"oifname @bridges ct status dnat ip saddr {{ {', '.join(returning)} }} masquerade"]
    outside = sorted({overlay.subnet for overlay in overlays if overlay.gateway and not overlay.ingress})
    if outside:
        rules.append(f"oifname != @bridges ip saddr {{ {', '.join(outside)} }} masquerade")
    return Chain(tuple(rules), "type nat hook postrouting priority 100; policy accept;")
