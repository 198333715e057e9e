"""Well-known names, ports and paths, and the addresses that are computed instead of stored."""

from __future__ import annotations

import ipaddress
import re
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

MAX_HOST_NAME = 63  # characters of a container's host name: the kernel takes 64
MAX_LOG_TASKS = 1000  # in one request for logs to an agent
_HOST_NAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)*")
_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")


def is_domain(text: str) -> bool:
    """Labels of letters, digits and hyphens between dots, of any length."""
    return _HOST_NAME.fullmatch(text) is not None


def is_host_name(text: str) -> bool:
    """Whether a container may be called so."""
    return len(text) <= MAX_HOST_NAME and is_domain(text)


def is_volume_name(text: str) -> bool:
    """Two or more letters, digits, `_`, `.`, `-`: also a directory's name that leads nowhere else."""
    return _VOLUME_NAME.fullmatch(text) is not None


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
