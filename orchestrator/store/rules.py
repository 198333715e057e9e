"""What must hold in every state, checked where entries are applied: the same on every member, whoever proposed.

The API checks the same and more, with better sentences, before it proposes. These are the rules that two proposals, each
valid alone, could break together: names, numbers, ports, VNIs, subnets and addresses are unique, and a task's states only move
forward. A service that is being removed has given up its name and its ports.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Network
from typing import Any, cast

from swarm.errors import AlreadyExists, Conflict
from swarm.v1.types_pb2 import TASK_STATE_ORPHANED, Network, Node, Service, Task

from orchestrator.store.objects import Kind, StoreObject
from orchestrator.store.states import is_confirmed_stopped, is_final
from orchestrator.store.tables import Editor, ServiceTable, TaskEditor, bare_address

EditorOf = Callable[[Kind], Editor[Any]]


def check(editor_of: EditorOf, old: StoreObject | None, new: StoreObject) -> None:
    """Raises AlreadyExists or Conflict where storing `new` in place of `old` would break a rule."""
    match new:
        case Task():
            _check_task(cast("TaskEditor", editor_of(Kind.TASK)), old if isinstance(old, Task) else None, new)
        case Service():
            _check_service(editor_of(Kind.SERVICE), new)
        case Node():
            _check_node(editor_of(Kind.NODE), new)
        case Network():
            _check_network(editor_of(Kind.NETWORK), old if isinstance(old, Network) else None, new)


def _others(ids: tuple[str, ...], id_: str) -> str:
    return next((other for other in ids if other != id_), "")


def _check_service(services: Editor[Service], new: Service) -> None:
    for index, key in ServiceTable.index_keys(new):
        taken = _others(services.find(index, key), new.id) if index != "removing" else ""
        if not taken:
            continue
        if index == "name":
            raise AlreadyExists(f'service "{new.spec.name}" exists already; choose another name')
        protocol, port = cast("tuple[str, int]", key)
        other = services.get(taken)
        raise AlreadyExists(
            f'service "{new.spec.name}": port {port}/{protocol} is already published by service '
            f'"{other.spec.name if other is not None else taken}"; choose another port or remove that one'
        )


def _check_node(nodes: Editor[Node], new: Node) -> None:
    name = new.spec.name
    if name:  # hosts may share a host name, but a given name names one node
        for other in nodes.find("name", name):
            node = nodes.get(other)
            if other != new.id and node is not None and node.spec.name == name:
                raise AlreadyExists(f'node "{name}" exists already ({other}); choose another name')
    if new.number and _others(nodes.find("number", new.number), new.id):
        raise Conflict(f"node number {new.number} was given to another node in the meantime; repeat")


def _check_network(networks: Editor[Network], old: Network | None, new: Network) -> None:
    if _others(networks.find("name", new.spec.name), new.id):
        raise AlreadyExists(f'network "{new.spec.name}" exists already; choose another name')
    if new.vni and _others(networks.find("vni", new.vni), new.id):
        raise Conflict(f"VNI {new.vni} was given to another network in the meantime; repeat")
    if new.spec.ingress and _others(networks.find("ingress", True), new.id):
        raise AlreadyExists("there is an ingress network already; remove it first")
    subnet = _subnet(new)
    if subnet is None or (old is not None and _subnet(old) == subnet):
        return
    for id_ in networks.find("subnet", True):
        other = networks.get(id_)
        taken = _subnet(other) if other is not None and id_ != new.id else None
        if other is not None and taken is not None and taken.overlaps(subnet):
            raise Conflict(
                f'subnet {subnet} overlaps with {taken} of network "{other.spec.name}", made meanwhile; repeat'
            )


def _subnet(network: Network) -> IPv4Network | None:
    """What it has, or was asked for; None where one is to be chosen."""
    text = network.subnet or network.spec.subnet
    return IPv4Network(text) if text else None


def _check_task(tasks: TaskEditor, old: Task | None, new: Task) -> None:
    if old is not None:
        before, after = old.status.state, new.status.state
        if after < before or (is_final(before) and after not in (before, TASK_STATE_ORPHANED)):
            raise Conflict(
                f"task {new.id} moved on in the meantime (state {before}, not {after}); read it again and repeat"
            )
        if new.desired_state < old.desired_state:
            raise Conflict(f"task {new.id} is wanted to end already; read it again and repeat")
        if old.attachments == new.attachments:
            return
    if is_confirmed_stopped(new):
        return
    for attachment in new.attachments:
        holder = tasks.holder(attachment.network_id, bare_address(attachment.address))
        if holder and holder != new.id:
            raise Conflict(
                f"address {attachment.address} of network {attachment.network_id} belongs to task {holder}; allocate another"
            )
