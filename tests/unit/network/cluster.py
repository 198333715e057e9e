"""A small cluster's view for the planners' tests: three nodes, the ingress network and two others."""

from __future__ import annotations

from typing import Any

from swarm import names
from swarm.v1 import dispatcher_pb2 as dispatcher
from swarm.v1 import types_pb2 as types

from agent.network.interface import HostPort, NetworkView, OverlayView
from agent.network.overlay_plan import Overlay, overlay_of

INGRESS = types.Network(
    id="ingress-id",
    vni=4096,
    subnet="10.255.0.0/20",
    gateway="10.255.0.1",
    spec=types.NetworkSpec(name="ingress", ingress=True),
)
BACKEND = types.Network(
    id="backend-id", vni=4097, subnet="10.0.16.0/20", gateway="10.0.16.1", spec=types.NetworkSpec(name="backend")
)
CLOSED = types.Network(
    id="closed-id",
    vni=4098,
    subnet="10.0.32.0/20",
    gateway="10.0.32.1",
    spec=types.NetworkSpec(name="closed", internal=True),
)
PEERS = tuple(
    dispatcher.NodePeer(node_id=f"n{number}", name=f"host{number}", address=f"192.0.2.{number}", number=number)
    for number in (2, 3)
)


def endpoint(network: types.Network, task: str, node: str, address: str, **more: Any) -> dispatcher.Endpoint:
    fields = {"service_id": "web", "serving": True, "hostname": task, "mac": names.endpoint_mac(address)} | more
    return dispatcher.Endpoint(network_id=network.id, task_id=task, node_id=node, address=address, **fields)


def service(network: types.Network, name: str, vip: str, **more: Any) -> dispatcher.ServiceEndpoint:
    return dispatcher.ServiceEndpoint(network_id=network.id, service_id=name, name=name, virtual_ip=vip, **more)


def overlay(network: types.Network, *members: object) -> OverlayView:
    return OverlayView(
        network,
        tuple(one for one in members if isinstance(one, dispatcher.Endpoint)),
        tuple(one for one in members if isinstance(one, dispatcher.ServiceEndpoint)),
    )


def view(*overlays: OverlayView, peers: Any = PEERS, host_ports: tuple[HostPort, ...] = ()) -> NetworkView:
    """As node n1 (192.0.2.1) sees it."""
    return NetworkView(1, "n1", 1, "192.0.2.1", tuple(peers), overlays, host_ports)


def realised(seen: NetworkView, mtu: int = 1500) -> dict[str, Overlay]:
    return {one.network.id: overlay_of(seen, one, mtu, local=True) for one in seen.overlays}


def attachment(network: types.Network, address: str) -> types.NetworkAttachment:
    return types.NetworkAttachment(network_id=network.id, address=f"{address}/20", mac=names.endpoint_mac(address))
