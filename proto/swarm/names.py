"""Well-known names, ports and paths, and the addresses that are computed instead of stored."""

from __future__ import annotations

import ipaddress
from pathlib import Path

ENROLMENT_PORT = 2377  # joining: the port that people name, as with Docker Swarm
CLUSTER_PORT = 2378  # managers: control, dispatcher, certificates, Raft; mutual TLS
AGENT_PORT = 7946  # agents: logs and images, for managers; mutual TLS
VXLAN_PORT = 4789
MANAGER_METRICS_PORT = 9323
AGENT_METRICS_PORT = 9324

STATE_DIRECTORY = Path("/var/lib/swarm")
RUN_DIRECTORY = Path("/run/swarm")
CONTROL_SOCKET = "control.sock"  # of the manager, in the run directory
NODE_SOCKET = "swarmd.sock"  # of the agent, in the run directory
SOCKET_GROUP = "swarm"

DEFAULT_CLUSTER_NAME = "default"
DEFAULT_NETWORK = "default"
INGRESS_NETWORK = "ingress"

NODE_LEFT = "the node left the swarm"  # the status message of a node that is down because it said so

# TLS names that a peer's certificate must carry (subject alternative names, beside the node's id).
MANAGER_TLS_NAME = "swarm-manager"
WORKER_TLS_NAME = "swarm-worker"


def endpoint_mac(address: str) -> str:
    """The MAC of a task's interface, from its IPv4 address: 02:42 and the four bytes, unique within a network."""
    return "02:42:" + ":".join(f"{byte:02x}" for byte in ipaddress.IPv4Address(address).packed)


def bridge_mac(node_number: int) -> str:
    """The MAC of a node's bridges, from `Node.number`: a task recognises by it which node a published port came through."""
    if not 0 < node_number < 1 << 24:
        raise ValueError(f"node number {node_number} is not in 1 … 2**24-1")
    return "02:53:57:" + ":".join(f"{byte:02x}" for byte in node_number.to_bytes(3, "big"))


def task_name(service_name: str, slot: int, node_id: str) -> str:
    """`web.1`; `web.<node id>` for global services."""
    return f"{service_name}.{slot or node_id}"
