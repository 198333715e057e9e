"""Short ways to make objects for tests of the store."""

from __future__ import annotations

from swarm.v1.types_pb2 import (
    TASK_STATE_NEW,
    TASK_STATE_RUNNING,
    Network,
    NetworkAttachment,
    NetworkSpec,
    Node,
    NodeSpec,
    PortConfig,
    Service,
    ServiceSpec,
    Task,
    TaskState,
    TaskStatus,
)


def service(id_: str, name: str = "", *ports: int) -> Service:
    spec = ServiceSpec(name=name or id_, ports=[PortConfig(target_port=80, published_port=port) for port in ports])
    return Service(id=id_, spec=spec)


def node(id_: str, name: str = "", number: int = 0) -> Node:
    return Node(id=id_, spec=NodeSpec(name=name), number=number)


def network(id_: str, name: str = "", vni: int = 0) -> Network:
    return Network(id=id_, spec=NetworkSpec(name=name or id_), vni=vni)


def task(
    id_: str,
    service_id: str = "web",
    slot: int = 1,
    *,
    node_id: str = "",
    state: TaskState.ValueType = TASK_STATE_NEW,
    desired: TaskState.ValueType = TASK_STATE_RUNNING,
    address: str = "",
    network_id: str = "net",
) -> Task:
    made = Task(
        id=id_,
        service_id=service_id,
        slot=slot,
        node_id=node_id,
        desired_state=desired,
        status=TaskStatus(state=state),
    )
    if address:
        made.attachments.append(NetworkAttachment(network_id=network_id, address=address))
    return made
