"""Tables that never change: a persistent map of objects by id, and the indexes beside it.

A snapshot holds one table of each kind. `Table.edit()` gives an `Editor` that collects puts and deletes and ends in a new
table, which shares everything untouched with the old one. Readers on other threads keep the table that they took.

Most indexes are `key → ids`, a short tuple. Tasks are many, so theirs are maps of maps: by service and slot, by node, and
by network and address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from immutables import Map
from swarm.v1.types_pb2 import (
    PORT_PROTOCOL_UDP,
    PUBLISH_MODE_HOST,
    TASK_STATE_ASSIGNED,
    Network,
    Node,
    PortConfig,
    Service,
    ServiceRevision,
    Task,
    TaskSpec,
)

from orchestrator.store.states import is_confirmed_stopped, is_ended, is_live

T = TypeVar("T", bound=Node | Service | ServiceRevision | Task | Network)

_Index = Any  # an editor's index: a Map until it changes first, then a MapMutation
IndexKey = tuple[str, Hashable]  # (name of the index, key in it)
SlotKey = int | str  # a slot, or the node of a global service's task
PortKey = tuple[str, int]  # ("tcp", 80)


def port_key(port: PortConfig) -> PortKey:
    return ("udp" if port.protocol == PORT_PROTOCOL_UDP else "tcp"), port.published_port


def node_name(node: Node) -> str:
    """What people call the node: its given name, else the host's."""
    return node.spec.name or node.description.hostname


def slot_key(task: Task) -> SlotKey:
    """What identifies the task's place in its service: its slot, or its node where the service is global."""
    return task.slot or task.node_id


def bare_address(cidr: str) -> str:
    """`10.0.16.5` of `10.0.16.5/20`."""
    return cidr.partition("/")[0]


class Table(Generic[T]):
    """Objects of one kind by id. Iteration is over objects, in no particular order."""

    __slots__ = ("_index", "_objects")

    def __init__(self, objects: Map[str, T] | None = None, index: Map[IndexKey, tuple[str, ...]] | None = None) -> None:
        self._objects: Map[str, T] = Map() if objects is None else objects
        self._index: Map[IndexKey, tuple[str, ...]] = Map() if index is None else index

    def get(self, id_: str) -> T | None:
        return self._objects.get(id_)

    def __getitem__(self, id_: str) -> T:
        return self._objects[id_]

    def __contains__(self, id_: object) -> bool:
        return id_ in self._objects

    def __len__(self) -> int:
        return len(self._objects)

    def __iter__(self) -> Iterator[T]:
        return iter(self._objects.values())

    def ids(self) -> Iterable[str]:
        return self._objects.keys()

    def with_prefix(self, prefix: str) -> list[T]:
        """The objects whose id begins with `prefix`."""
        return [obj for id_, obj in self._objects.items() if id_.startswith(prefix)]

    def _find(self, index: str, key: Hashable) -> tuple[T, ...]:
        return tuple(self._objects[id_] for id_ in self._index.get((index, key), ()))

    @staticmethod
    def index_keys(obj: T) -> Iterable[IndexKey]:
        """Where `obj` is to be found, beside its id."""
        return ()

    def edit(self) -> Editor[T]:
        return Editor(self)


class Editor(Generic[T]):
    """Collects changes of one table. `finish` gives the table with them; the first table stays as it was."""

    def __init__(self, table: Table[T]) -> None:
        self._table = table
        self._objects = table._objects.mutate()
        self._index: _Index = table._index

    def get(self, id_: str) -> T | None:
        return self._objects.get(id_)

    def find(self, index: str, key: Hashable) -> tuple[str, ...]:
        """The ids at `key` of an index."""
        ids: tuple[str, ...] = self._index.get((index, key), ())
        return ids

    def put(self, obj: T) -> None:
        old = self._objects.get(obj.id)
        self._objects[obj.id] = obj
        self._reindex(old, obj, obj.id)

    def delete(self, id_: str) -> None:
        old = self._objects.pop(id_)
        self._reindex(old, None, id_)

    def _reindex(self, old: T | None, new: T | None, id_: str) -> None:
        before = set() if old is None else set(self._table.index_keys(old))
        after = set() if new is None else set(self._table.index_keys(new))
        if before == after:
            return
        index = self._index = _opened(self._index)
        for key in before - after:
            remaining = tuple(other for other in index[key] if other != id_)
            if remaining:
                index[key] = remaining
            else:
                del index[key]
        for key in after - before:
            index[key] = (*index.get(key, ()), id_)

    def finish(self) -> Table[T]:
        return type(self._table)(self._objects.finish(), _closed(self._index))


class NodeTable(Table[Node]):
    """Nodes, by name and number. Names of hosts may be shared; given names are unique."""

    __slots__ = ()

    def named(self, name: str) -> tuple[Node, ...]:
        return self._find("name", name)

    def by_number(self, number: int) -> Node | None:
        return next(iter(self._find("number", number)), None)

    @staticmethod
    def index_keys(obj: Node) -> Iterable[IndexKey]:
        keys: list[IndexKey] = [("name", node_name(obj))]
        if obj.number:
            keys.append(("number", obj.number))
        return keys


class ServiceTable(Table[Service]):
    """Services, by name and by the ports that they publish through the mesh. A service that is being removed has given up
    its name and its ports."""

    __slots__ = ()

    def by_name(self, name: str) -> Service | None:
        """The service of that name; one that is being removed only where there is no other."""
        live = self._find("name", name)
        return live[0] if live else next(iter(self._find("removing", name)), None)

    def publishing(self, key: PortKey) -> Service | None:
        """The service that holds an ingress port."""
        return next(iter(self._find("port", key)), None)

    @staticmethod
    def index_keys(obj: Service) -> Iterable[IndexKey]:
        if obj.removing:
            return [("removing", obj.spec.name)]
        keys: list[IndexKey] = [("name", obj.spec.name)]
        for ports in (obj.spec.ports, obj.published_ports):
            keys += [
                ("port", port_key(port)) for port in ports if port.published_port and port.mode != PUBLISH_MODE_HOST
            ]
        return keys


class RevisionTable(Table[ServiceRevision]):
    """Service revisions, by service."""

    __slots__ = ()

    def of_service(self, service_id: str) -> tuple[ServiceRevision, ...]:
        return self._find("service", service_id)

    @staticmethod
    def index_keys(obj: ServiceRevision) -> Iterable[IndexKey]:
        return [("service", obj.service_id)]


class NetworkTable(Table[Network]):
    """Networks, by name and VNI."""

    __slots__ = ()

    def by_name(self, name: str) -> Network | None:
        return next(iter(self._find("name", name)), None)

    def by_vni(self, vni: int) -> Network | None:
        return next(iter(self._find("vni", vni)), None)

    def has_all_of(self, task: TaskSpec) -> bool:
        """Whether every network that the tasks of a stored spec are on is there still."""
        return all(used.network in self for used in task.networks)

    def ingress(self) -> Network | None:
        """The network of the published ports."""
        return next(iter(self._find("ingress", True)), None)

    @staticmethod
    def index_keys(obj: Network) -> Iterable[IndexKey]:
        keys: list[IndexKey] = [("name", obj.spec.name)]
        if obj.vni:
            keys.append(("vni", obj.vni))
        if obj.spec.ingress:
            keys.append(("ingress", True))
        if obj.subnet or obj.spec.subnet:
            keys.append(("subnet", True))
        return keys


_Nested = Map[str, Map[Any, Any]]


@dataclass(frozen=True, slots=True)
class Load:
    """How many tasks of one revision are on a node: those that have not ended (they hold resources), and those of them that
    are not told to end either."""

    holding: int = 0
    live: int = 0

    def plus(self, holding: int, live: int) -> Load:
        return Load(self.holding + holding, self.live + live)


class TaskTable(Table[Task]):
    """Tasks, by service and slot, by node, by network and address; those without a node; and what the nodes carry."""

    __slots__ = ("_by_network", "_by_node", "_by_service", "_loads", "_unplaced")

    EMPTY: ClassVar[Map[Any, Any]] = Map()

    def __init__(
        self,
        objects: Map[str, Task] | None = None,
        *,
        by_service: _Nested | None = None,
        by_node: _Nested | None = None,
        by_network: _Nested | None = None,
        loads: _Nested | None = None,
        unplaced: Map[str, None] | None = None,
    ) -> None:
        super().__init__(objects)
        self._by_service: Map[str, Map[SlotKey, tuple[str, ...]]] = Map() if by_service is None else by_service
        self._by_node: Map[str, Map[str, None]] = Map() if by_node is None else by_node
        self._by_network: Map[str, Map[str, str]] = Map() if by_network is None else by_network
        self._loads: Map[str, Map[str, Load]] = Map() if loads is None else loads
        self._unplaced: Map[str, None] = Map() if unplaced is None else unplaced

    def of_service(self, service_id: str) -> Iterator[Task]:
        objects = self._objects
        return (objects[id_] for ids in self._by_service.get(service_id, self.EMPTY).values() for id_ in ids)

    def slots(self, service_id: str) -> Iterator[tuple[SlotKey, tuple[Task, ...]]]:
        """Each slot of a service (node, where it is global) with its tasks, oldest first."""
        objects = self._objects
        for key, ids in self._by_service.get(service_id, self.EMPTY).items():
            yield key, tuple(objects[id_] for id_ in ids)

    def in_slot(self, service_id: str, key: SlotKey) -> tuple[Task, ...]:
        """The tasks of one slot, oldest first."""
        ids = self._by_service.get(service_id, self.EMPTY).get(key, ())
        return tuple(self._objects[id_] for id_ in ids)

    def service_ids(self) -> Iterable[str]:
        """The services that have tasks, also those that are gone themselves."""
        return self._by_service.keys()

    def on_node(self, node_id: str) -> Iterator[Task]:
        objects = self._objects
        return (objects[id_] for id_ in self._by_node.get(node_id, self.EMPTY))

    def count_on_node(self, node_id: str) -> int:
        return len(self._by_node.get(node_id, self.EMPTY))

    def node_ids(self) -> Iterable[str]:
        """The nodes that have tasks, also those that are gone themselves."""
        return self._by_node.keys()

    def loads(self, node_id: str) -> Map[str, Load]:
        """Revision id → how many of its tasks are on the node."""
        return self._loads.get(node_id, self.EMPTY)

    def unplaced(self) -> Iterator[Task]:
        """The tasks that are wanted and have not reached ASSIGNED: work for allocator and scheduler."""
        objects = self._objects
        return (objects[id_] for id_ in self._unplaced)

    def unplaced_count(self) -> int:
        return len(self._unplaced)

    def on_network(self, network_id: str) -> Iterator[Task]:
        """The tasks that hold an address of the network."""
        objects = self._objects
        return (objects[id_] for id_ in self._by_network.get(network_id, self.EMPTY).values())

    def addresses(self, network_id: str) -> Map[str, str]:
        """Address (no prefix length) → the task that holds it, until it is confirmed stopped."""
        return self._by_network.get(network_id, self.EMPTY)

    def edit(self) -> TaskEditor:
        return TaskEditor(self)


class TaskEditor(Editor[Task]):
    """As `Editor`, for the nested indexes of tasks."""

    def __init__(self, table: TaskTable) -> None:
        super().__init__(table)
        # An index is opened for changes when it changes first: most entries touch a task or two, and few indexes.
        self._by_service: _Index = table._by_service
        self._by_node: _Index = table._by_node
        self._by_network: _Index = table._by_network
        self._loads: _Index = table._loads
        self._unplaced: _Index = table._unplaced

    def holder(self, network_id: str, address: str) -> str:
        """The task that holds an address of a network; empty where it is free."""
        owner: str = self._by_network.get(network_id, TaskTable.EMPTY).get(address, "")
        return owner

    def _reindex(self, old: Task | None, new: Task | None, id_: str) -> None:
        if old is None or new is None or (old.service_id, slot_key(old)) != (new.service_id, slot_key(new)):
            self._move_slot(old, new, id_)
        old_node, new_node = (old.node_id if old is not None else ""), (new.node_id if new is not None else "")
        if old_node != new_node:
            by_node = self._by_node = _opened(self._by_node)
            _nested_delete(by_node, old_node, id_)
            if new_node:
                by_node[new_node] = by_node.get(new_node, TaskTable.EMPTY).set(id_, None)
        before, after = _weight(old), _weight(new)
        if before != after:
            self._shift_load(before, -1)
            self._shift_load(after, 1)
        if new is not None and _is_unplaced(new):
            self._unplaced = _opened(self._unplaced)
            self._unplaced[id_] = None
        elif old is not None and _is_unplaced(old):
            self._unplaced = _opened(self._unplaced)
            del self._unplaced[id_]
        held, holds = _places(old), _places(new)
        if held != holds:
            by_network = self._by_network = _opened(self._by_network)
            for network_id, address in held - holds:
                if self.holder(network_id, address) == id_:
                    _nested_delete(by_network, network_id, address)
            for network_id, address in holds - held:
                by_network[network_id] = by_network.get(network_id, TaskTable.EMPTY).set(address, id_)

    def _move_slot(self, old: Task | None, new: Task | None, id_: str) -> None:
        by_service = self._by_service = _opened(self._by_service)
        if old is not None:
            slots = by_service[old.service_id]
            remaining = tuple(other for other in slots[slot_key(old)] if other != id_)
            if remaining:
                by_service[old.service_id] = slots.set(slot_key(old), remaining)
            else:
                _nested_delete(by_service, old.service_id, slot_key(old))
        if new is not None:
            slots, key = by_service.get(new.service_id, TaskTable.EMPTY), slot_key(new)
            by_service[new.service_id] = slots.set(key, (*slots.get(key, ()), id_))

    def _shift_load(self, weight: tuple[str, str, bool] | None, sign: int) -> None:
        if weight is None:
            return
        node_id, revision_id, live = weight
        by_node = self._loads = _opened(self._loads)
        loads = by_node.get(node_id, TaskTable.EMPTY)
        load = loads.get(revision_id, Load()).plus(sign, sign if live else 0)
        if load.holding:
            by_node[node_id] = loads.set(revision_id, load)
        else:
            _nested_delete(by_node, node_id, revision_id)

    def finish(self) -> TaskTable:
        return TaskTable(
            self._objects.finish(),
            by_service=_closed(self._by_service),
            by_node=_closed(self._by_node),
            by_network=_closed(self._by_network),
            loads=_closed(self._loads),
            unplaced=_closed(self._unplaced),
        )


def _opened(index: _Index) -> Any:
    """The index for changes; the one that was handed in stays as it is."""
    return index.mutate() if isinstance(index, Map) else index


def _closed(index: _Index) -> Any:
    return index if isinstance(index, Map) else index.finish()


def _weight(task: Task | None) -> tuple[str, str, bool] | None:
    """What the task puts on a node. A global service's task names its node before it is assigned there."""
    if task is None or not task.node_id or task.status.state < TASK_STATE_ASSIGNED or is_ended(task):
        return None
    return task.node_id, task.revision_id, is_live(task)


def _is_unplaced(task: Task) -> bool:
    return task.status.state < TASK_STATE_ASSIGNED and is_live(task)


def _places(task: Task | None) -> set[tuple[str, str]]:
    """The addresses that the task holds: until it is confirmed stopped."""
    if task is None or not task.attachments or is_confirmed_stopped(task):
        return set()
    return {(attachment.network_id, bare_address(attachment.address)) for attachment in task.attachments}


def _nested_delete(outer: Any, key: str, inner_key: SlotKey) -> None:
    inner = outer.get(key)
    if inner is None or inner_key not in inner:
        return
    remaining = inner.delete(inner_key)
    if len(remaining):
        outer[key] = remaining
    else:
        del outer[key]


def subnet_of(network: Network) -> ipaddress.IPv4Network | None:
    """The network's allocated subnet; None before the allocator has seen it."""
    return ipaddress.IPv4Network(network.subnet) if network.subnet else None
