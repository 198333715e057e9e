"""The lists of nodes, services, tasks and networks: which filters each knows, and how each is ordered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swarm.v1 import control_pb2, types_pb2

from orchestrator.api.listing import Predicate, fitting, label_matches, matching, page
from orchestrator.api.lookup import name_of_task
from orchestrator.api.progress import summarize
from orchestrator.api.views import members
from orchestrator.consensus import ConsensusStatus
from orchestrator.store import Snapshot
from orchestrator.store.states import is_ended, is_live
from orchestrator.store.tables import node_name

_ROLES = {types_pb2.NODE_ROLE_MANAGER: "manager", types_pb2.NODE_ROLE_WORKER: "worker"}
_STATES = {
    types_pb2.NODE_STATE_READY: "ready",
    types_pb2.NODE_STATE_DOWN: "down",
    types_pb2.NODE_STATE_UNKNOWN: "unknown",
}
MAX_ATTACHED = 2000  # tasks shown with a network, where they fit


def list_nodes(
    snapshot: Snapshot, status: ConsensusStatus, request: control_pb2.ListRequest
) -> control_pb2.ListNodesResponse:
    found = matching(
        snapshot.nodes,
        request.filters,
        {
            "id": _id_begins,
            "name": lambda node, value: node_name(node).startswith(value),
            "label": lambda node, value: label_matches(node.spec.labels, value),
            "role": lambda node, value: _ROLES.get(node.role) == value,
            "membership": lambda node, value: value == "accepted",
            "state": lambda node, value: _STATES.get(node.status.state, "unknown") == value,
        },
    )
    shown, token = page(found, lambda node: (node_name(node), node.id), request.page_size, request.page_token)
    return control_pb2.ListNodesResponse(
        nodes=shown, next_page_token=token, leader_id=status.leader_id, members=members(status)
    )


def list_services(snapshot: Snapshot, request: control_pb2.ListRequest) -> control_pb2.ListServicesResponse:
    found = matching(
        snapshot.services,
        request.filters,
        {
            **_common_filters(),
            "mode": lambda service, value: service.spec.mode.WhichOneof("mode") == value,
        },
    )
    shown, token = page(found, _named, request.page_size, request.page_token)
    return control_pb2.ListServicesResponse(
        services=[summarize(snapshot, service) for service in shown], next_page_token=token
    )


def list_networks(snapshot: Snapshot, request: control_pb2.ListRequest) -> control_pb2.ListNetworksResponse:
    found = matching(
        snapshot.networks,
        request.filters,
        {**_common_filters(), "driver": lambda network, value: (network.spec.driver or "overlay") == value},
    )
    shown, token = page(found, _named, request.page_size, request.page_token)
    return control_pb2.ListNetworksResponse(networks=shown, next_page_token=token)


def list_tasks(snapshot: Snapshot, request: control_pb2.ListTasksRequest) -> control_pb2.ListTasksResponse:
    """In the order of name, newest first within a slot. `desired-state` running also means those about to run."""
    services = {service.id: service for service in snapshot.services}

    def of_service(task: types_pb2.Task, value: str) -> bool:
        service = services.get(task.service_id)
        return value == task.service_name if service is None else value in (service.spec.name, service.id)

    def on_node(task: types_pb2.Task, value: str) -> bool:
        node = snapshot.nodes.get(task.node_id)
        return bool(value) and (task.node_id == value or (node is not None and node_name(node) == value))

    found = matching(
        _candidates(snapshot, request),
        request.filters,
        {
            "id": _id_begins,
            "name": lambda task, value: name_of_task(task).startswith(value),
            "service": of_service,
            "node": on_node,
            "desired-state": lambda task, value: _desired_word(task) == value,
            "slot": lambda task, value: str(task.slot) == value,
        },
    )
    shown, token = page(found, _task_key, request.page_size, request.page_token)
    return control_pb2.ListTasksResponse(
        tasks=shown, names=[names_of(snapshot, task) for task in shown], next_page_token=token
    )


def _candidates(snapshot: Snapshot, request: control_pb2.ListTasksRequest) -> list[types_pb2.Task]:
    """All tasks, or fewer by an index: those of the services that are asked for."""
    wanted = [entry.value for entry in request.filters if entry.key == "service"]
    if not wanted:
        return list(snapshot.tasks)
    ids = {service.id for service in snapshot.services if {service.id, service.spec.name} & set(wanted)}
    orphaned = {id_ for id_ in snapshot.tasks.service_ids() if id_ not in snapshot.services}
    return [task for id_ in ids | orphaned for task in snapshot.tasks.of_service(id_)]


def names_of(snapshot: Snapshot, task: types_pb2.Task) -> control_pb2.TaskNames:
    """What people call the task, its node and its image."""
    node = snapshot.nodes.get(task.node_id)
    revision = snapshot.revisions.get(task.revision_id)
    return control_pb2.TaskNames(
        task=name_of_task(task),
        node=task.node_id if node is None else node_name(node),
        image="" if revision is None else revision.spec.task.container.image,
        node_problem="" if is_ended(task) else _problem_of(node),
    )


def _problem_of(node: types_pb2.Node | None) -> str:
    """Why what is known of the node's tasks may be old."""
    if node is None or node.status.state != types_pb2.NODE_STATE_DOWN:
        return ""
    return f"the node is down: {node.status.message}" if node.status.message else "the node is down"


def tasks_on(snapshot: Snapshot, network: types_pb2.Network) -> list[types_pb2.Task]:
    """The tasks that hold an address on the network and are to go on, by name."""
    return fitting(
        sorted((task for task in snapshot.tasks.on_network(network.id) if is_live(task)), key=_task_key), MAX_ATTACHED
    )


def _common_filters() -> Mapping[str, Predicate[Any]]:
    return {
        "id": _id_begins,
        "name": lambda obj, value: obj.spec.name.startswith(value),
        "label": lambda obj, value: label_matches(obj.spec.labels, value),
    }


def _id_begins(obj: Any, value: str) -> bool:
    return str(obj.id).startswith(value)


def _named(obj: Any) -> tuple[str, str]:
    return obj.spec.name, obj.id


def _task_key(task: types_pb2.Task) -> tuple[str, str]:
    newest_first = (1 << 63) - task.meta.created_index
    return f"{task.service_name}.{task.slot:010}{task.node_id if not task.slot else ''}.{newest_first:020}", task.id


def _desired_word(task: types_pb2.Task) -> str:
    if task.desired_state <= types_pb2.TASK_STATE_RUNNING:
        return "running"
    return types_pb2.TaskState.Name(task.desired_state).removeprefix("TASK_STATE_").lower()
