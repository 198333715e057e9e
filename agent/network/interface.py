"""What the agent asks of the data plane: one immutable picture of all networks on this node, and places for containers.

`NetworkView` is a pure function of the node's assignments; applying the same view twice changes nothing. The kernel's
tables and the resolver hold everything that traffic needs, so that neither notices when the agent is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from swarm.v1 import dispatcher_pb2 as dispatcher
from swarm.v1 import types_pb2 as types


@dataclass(frozen=True)
class OverlayView:
    """One network as this node must realise it. The messages are shared and never modified."""

    network: types.Network
    endpoints: tuple[dispatcher.Endpoint, ...]
    services: tuple[dispatcher.ServiceEndpoint, ...]


@dataclass(frozen=True)
class NetworkView:
    index: int  # of the assignments that it was made from
    node_id: str
    node_number: int
    address: str  # of this node: the local end of its tunnels
    peers: tuple[dispatcher.NodePeer, ...]
    overlays: tuple[OverlayView, ...]
    # (task id, address on the ingress network or "", port) of tasks on this node that publish in host mode
    host_ports: tuple[HostPort, ...] = ()


@dataclass(frozen=True)
class HostPort:
    task_id: str
    port: types.PortConfig


@dataclass(frozen=True)
class ContainerNetwork:
    """What a container's runtime and root filesystem need of its network."""

    namespace: Path  # bind-mounted network namespace
    resolv_conf: str  # contents of /etc/resolv.conf
    hosts: str  # contents of /etc/hosts
    addresses: tuple[str, ...]


class DataPlane(Protocol):
    async def start(self) -> None:
        """Finds what an earlier agent process left and starts the resolver where it does not run yet."""
        ...

    async def apply(self, view: NetworkView) -> None:
        """Puts the view into the kernel and the resolver; returns once it is in force. Views may be skipped: only the newest
        counts. Raises SwarmError; a failed part is tried again with the next call."""
        ...

    async def reserve(self, task_id: str) -> Path:
        """A network namespace for the task with nothing in it yet, so that a container can be made in it while `attach` fills
        it. The same one when asked again; `detach` removes it. Raises InternalError."""
        ...

    async def attach(
        self,
        task_id: str,
        attachments: tuple[types.NetworkAttachment, ...],
        *,
        hostname: str,
        extra_hosts: tuple[str, ...] = (),
        dns: types.DnsConfig | None = None,
        sysctls: dict[str, str] | None = None,
    ) -> ContainerNetwork:
        """Gives the task's namespace (reserved or not) an interface on each network, addresses, routes, virtual IPs and the
        resolver. The networks must be part of the last applied view. On failure nothing stays behind."""
        ...

    async def detach(self, task_id: str) -> None:
        """Removes it all. Not an error where it is gone."""
        ...

    async def attached(self) -> set[str]:
        """The task ids that have a namespace here."""
        ...

    async def connections(self, task_id: str) -> int:
        """How many TCP connections from elsewhere are open to the task: what draining waits for."""
        ...

    async def stop(self, *, remove: bool = False) -> None:
        """Ends our part. With `remove` (the node leaves the swarm) everything that this node ever made is removed."""
        ...
