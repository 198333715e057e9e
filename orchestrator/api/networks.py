"""What creating and removing a network changes: pure decisions over a snapshot."""

from __future__ import annotations

from swarm.errors import AlreadyExists, FailedPrecondition, InUse, InvalidArgument
from swarm.ids import IdSource
from swarm.names import DEFAULT_NETWORK, INGRESS_NETWORK
from swarm.v1 import types_pb2

from orchestrator.allocator.hosts import node_within
from orchestrator.api.validation.networks import overlapping, parse_subnet
from orchestrator.store import Change, Create, Kind, Remove, Snapshot
from orchestrator.store.tables import node_name

MAX_NAMED = 5  # services in one sentence


def create_network(snapshot: Snapshot, spec: types_pb2.NetworkSpec, *, ids: IdSource) -> list[Change]:
    """`spec` is checked by itself already; the allocator chooses what it leaves open. Raises AlreadyExists,
    InvalidArgument (a subnet that hosts are in)."""
    if snapshot.networks.by_name(spec.name) is not None:
        raise AlreadyExists(f'network "{spec.name}" exists already; choose another name')
    ingress = snapshot.networks.ingress() if spec.ingress else None
    if ingress is not None:
        raise AlreadyExists(f'network "{ingress.spec.name}" is the ingress network already; there can be one only')
    if spec.subnet:
        subnet = parse_subnet("subnet", spec.subnet)
        node = node_within(subnet, snapshot.nodes)
        if node is not None:
            raise InvalidArgument(
                f'subnet: network "{spec.name}": {spec.subnet} has the address {node.description.address} of node '
                f'"{node_name(node)}" in it, which could not be reached any more; choose another, or none to have one chosen'
            )
        other = overlapping(subnet, snapshot.networks)
        if other is not None:
            raise AlreadyExists(
                f'network "{spec.name}": subnet {spec.subnet} overlaps with {other.subnet or other.spec.subnet} of network '
                f'"{other.spec.name}"; choose another, or none to have one chosen'
            )
    return [Create(types_pb2.Network(id=ids(), spec=spec))]


def remove_network(snapshot: Snapshot, network: types_pb2.Network) -> list[Change]:
    """Raises FailedPrecondition (a network of the system), InUse (naming who uses it)."""
    name = network.spec.name
    if network.spec.ingress or name in (INGRESS_NETWORK, DEFAULT_NETWORK):
        raise FailedPrecondition(f'network "{name}" belongs to the swarm itself and cannot be removed')
    services = sorted(
        service.spec.name
        for service in snapshot.services
        if not service.removing and any(used.network == network.id for used in service.spec.task.networks)
    )
    if services:
        named = ", ".join(f'"{service}"' for service in services[:MAX_NAMED])
        more = f" and {len(services) - MAX_NAMED} more" if len(services) > MAX_NAMED else ""
        users, them = ("service", "that") if len(services) == 1 else ("services", "those")
        raise InUse(f'network "{name}" is used by {users} {named}{more}; remove or update {them} first')
    stopping = sorted({task.service_name for task in snapshot.tasks.on_network(network.id)})
    if stopping:
        raise InUse(f'network "{name}": tasks of service "{stopping[0]}" are still leaving it; repeat in a moment')
    return [Remove(Kind.NETWORK, network.id)]
