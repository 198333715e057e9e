"""How one container is wired: its interfaces, in order, and what follows from them. Values only, kept as JSON.

The first interface on a network that is not internal carries the default route. The interface on the ingress network always
comes last, so that a container's eth0 is a network that its service asked for.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from swarm import names
from swarm.errors import FailedPrecondition, InvalidArgument
from swarm.v1 import types_pb2 as types

from agent.network.layout import bridge_name, port_name
from agent.network.overlay_plan import Overlay


@dataclass(frozen=True)
class Interface:
    """One interface of a container and the bridge port that it ends in."""

    network_id: str
    name: str  # inside: eth0, eth1 …
    port: str  # on the host
    bridge: str
    vni: int
    cidr: str
    mac: str
    mtu: int
    gateway: str  # without a prefix length; empty on internal networks
    ingress: bool

    @property
    def address(self) -> str:
        return self.cidr.partition("/")[0]


@dataclass(frozen=True)
class Wiring:
    """One container's place in the networks."""

    task_id: str
    hostname: str
    interfaces: tuple[Interface, ...]
    nameservers: tuple[str, ...] = ()

    @property
    def ingress(self) -> Interface | None:
        """The interface that published ports arrive on."""
        return next((interface for interface in self.interfaces if interface.ingress), None)

    @property
    def primary(self) -> Interface | None:
        """The interface that the container knows itself by."""
        return next((interface for interface in self.interfaces if not interface.ingress), None)

    @property
    def default_route(self) -> Interface | None:
        """The interface that leads outside; the ingress network where no other does (replies through the mesh need a
        route even though they take another)."""
        leading = [interface for interface in self.interfaces if interface.gateway]
        return next((interface for interface in leading if not interface.ingress), leading[0] if leading else None)

    @property
    def reaches_outside(self) -> bool:
        """Whether a network of the container has a way out; the ingress network lets nothing but replies out."""
        return any(interface.gateway and not interface.ingress for interface in self.interfaces)

    @property
    def host_port_address(self) -> str:
        """Where a port that is published in host mode leads; empty where no network of the container has a way out."""
        chosen = self.default_route
        return chosen.address if chosen else ""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Wiring:
        """Raises ValueError, KeyError or TypeError where the text is not a wiring."""
        fields = json.loads(text)
        interfaces = tuple(Interface(**interface) for interface in fields["interfaces"])
        return Wiring(fields["task_id"], fields["hostname"], interfaces, tuple(fields["nameservers"]))


def wire(
    task_id: str,
    attachments: Iterable[types.NetworkAttachment],
    overlays: Mapping[str, Overlay],
    *,
    hostname: str,
    nameservers: Iterable[str] = (),
) -> Wiring:
    """The wiring of a task from its attachments. Raises FailedPrecondition where a network is not realised here."""
    interfaces: list[Interface] = []
    for attachment in sorted(attachments, key=lambda one: _is_ingress(one, overlays)):
        overlay = overlays.get(attachment.network_id)
        if overlay is None:
            raise FailedPrecondition(
                f"task {task_id}: network {attachment.network_id} is not realised on this node yet; the task is tried again"
            )
        try:
            given = ipaddress.IPv4Interface(attachment.address)
        except ValueError as error:
            raise InvalidArgument(f'task {task_id}: "{attachment.address}" is not an IPv4 address') from error
        subnet = ipaddress.IPv4Network(overlay.subnet)
        interfaces.append(
            Interface(
                network_id=overlay.network_id,
                name=f"eth{len(interfaces)}",
                port=port_name(task_id, overlay.network_id),
                bridge=bridge_name(overlay.vni),
                vni=overlay.vni,
                cidr=f"{given.ip}/{subnet.prefixlen}",
                mac=attachment.mac or names.endpoint_mac(str(given.ip)),
                mtu=overlay.mtu,
                gateway=overlay.gateway.partition("/")[0],
                ingress=overlay.ingress,
            )
        )
    return Wiring(task_id, hostname, tuple(interfaces), tuple(nameservers))


def _is_ingress(attachment: types.NetworkAttachment, overlays: Mapping[str, Overlay]) -> bool:
    overlay = overlays.get(attachment.network_id)
    return overlay is not None and overlay.ingress
