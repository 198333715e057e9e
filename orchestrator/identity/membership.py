"""Nodes as the store has them, for joining and for changes of role: pure, and the first transaction of a cluster.

Numbers of nodes come from the cluster object (`next_node_number`), in the same transaction that writes the node, so that
no two nodes ever get the same one.
"""

from __future__ import annotations

import ipaddress
import random

from swarm.errors import FailedPrecondition, InvalidArgument
from swarm.ids import IdSource
from swarm.names import (
    AGENT_PORT,
    CLUSTER_PORT,
    DEFAULT_CLUSTER_NAME,
    DEFAULT_NETWORK,
    INGRESS_NETWORK,
)
from swarm.tokens import new_secret
from swarm.v1 import types_pb2

from orchestrator.allocator import Rotation, step
from orchestrator.allocator.hosts import network_around
from orchestrator.identity.authority import NODE_VALIDITY, RootAuthority
from orchestrator.store import Change, Create, Snapshot, Update, copy_of, features

OVERLAY_DRIVER = "overlay"


def join_changes(
    snapshot: Snapshot,
    *,
    node_id: str,
    role: types_pb2.NodeRole.ValueType,
    hostname: str,
    address: str,
    availability: types_pb2.Availability.ValueType,
) -> list[Change]:
    """A new node, with the next number. `address` is HOST or HOST:PORT, the port being that of the cluster (managers)."""
    cluster = copy_of(require_cluster(snapshot))
    number = cluster.next_node_number
    cluster.next_node_number = number + 1
    node = new_node(
        node_id=node_id, number=number, role=role, hostname=hostname, address=address, availability=availability
    )
    return [Update(cluster), Create(node)]


def check_reachable(snapshot: Snapshot, hostname: str, address: str) -> None:
    """Whether the others can reach a host that joins at `address` (as `join_changes`). Raises InvalidArgument (loopback beside
    managers elsewhere), FailedPrecondition (inside an overlay's subnet: every host would look for it on its own bridge)."""
    host, _ = split_advertised(address)
    if _is_loopback(host) and not all(_is_loopback(split_advertised(one)[0]) for one in manager_addresses(snapshot)):
        raise InvalidArgument(
            f'address: host "{hostname}" advertises {host}, at which no other host reaches it; name the address of one of its '
            "interfaces with --advertise-addr"
        )
    network = network_around(host, snapshot.networks)
    if network is not None:
        subnet, name = network.subnet or network.spec.subnet, network.spec.name
        own = network.spec.ingress or name in (INGRESS_NETWORK, DEFAULT_NETWORK)
        raise FailedPrecondition(
            f'host "{hostname}" has the address {host}, which is inside {subnet}, the subnet of network "{name}": it could not '
            "be reached; join with an address of another network (--advertise-addr), or "
            + (
                "found the swarm with a --default-addr-pool that the hosts' addresses are not in"
                if own
                else f'remove network "{name}" first'
            )
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def new_node(
    *,
    node_id: str,
    number: int,
    role: types_pb2.NodeRole.ValueType,
    hostname: str,
    address: str,
    availability: types_pb2.Availability.ValueType,
) -> types_pb2.Node:
    """A node that has not been heard of. Its name is the host's until somebody gives it another."""
    host, port = split_advertised(address)
    node = types_pb2.Node(
        id=node_id,
        number=number,
        role=role,
        spec=types_pb2.NodeSpec(desired_role=role, availability=availability or types_pb2.AVAILABILITY_ACTIVE),
        description=types_pb2.NodeDescription(hostname=hostname, address=host, agent_port=AGENT_PORT),
        status=types_pb2.NodeStatus(state=types_pb2.NODE_STATE_UNKNOWN, message="has not connected yet"),
    )
    if role == types_pb2.NODE_ROLE_MANAGER:
        node.manager.address = join_host_port(host, port)
    return node


def with_role(node: types_pb2.Node, role: types_pb2.NodeRole.ValueType) -> types_pb2.Node:
    """A copy of the node as it is once it holds a certificate of `role`."""
    changed = copy_of(node)
    changed.role = role
    if role != types_pb2.NODE_ROLE_MANAGER:
        changed.ClearField("manager")
    elif not changed.manager.address:
        changed.manager.address = join_host_port(node.description.address, CLUSTER_PORT)
    return changed


def manager_addresses(snapshot: Snapshot) -> list[str]:
    """HOST:PORT of every manager's cluster port, in the order of joining."""
    managers = sorted((node for node in snapshot.nodes if node.manager.address), key=lambda node: node.number)
    return [node.manager.address for node in managers]


def node_validity(cluster: types_pb2.Cluster) -> float:
    """How long certificates of nodes are valid, in seconds."""
    spec = cluster.spec
    return (
        float(spec.node_certificate_validity.ToSeconds())
        if spec.HasField("node_certificate_validity")
        else (NODE_VALIDITY)
    )


def require_cluster(snapshot: Snapshot) -> types_pb2.Cluster:
    """Raises FailedPrecondition before the cluster's first transaction."""
    if snapshot.cluster is None:
        raise FailedPrecondition("the cluster is just being set up; repeat in a moment")
    return snapshot.cluster


def bootstrap_objects(
    spec: types_pb2.ClusterSpec,
    *,
    cluster_id: str,
    authority: RootAuthority,
    node_id: str,
    hostname: str,
    address: str,
    availability: types_pb2.Availability.ValueType,
    ids: IdSource,
    rng: random.Random | None = None,
) -> list[Change]:
    """The first transaction: the cluster, its first manager (number 1), and the networks `ingress` and `default`.

    `address` is what the node advertises, HOST or HOST:PORT (cluster port). `rng` only where a test wants the same secrets.
    Raises InvalidArgument where `spec` is not what a cluster may be told, or has no room for these networks.
    """
    from orchestrator.api.validation import check_cluster_spec

    check_cluster_spec(spec)
    cluster = types_pb2.Cluster(
        id=cluster_id,
        spec=spec,
        ca=authority.state(),
        join_secrets=types_pb2.JoinSecrets(worker=new_secret(rng), manager=new_secret(rng)),
        epoch=1,
        feature_level=features.SUPPORTED,
        next_node_number=2,
    )
    if not cluster.spec.name:
        cluster.spec.name = DEFAULT_CLUSTER_NAME
    node = new_node(
        node_id=node_id,
        number=1,
        role=types_pb2.NODE_ROLE_MANAGER,
        hostname=hostname,
        address=address,
        availability=availability,
    )
    ingress = types_pb2.NetworkSpec(name=INGRESS_NETWORK, driver=OVERLAY_DRIVER, ingress=True)
    default = types_pb2.NetworkSpec(name=DEFAULT_NETWORK, driver=OVERLAY_DRIVER, attachable=True)
    changes: list[Change] = [
        Create(cluster),
        Create(node),
        Create(types_pb2.Network(id=ids(), spec=ingress)),
        Create(types_pb2.Network(id=ids(), spec=default)),
    ]
    _check_room(changes, node.description.address)
    return changes


def _check_room(changes: list[Change], address: str) -> None:
    """Asks the allocator what it would do with the first transaction."""
    begun = Snapshot().with_changes(changes)
    allocated = begun.with_changes(step(begun, (), 0.0, Rotation()).changes)
    if not all(network.subnet for network in allocated.networks):
        raise InvalidArgument(
            f'address_pools: there is no room for the subnets of the networks "{INGRESS_NETWORK}" and "{DEFAULT_NETWORK}" '
            f"beside this host's own address {address}; give a larger --default-addr-pool, one that the hosts' addresses are "
            "not in, or a longer --default-addr-pool-mask-length"
        )


def split_advertised(address: str) -> tuple[str, int]:
    """HOST, HOST:PORT or [V6]:PORT → (HOST, cluster port). Raises InvalidArgument."""
    from swarm.enrolment import split_address, with_default_port

    if not address:
        raise InvalidArgument("address: the address that the node advertises is needed")
    return split_address(with_default_port(address, CLUSTER_PORT))


def join_host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
