"""What a node may be told."""

from __future__ import annotations

from swarm.v1 import types_pb2

from orchestrator.api.validation.fields import check_labels, check_name, refuse


def check_node_spec(spec: types_pb2.NodeSpec) -> None:
    """Raises InvalidArgument for the first thing that is wrong."""
    if spec.name:
        check_name("name", spec.name, dots=True)
    check_labels("labels", spec.labels)
    if spec.desired_role not in (types_pb2.NODE_ROLE_WORKER, types_pb2.NODE_ROLE_MANAGER):
        raise refuse("desired_role", "say worker or manager")
    if spec.availability not in types_pb2.Availability.values():
        raise refuse("availability", "say active, pause or drain")
