"""Published ports: the numbers that users left open.

A port published through the mesh is unique among all services, per protocol: every node answers at it, so that no task can
have it in host mode either. Chosen numbers come from 30000–32767 and stay with the service for as long as its spec publishes
that target port. The swarm's own ports are nobody's: a published one would take the managers' traffic away from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from swarm.names import AGENT_PORT, CLUSTER_PORT, ENROLMENT_PORT, VXLAN_PORT
from swarm.v1.types_pb2 import PUBLISH_MODE_HOST, PUBLISH_MODE_INGRESS, PortConfig, Service

from orchestrator.allocator.rotation import Rotation
from orchestrator.store import Snapshot
from orchestrator.store.tables import PortKey, port_key

FIRST_PORT, LAST_PORT = 30_000, 32_767
SWARM_PORTS: Mapping[PortKey, str] = {  # and what the swarm needs each for
    ("tcp", ENROLMENT_PORT): "joining",
    ("tcp", CLUSTER_PORT): "its managers",
    ("tcp", AGENT_PORT): "its node daemons",
    ("udp", VXLAN_PORT): "overlay networks",
}


def is_ingress(port: PortConfig) -> bool:
    return port.mode != PUBLISH_MODE_HOST


def has_ingress_ports(service: Service) -> bool:
    """Whether the service's tasks need an address on the ingress network."""
    return any(is_ingress(port) for port in service.spec.ports)


def publish(
    snapshot: Snapshot,
    service: Service,
    reserved: set[PortKey],
    rotation: Rotation,
    host_mode: Callable[[], Mapping[PortKey, set[str]]],
) -> list[PortConfig] | None:
    """The spec's ports with every number chosen; None where none is free. `reserved`: numbers that this step gave to other
    services; ours are added. `host_mode`: see `host_mode_ports`; asked where a number is to be chosen."""
    mine = {port_key(port) for port in service.spec.ports if port.published_port}
    kept = _chosen_before(service, mine)
    published: list[PortConfig] = []
    for port in service.spec.ports:
        chosen = PortConfig()
        chosen.CopyFrom(port)
        chosen.mode = PUBLISH_MODE_HOST if port.mode == PUBLISH_MODE_HOST else PUBLISH_MODE_INGRESS
        if not chosen.published_port:
            probe = PortConfig(protocol=port.protocol)

            def taken(candidate: int, probe: PortConfig = probe) -> bool:
                probe.published_port = candidate
                key = port_key(probe)
                owner = snapshot.services.publishing(key)
                return (
                    key in SWARM_PORTS
                    or key in mine
                    or key in reserved
                    or not host_mode().get(key, set()) <= {service.id}
                    or (owner is not None and owner.id != service.id)
                )

            own = kept.get(_identity(port), [])
            found = next((number for number in own if not taken(number)), None)
            found = found or rotation.next("port", FIRST_PORT, LAST_PORT, taken)
            if found is None:
                return None
            chosen.published_port = found
            mine.add(port_key(chosen))
        published.append(chosen)
    reserved.update(mine)
    return published


def host_mode_ports(snapshot: Snapshot) -> dict[PortKey, set[str]]:
    """What services publish in host mode, on whichever nodes, by a number of their own or by one that was chosen: and which
    services each. One look at all services for a whole step: a new leader looks at each of them."""
    found: dict[PortKey, set[str]] = {}
    for service in snapshot.services:
        for port in (*service.spec.ports, *service.published_ports) if not service.removing else ():
            if port.published_port and not is_ingress(port):
                found.setdefault(port_key(port), set()).add(service.id)
    return found


def _chosen_before(service: Service, asked_for: set[PortKey]) -> dict[tuple[int, str, bool], list[int]]:
    """The numbers that the service has for its open ports: several where it publishes a target port several times. Those that
    were chosen come before those that its user gave up."""
    found: dict[tuple[int, str, bool], list[int]] = {}
    for port in sorted(service.published_ports, key=lambda port: not FIRST_PORT <= port.published_port <= LAST_PORT):
        if port_key(port) not in asked_for:
            found.setdefault(_identity(port), []).append(port.published_port)
    return found


def _identity(port: PortConfig) -> tuple[int, str, bool]:
    """What makes a port of the spec the same one after an update: its number is kept."""
    return port.target_port, port_key(port)[0], is_ingress(port)
