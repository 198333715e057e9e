"""What of a task, a service and a node the data planes of other nodes need to know.

Pure derivations from stored objects: the endpoint of a task on a network, the service behind a name and a virtual IP, and
the peer at the other end of a tunnel. An endpoint exists from the moment that a task has addresses and a node until the
task has ended (so that neighbours can be programmed before it starts and while it drains); `serving` alone decides whether
names and virtual IPs lead to it.
"""

from __future__ import annotations

from collections.abc import Iterator

from swarm.names import task_name
from swarm.templates import expanded, values_of
from swarm.v1 import dispatcher_pb2 as dispatcher
from swarm.v1 import types_pb2 as types

from orchestrator.store import states


def is_assigned(task: types.Task) -> bool:
    """Whether the task's agent is to know of it. A global service's task names its node long before the scheduler agrees, and
    before it has addresses."""
    return bool(task.node_id) and task.status.state >= types.TASK_STATE_ASSIGNED


def is_placed(task: types.Task) -> bool:
    """Whether the task belongs to a node and has not ended: only then does it have a place on its networks."""
    return bool(task.node_id) and types.TASK_STATE_ASSIGNED <= task.status.state <= types.TASK_STATE_RUNNING


def is_stopping(task: types.Task) -> bool:
    """Whether the task's agent is to stop it, and has not reported that it did."""
    return is_placed(task) and task.desired_state >= types.TASK_STATE_SHUTDOWN


def is_starting(task: types.Task) -> bool:
    """Whether the task is about to serve."""
    return is_placed(task) and task.desired_state == types.TASK_STATE_RUNNING and not states.is_serving(task)


def is_serving(task: types.Task, node: types.Node | None) -> bool:
    """Whether names and virtual IPs may lead to the task: it serves, and its node is not known to be down."""
    return states.is_serving(task) and node is not None and node.status.state != types.NODE_STATE_DOWN


def endpoints_of(
    task: types.Task, node: types.Node | None, revision: types.ServiceRevision | None
) -> Iterator[dispatcher.Endpoint]:
    """The task's place on each of its networks."""
    serving = is_serving(task, node)
    hostname = _hostname(task, node, revision)
    for attachment in task.attachments:
        if attachment.network_id and attachment.address:
            yield dispatcher.Endpoint(
                network_id=attachment.network_id,
                task_id=task.id,
                service_id=task.service_id,
                node_id=task.node_id,
                address=attachment.address.partition("/")[0],
                mac=attachment.mac,
                serving=serving,
                hostname=hostname,
                slot=task.slot,
            )


def _hostname(task: types.Task, node: types.Node | None, revision: types.ServiceRevision | None) -> str:
    """The name that its network knows the task by: the container's own, where somebody gave it one."""
    template = revision.spec.task.container.hostname if revision is not None else ""
    if revision is not None and "{{" in template:
        values = values_of(task, revision.spec, node.description if node is not None else types.NodeDescription())
        template = expanded(template, values)
    return template or task_name(task.service_name, task.slot, task.node_id)


def service_endpoints_of(
    service: types.Service, ingress_id: str, default_network_id: str
) -> Iterator[dispatcher.ServiceEndpoint]:
    """The service's name (and virtual IP) on each of its networks; on the ingress network its published ports."""
    virtual_ips = {vip.network_id: vip.address for vip in service.virtual_ips}
    aliases = {config.network: list(config.aliases) for config in service.spec.task.networks}
    networks = set(virtual_ips) | (set(aliases) or {default_network_id})
    published = [port for port in service.published_ports if port.mode != types.PUBLISH_MODE_HOST]
    if published:
        networks.add(ingress_id)
    for network_id in sorted(networks - {""}):
        yield dispatcher.ServiceEndpoint(
            network_id=network_id,
            service_id=service.id,
            name=service.spec.name,
            aliases=aliases.get(network_id, ()),
            virtual_ip=virtual_ips.get(network_id, ""),
            ports=published if network_id == ingress_id else (),
        )


def peer_of(node: types.Node) -> dispatcher.NodePeer | None:
    """The other end of tunnels to `node`; None while its address is not known."""
    if not node.description.address:
        return None
    return dispatcher.NodePeer(
        node_id=node.id,
        name=node.spec.name or node.description.hostname,
        address=node.description.address,
        number=node.number,
    )
