"""The node's mirror of what the managers assigned to it: keyed objects, ordered by (epoch, index). Pure.

A complete set replaces the mirror, a change applies to it; parts that belong together (`more`) take effect together. What is
older than the newest pair ever seen is refused: a manager that lags behind, or was restored from an old copy, cannot undo
what this node did since. `revision` moves only when something that the data plane programs has changed, so that the many
task updates of a busy node cost the network nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from swarm.errors import SwarmError
from swarm.v1 import dispatcher_pb2 as dispatcher
from swarm.v1 import types_pb2 as types

from agent.network.interface import HostPort, NetworkView, OverlayView

_KINDS: dict[str, dispatcher.AssignedKind.ValueType] = {
    "task": dispatcher.ASSIGNED_KIND_TASK,
    "revision": dispatcher.ASSIGNED_KIND_REVISION,
    "network": dispatcher.ASSIGNED_KIND_NETWORK,
    "endpoint": dispatcher.ASSIGNED_KIND_ENDPOINT,
    "service": dispatcher.ASSIGNED_KIND_SERVICE,
    "peer": dispatcher.ASSIGNED_KIND_PEER,
}
_PROGRAMMED = frozenset({"network", "endpoint", "service", "peer"})


class StaleAssignments(SwarmError):
    """A manager sent what is older than what this node has seen."""


@dataclass(frozen=True)
class Self:
    """This node, as its network view names it."""

    node_id: str
    number: int
    address: str


class Mirror:
    """The assigned objects. The messages in it are shared and never modified."""

    def __init__(self) -> None:
        self.epoch = 0
        self.index = 0
        self.revision = 0  # of what the data plane programs
        self.tasks: dict[str, types.Task] = {}
        self.revisions: dict[str, types.ServiceRevision] = {}
        self.networks: dict[str, types.Network] = {}
        self.endpoints: dict[str, dispatcher.Endpoint] = {}
        self.services: dict[str, dispatcher.ServiceEndpoint] = {}
        self.peers: dict[str, dispatcher.NodePeer] = {}
        self._parts: list[dispatcher.Assignments] = []

    def receive(self, message: dispatcher.Assignments) -> list[dispatcher.Assignments] | None:
        """Takes one message; where it completes a set, applies the set and returns its parts, else None.

        Raises StaleAssignments for a set that is older than the newest seen.
        """
        if (message.epoch, message.index) < (self.epoch, self.index):
            raise StaleAssignments(
                f"the manager's assignments ({message.epoch}, {message.index}) are older than those that this node has "
                f"({self.epoch}, {self.index})"
            )
        self._parts.append(message)
        if message.more:
            return None
        parts, self._parts = self._parts, []
        self._apply(parts)
        return parts

    def drop_parts(self) -> None:
        """Forgets an unfinished set: the session that it came from is over."""
        self._parts = []

    def _apply(self, parts: list[dispatcher.Assignments]) -> None:
        tables = self._tables()
        if parts[0].complete:
            before = {name: dict(table) for name, table in tables.items()}
            for table in tables.values():
                table.clear()
            self._merge(parts, tables)
            if any(tables[name] != before[name] for name in _PROGRAMMED) or _host_ports(self.tasks) != _host_ports(
                before["task"]
            ):
                self.revision += 1
        elif self._merge(parts, tables):
            self.revision += 1
        self.epoch, self.index = parts[-1].epoch, parts[-1].index

    def _merge(self, parts: Iterable[dispatcher.Assignments], tables: dict[str, dict[str, Any]]) -> bool:
        """Puts the changes into the tables; whether something that the data plane programs is among them."""
        programmed = False
        by_kind = {_KINDS[name]: (name, table) for name, table in tables.items()}
        for part in parts:
            for removal in part.removals:
                if removal.kind not in by_kind:
                    continue  # a kind of object that a newer manager knows and we do not
                name, table = by_kind[removal.kind]
                gone = table.pop(removal.key, None)
                programmed |= gone is not None and (name in _PROGRAMMED or _has_host_ports(gone))
            for change in part.changes:
                kind = change.WhichOneof("object")
                if kind is None:
                    continue  # likewise
                message = getattr(change, kind)
                key = key_of(kind, message)
                before = tables[kind].get(key)
                if before == message:
                    continue
                tables[kind][key] = message
                programmed |= kind in _PROGRAMMED or _has_host_ports(message) or _has_host_ports(before)
        return programmed

    def _tables(self) -> dict[str, dict[str, Any]]:
        """By the name of the field that an `AssignedObject` carries the kind in."""
        return {
            "task": self.tasks,
            "revision": self.revisions,
            "network": self.networks,
            "endpoint": self.endpoints,
            "service": self.services,
            "peer": self.peers,
        }

    def spec_of(self, task: types.Task) -> types.ServiceSpec | None:
        """What the task is made of; None where its revision was not sent."""
        revision = self.revisions.get(task.revision_id)
        return revision.spec if revision is not None else None

    def complete_set(self) -> dispatcher.Assignments:
        """Everything as one complete set, for the disk."""
        whole = dispatcher.Assignments(epoch=self.epoch, index=self.index, complete=True)
        for name, table in self._tables().items():
            for message in table.values():
                whole.changes.append(dispatcher.AssignedObject(**{name: message}))
        return whole

    def network_view(self, me: Self) -> NetworkView:
        """All networks of this node, in an order that does not depend on the order of arrival."""
        endpoints: dict[str, list[dispatcher.Endpoint]] = {}
        services: dict[str, list[dispatcher.ServiceEndpoint]] = {}
        for key in sorted(self.endpoints):
            endpoints.setdefault(self.endpoints[key].network_id, []).append(self.endpoints[key])
        for key in sorted(self.services):
            services.setdefault(self.services[key].network_id, []).append(self.services[key])
        return NetworkView(
            index=self.index,
            node_id=me.node_id,
            node_number=me.number,
            address=me.address,
            peers=tuple(self.peers[key] for key in sorted(self.peers)),
            overlays=tuple(
                OverlayView(self.networks[key], tuple(endpoints.get(key, ())), tuple(services.get(key, ())))
                for key in sorted(self.networks)
            ),
            host_ports=tuple(_host_ports(self.tasks)),
        )


def key_of(kind: str, message: object) -> str:
    """The key that a removal names an object by."""
    if isinstance(message, dispatcher.Endpoint):
        return f"{message.network_id}/{message.task_id}"
    if isinstance(message, dispatcher.ServiceEndpoint):
        return f"{message.network_id}/{message.service_id}"
    if isinstance(message, dispatcher.NodePeer):
        return message.node_id
    if isinstance(message, types.Task | types.ServiceRevision | types.Network):
        return message.id
    raise TypeError(f"{kind} is not an assigned object")


def _has_host_ports(message: object) -> bool:
    return isinstance(message, types.Task) and bool(message.host_ports)


def _host_ports(tasks: dict[str, types.Task]) -> list[HostPort]:
    return list(_each_host_port(tasks))


def _each_host_port(tasks: dict[str, types.Task]) -> Iterator[HostPort]:
    """Host ports of the tasks that may serve now: a port goes to its next task as soon as the last is told to stop."""
    for key in sorted(tasks):
        task = tasks[key]
        if (
            isinstance(task, types.Task)
            and task.desired_state <= types.TASK_STATE_RUNNING
            and task.status.state <= types.TASK_STATE_RUNNING
        ):
            for port in task.host_ports:
                yield HostPort(task.id, port)
