"""What a cluster may be told."""

from __future__ import annotations

from swarm.references import parse_image_reference
from swarm.v1 import types_pb2

from orchestrator.api.validation.fields import (
    check_count,
    check_duration,
    check_labels,
    check_name,
    check_range,
    refuse,
)
from orchestrator.api.validation.networks import LONGEST_PREFIX, parse_subnet

MAX_POOLS = 64
SMALLEST_HEARTBEAT, LARGEST_HEARTBEAT = 0.1, 60.0  # seconds
SHORTEST_VALIDITY = 3600.0  # seconds: certificates are renewed at half of it
MAX_HISTORY = 1000


def check_cluster_spec(spec: types_pb2.ClusterSpec) -> None:
    """Raises InvalidArgument for the first thing that is wrong."""
    if spec.name:
        check_name("name", spec.name, dots=True)
    check_labels("labels", spec.labels)
    if spec.default_registry:
        _check_registry(spec.default_registry)
    _check_pools(spec)
    check_duration("heartbeat_period", spec.heartbeat_period, minimum=SMALLEST_HEARTBEAT, maximum=LARGEST_HEARTBEAT)
    check_range("task_history_limit", spec.task_history_limit, 0, MAX_HISTORY)
    check_duration("node_certificate_validity", spec.node_certificate_validity, minimum=SHORTEST_VALIDITY)


def _check_registry(registry: str) -> None:
    # A registry is what may stand before an image's path.
    if "/" in registry or parse_image_reference(f"{registry}/image").domain != registry:
        raise refuse("default_registry", f"{registry!r} is not a registry as HOST.DOMAIN or HOST:PORT")


def _check_pools(spec: types_pb2.ClusterSpec) -> None:
    check_count("address_pools", len(spec.address_pools), MAX_POOLS)
    pools = [parse_subnet("address_pools", pool) for pool in spec.address_pools]
    for number, pool in enumerate(pools):
        for other in pools[:number]:
            if pool.overlaps(other):
                raise refuse("address_pools", f"{pool} and {other} overlap")
        if spec.subnet_prefix_length and spec.subnet_prefix_length < pool.prefixlen:
            raise refuse("subnet_prefix_length", f"{spec.subnet_prefix_length} is larger than the pool {pool}")
    if spec.subnet_prefix_length:
        check_range("subnet_prefix_length", spec.subnet_prefix_length, 8, LONGEST_PREFIX)
