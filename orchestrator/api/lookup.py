"""What a reference of a person means: a full id, a name, or the beginning of an id that only one object has.

An exact id wins over a name, a name over a prefix. Where more than one object is meant, the error lists them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from swarm.errors import InvalidArgument, NotFound
from swarm.names import task_name
from swarm.v1 import types_pb2

from orchestrator.api.progress import current_task
from orchestrator.store import Snapshot
from orchestrator.store.tables import Table

T = TypeVar("T", types_pb2.Node, types_pb2.Service, types_pb2.Task, types_pb2.Network)

MAX_LISTED = 5  # of the objects that an ambiguous reference could mean


def find_node(snapshot: Snapshot, reference: str) -> types_pb2.Node:
    """Raises NotFound, InvalidArgument (ambiguous)."""
    return _find("node", reference, snapshot.nodes, snapshot.nodes.named(reference))


def find_service(snapshot: Snapshot, reference: str) -> types_pb2.Service:
    """Raises NotFound, InvalidArgument (ambiguous)."""
    named = snapshot.services.by_name(reference)
    return _find(
        "service",
        reference,
        snapshot.services,
        () if named is None else (named,),
    )


def find_network(snapshot: Snapshot, reference: str) -> types_pb2.Network:
    """Raises NotFound, InvalidArgument (ambiguous)."""
    named = snapshot.networks.by_name(reference)
    return _find(
        "network",
        reference,
        snapshot.networks,
        () if named is None else (named,),
    )


def find_task(snapshot: Snapshot, reference: str) -> types_pb2.Task:
    """By id, by the beginning of one, or by name (`web.1`: the current task of that slot). Raises as `find_node`."""
    return _find("task", reference, snapshot.tasks, _tasks_named(snapshot, reference))


def name_of_task(task: types_pb2.Task) -> str:
    """`web.1`, or `web.NODE_ID` for a global service."""
    return task_name(task.service_name, task.slot, task.node_id)


def _tasks_named(snapshot: Snapshot, reference: str) -> Sequence[types_pb2.Task]:
    service_name, dot, place = reference.rpartition(".")
    service = snapshot.services.by_name(service_name) if dot else None
    if service is None:
        return ()
    tasks = snapshot.tasks.in_slot(service.id, int(place) if place.isdecimal() else place)
    return (current_task(tasks),) if tasks else ()


def _find(kind: str, reference: str, table: Table[T], named: Sequence[T]) -> T:
    if not reference:
        raise InvalidArgument(f"the name or id of a {kind} is needed")
    exact = table.get(reference)
    if exact is not None:
        return exact
    found = named or table.with_prefix(reference)
    if len(found) == 1:
        return found[0]
    if not found:
        raise NotFound(f'{kind} "{reference}" was not found; `swarmctl {_LISTING[kind]}` lists what is there')
    raise InvalidArgument(
        f'{kind} "{reference}" is ambiguous: {_enumerate(obj.id for obj in found)}; give more of the id'
    )


_LISTING = {"node": "node ls", "service": "service ls", "network": "network ls", "task": "service ps SERVICE"}


def _enumerate(ids: Iterable[str]) -> str:
    listed = sorted(ids)
    more = f" and {len(listed) - MAX_LISTED} more" if len(listed) > MAX_LISTED else ""
    return "it could be " + ", ".join(listed[:MAX_LISTED]) + more
