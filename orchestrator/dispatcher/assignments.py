"""What each node must hold, and how that changes: the mirrors of all nodes, driven by the store's events.

A node's *mirror* is: its tasks that are not removed yet and the revisions that they name; the networks on which it has a
placed task, and the ingress network always; all endpoints and services on those networks; and every other node as a peer.
`Mirrors` keeps, for the whole cluster, the serialized endpoints, services and peers (each once, shared by all sessions), and
who is on which network. One batch of events becomes one `MirrorDiff`: what changed on each network, what changed for
everybody, and what changed for single nodes. So a change costs in proportion to the nodes that it concerns, and a session
only picks its parts. Pure; fed by the dispatcher, one instance for a manager process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import partial

from swarm.names import DEFAULT_NETWORK
from swarm.v1 import dispatcher_pb2 as dispatcher
from swarm.v1 import types_pb2 as types

from orchestrator.dispatcher import wire
from orchestrator.dispatcher.endpoints import (
    endpoints_of,
    is_assigned,
    is_placed,
    is_starting,
    is_stopping,
    peer_of,
    service_endpoints_of,
)
from orchestrator.dispatcher.wire import Fragments
from orchestrator.store import Key, Kind, Snapshot, states


@dataclass(frozen=True)
class _TaskRecord:
    """What the mirrors took from a task: enough to undo it when the task changes or goes."""

    node_id: str
    revision_id: str
    signature: bytes  # of what the agent must know
    networks: tuple[str, ...] = ()  # that it brings its node onto
    endpoints: tuple[str, ...] = ()  # networks on which it has an endpoint
    stopping: bool = False
    starting: str = ""  # the service that it is about to serve for


@dataclass
class MirrorDiff:
    """What one batch of events changed, from the mirrors at an earlier index to those at `index`."""

    index: int
    networks: dict[str, Fragments] = field(default_factory=dict)  # what changed on a network
    everybody: Fragments = field(default_factory=dict)  # the ingress network, and peers
    nodes: dict[str, Fragments] = field(default_factory=dict)  # what changed for one node only
    network_nodes: dict[str, set[str]] = field(default_factory=dict)  # who is on the networks that changed
    programs_all: bool = False  # something in `everybody` belongs into the endpoint table
    joined: set[str] = field(default_factory=set)  # nodes that came onto a network
    begin_serving: dict[wire.Key, str] = field(default_factory=dict)  # endpoints known before that serve now → service

    def concerned(self) -> set[str] | None:
        """The nodes that get something; None: all."""
        if self.everybody:
            return None
        return set(self.nodes).union(*(self.network_nodes.get(network_id, ()) for network_id in self.networks))

    def programming(self) -> set[str] | None:
        """The nodes whose endpoint table changes, and who therefore acknowledge `index`; None: all."""
        if self.programs_all:
            return None
        return self.joined.union(*(self.network_nodes.get(network_id, ()) for network_id in self.networks))

    def of(self, node_id: str) -> Fragments:
        """What changed for `node_id`. Often the shared dictionary itself: do not modify."""
        parts = [self.everybody] if self.everybody else []
        parts += [part for id_, part in self.networks.items() if node_id in self.network_nodes.get(id_, ())]
        own = self.nodes.get(node_id)
        if own:
            parts.append(own)
        peer = wire.peer_key(node_id)
        if len(parts) == 1 and peer not in parts[0]:
            return parts[0]
        merged: Fragments = {}
        for part in parts:
            merged.update(part)
        merged.pop(peer, None)
        return merged

    def may_wait(self, changes: Fragments) -> bool:
        """Whether these are only endpoints that begin to serve, of services with more tasks that are about to."""
        return changes.keys() <= self.begin_serving.keys()


class Mirrors:
    """The mirrors of all nodes at one snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._rebuild(snapshot)

    @property
    def index(self) -> int:
        return self._snapshot.index

    @property
    def snapshot(self) -> Snapshot:
        return self._snapshot

    def _rebuild(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._records: dict[str, _TaskRecord] = {}
        self._endpoints: dict[str, Fragments] = {}  # network → its endpoints
        self._services: dict[str, Fragments] = {}  # network → its services
        self._service_networks: dict[str, tuple[str, ...]] = {}
        self._peers: Fragments = {}
        self._presence: dict[str, Counter[str]] = {}  # node → network → placed tasks on it
        self._network_nodes: dict[str, set[str]] = {}
        self._named: dict[str, Counter[str]] = {}  # node → revision → tasks that name it
        self._stopping: Counter[str] = Counter()  # node → tasks that it is to stop
        self._starting: Counter[str] = Counter()  # service → tasks that are about to serve
        diff = MirrorDiff(snapshot.index)
        self._find_networks(snapshot)
        for node in snapshot.nodes:
            self._apply_node(node.id, diff)
        for service in snapshot.services:
            self._apply_service(service.id, diff)
        for task in snapshot.tasks:
            self._apply_task(task.id, diff)

    def apply(self, snapshot: Snapshot, keys: Collection[Key] | None) -> MirrorDiff | None:
        """Moves on to `snapshot`, in which the objects named by `keys` may differ. None (also where `keys` is None: events
        were lost) means that the mirrors were made anew and every session needs its complete mirror."""
        ingress_before, default_before = self._ingress_id, self._default_id
        self._find_networks(snapshot)
        if keys is None or (self._ingress_id, self._default_id) != (ingress_before, default_before):
            self._rebuild(snapshot)
            return None
        self._snapshot = snapshot
        diff = MirrorDiff(snapshot.index)
        touched: dict[Kind, list[str]] = {}
        for kind, id_ in dict.fromkeys(keys):
            touched.setdefault(kind, []).append(id_)
        moved: set[str] = set()  # tasks whose node went up or down
        for node_id in touched.get(Kind.NODE, ()):
            moved.update(self._apply_node(node_id, diff))
        for network_id in touched.get(Kind.NETWORK, ()):
            self._apply_network(network_id, diff)
        for service_id in touched.get(Kind.SERVICE, ()):
            self._apply_service(service_id, diff)
        presence_before: dict[str, dict[str, bool]] = {}
        for task_id in dict.fromkeys((*touched.get(Kind.TASK, ()), *sorted(moved))):
            self._apply_task(task_id, diff, presence_before)
        self._apply_presence(presence_before, diff)
        self._finish(diff)
        return diff

    # ------------------------------------------------------------------------------------------ what a session asks

    def complete(self, node_id: str) -> list[bytes]:
        """All fragments of the node's mirror."""
        fragments: Fragments = {}
        for network_id in sorted(self.networks_of(node_id)):
            fragments.update(self._network_content(network_id))
        fragments.update(self._peers)
        fragments.pop(wire.peer_key(node_id), None)
        for revision_id in sorted(self._named.get(node_id, ())):
            self._put_revision(fragments, revision_id)
        for task in self._snapshot.tasks.on_node(node_id):
            if is_assigned(task):
                fragments[wire.task_key(task.id)] = wire.changed(dispatcher.AssignedObject(task=task))
        return list(fragments.values())

    def networks_of(self, node_id: str) -> set[str]:
        """The networks that the node must realise."""
        networks = set(self._presence.get(node_id, ()))
        if self._ingress_id:
            networks.add(self._ingress_id)
        return networks

    def is_stopping(self, node_id: str) -> bool:
        """Whether a task of the node is being stopped: its agent waits for the watermark."""
        return self._stopping[node_id] > 0

    # ---------------------------------------------------------------------------------------------- one object each

    def _find_networks(self, snapshot: Snapshot) -> None:
        ingress, default = snapshot.networks.ingress(), snapshot.networks.by_name(DEFAULT_NETWORK)
        self._ingress_id = ingress.id if ingress is not None else ""
        self._default_id = default.id if default is not None else ""

    def _apply_node(self, node_id: str, diff: MirrorDiff) -> Iterable[str]:
        """Returns the tasks whose endpoints must be looked at again."""
        node = self._snapshot.nodes.get(node_id)
        peer = peer_of(node) if node is not None else None
        fragment = wire.changed(dispatcher.AssignedObject(peer=peer)) if peer is not None else None
        self._replace(self._peers, wire.peer_key(node_id), fragment, lambda: diff.everybody)
        return [task.id for task in self._snapshot.tasks.on_node(node_id) if is_placed(task)]

    def _apply_network(self, network_id: str, diff: MirrorDiff) -> None:
        self._network_part(network_id, diff)[wire.network_key(network_id)] = self._network_fragment(network_id)

    def _apply_service(self, service_id: str, diff: MirrorDiff) -> None:
        service = self._snapshot.services.get(service_id)
        found = (
            {endpoint.network_id: endpoint for endpoint in self._endpoints_of_service(service)}
            if service is not None and not service.removing  # it has given up its name and ports already
            else {}
        )
        for network_id in {*self._service_networks.pop(service_id, ()), *found}:
            endpoint = found.get(network_id)
            fragment = wire.changed(dispatcher.AssignedObject(service=endpoint)) if endpoint is not None else None
            key = wire.service_key(network_id, service_id)
            held = self._services.setdefault(network_id, {})
            self._replace(held, key, fragment, partial(self._network_part, network_id, diff))
            if not held:
                del self._services[network_id]
        if found:
            self._service_networks[service_id] = tuple(found)

    def _endpoints_of_service(self, service: types.Service) -> Iterable[dispatcher.ServiceEndpoint]:
        return service_endpoints_of(service, self._ingress_id, self._default_id)

    def _apply_task(
        self, task_id: str, diff: MirrorDiff, presence_before: dict[str, dict[str, bool]] | None = None
    ) -> None:
        task = self._snapshot.tasks.get(task_id)
        old = self._records.pop(task_id, None)
        new = self._record(task, diff, old) if task is not None and is_assigned(task) else None
        if new is not None:
            self._records[task_id] = new
        if old is not None:
            for network_id in set(old.endpoints).difference(new.endpoints if new is not None else ()):
                self._put_endpoint(network_id, task_id, None, diff)
        if old is not None and new is not None and old == new:
            return
        self._move_presence(old, new, presence_before)
        self._move_assignment(task_id, task, old, new, diff)

    def _record(self, task: types.Task, diff: MirrorDiff, old: _TaskRecord | None) -> _TaskRecord:
        networks: list[str] = []
        endpoints: list[str] = []
        if is_placed(task):
            networks = [attachment.network_id for attachment in task.attachments]
            node = self._snapshot.nodes.get(task.node_id)
            for endpoint in endpoints_of(task, node, self._snapshot.revisions.get(task.revision_id)):
                fragment = wire.changed(dispatcher.AssignedObject(endpoint=endpoint))
                self._put_endpoint(endpoint.network_id, task.id, fragment, diff)
                if endpoint.serving and old is not None and endpoint.network_id in old.endpoints:
                    diff.begin_serving[wire.endpoint_key(endpoint.network_id, task.id)] = task.service_id
                endpoints.append(endpoint.network_id)
        return _TaskRecord(
            task.node_id,
            task.revision_id,
            _signature(task),
            tuple(networks),
            tuple(endpoints),
            is_stopping(task),
            task.service_id if is_starting(task) else "",
        )

    def _put_endpoint(self, network_id: str, task_id: str, fragment: bytes | None, diff: MirrorDiff) -> None:
        held = self._endpoints.setdefault(network_id, {})
        key = wire.endpoint_key(network_id, task_id)
        self._replace(held, key, fragment, partial(self._network_part, network_id, diff))
        if not held:
            del self._endpoints[network_id]

    def _move_presence(
        self, old: _TaskRecord | None, new: _TaskRecord | None, before: dict[str, dict[str, bool]] | None
    ) -> None:
        for record, step in ((old, -1), (new, 1)):
            if record is None:
                continue
            networks = self._presence.setdefault(record.node_id, Counter())
            for network_id in record.networks:
                if before is not None:
                    before.setdefault(record.node_id, {}).setdefault(network_id, networks[network_id] > 0)
                networks[network_id] += step
                if networks[network_id] > 0:
                    self._network_nodes.setdefault(network_id, set()).add(record.node_id)
                else:
                    del networks[network_id]
                    self._network_nodes.get(network_id, set()).discard(record.node_id)
            if not networks:
                del self._presence[record.node_id]
            self._stopping[record.node_id] += step * record.stopping
            if not self._stopping[record.node_id]:
                del self._stopping[record.node_id]
            if record.starting:
                self._starting[record.starting] += step
                if not self._starting[record.starting]:
                    del self._starting[record.starting]

    def _move_assignment(
        self,
        task_id: str,
        task: types.Task | None,
        old: _TaskRecord | None,
        new: _TaskRecord | None,
        diff: MirrorDiff,
    ) -> None:
        """The task and its revision, in the mirror of its node."""
        if old is not None and (new is None or new.node_id != old.node_id):
            diff.nodes.setdefault(old.node_id, {})[wire.task_key(task_id)] = wire.removed(wire.task_key(task_id))
        if new is not None and task is not None and (old is None or old.signature != new.signature):
            part = diff.nodes.setdefault(new.node_id, {})
            part[wire.task_key(task_id)] = wire.changed(dispatcher.AssignedObject(task=task))
        for record, step in ((new, 1), (old, -1)):  # the new one first: a revision that stays is never removed
            if record is None or not record.revision_id:
                continue
            named = self._named.setdefault(record.node_id, Counter())
            named[record.revision_id] += step
            if step > 0 and named[record.revision_id] == 1:
                self._put_revision(diff.nodes.setdefault(record.node_id, {}), record.revision_id)
            elif named[record.revision_id] <= 0:
                del named[record.revision_id]
                key = wire.revision_key(record.revision_id)
                diff.nodes.setdefault(record.node_id, {})[key] = wire.removed(key)
            if not named:
                del self._named[record.node_id]

    def _apply_presence(self, before: dict[str, dict[str, bool]], diff: MirrorDiff) -> None:
        """Nodes that came onto a network get all of it; nodes that left it forget all of it."""
        for node_id, networks in before.items():
            for network_id, was in networks.items():
                now = network_id in self._presence.get(node_id, ())
                if was == now or network_id == self._ingress_id:
                    continue
                part = diff.nodes.setdefault(node_id, {})
                if now:
                    part.update(self._network_content(network_id))
                    diff.joined.add(node_id)
                else:
                    gone = {*self._network_content(network_id), *diff.networks.get(network_id, ())}
                    part.update({key: wire.removed(key) for key in gone})

    def _finish(self, diff: MirrorDiff) -> None:
        # The last task of a service that begins takes the others along: who waited for all of them may use the name.
        diff.begin_serving = {key: id_ for key, id_ in diff.begin_serving.items() if id_ in self._starting}
        for network_id in diff.networks:
            # A copy: the diff may be looked at after the next batch was applied.
            diff.network_nodes[network_id] = set(self._network_nodes.get(network_id, ()))

    # ----------------------------------------------------------------------------------------------------- fragments

    def _network_part(self, network_id: str, diff: MirrorDiff) -> Fragments:
        if network_id == self._ingress_id:
            diff.programs_all = True
            return diff.everybody
        return diff.networks.setdefault(network_id, {})

    def _network_content(self, network_id: str) -> Fragments:
        key = wire.network_key(network_id)
        return {
            key: self._network_fragment(network_id),
            **self._endpoints.get(network_id, {}),
            **self._services.get(network_id, {}),
        }

    def _network_fragment(self, network_id: str) -> bytes:
        network = self._snapshot.networks.get(network_id)
        if network is None:
            return wire.removed(wire.network_key(network_id))
        return wire.changed(dispatcher.AssignedObject(network=network))

    def _put_revision(self, part: Fragments, revision_id: str) -> None:
        revision = self._snapshot.revisions.get(revision_id)
        if revision is not None:
            part[wire.revision_key(revision_id)] = wire.changed(dispatcher.AssignedObject(revision=revision))

    @staticmethod
    def _replace(held: Fragments, key: wire.Key, fragment: bytes | None, part: Callable[[], Fragments]) -> None:
        """Puts `fragment` (None: nothing) at `key`; a difference is noted in the part of a diff that `part` opens."""
        if held.get(key) == fragment:
            return
        target = part()
        if fragment is None:
            del held[key]
            target[key] = wire.removed(key)
        else:
            held[key] = fragment
            target[key] = fragment


def _signature(task: types.Task) -> bytes:
    """What of a task its agent is told: all but the version, and the steps of the status that the agent reported itself. That
    it ended is told: others may have written that too, and its node's ports are free."""
    bare = types.Task()
    bare.CopyFrom(task)
    bare.ClearField("meta")
    bare.ClearField("status")
    if states.is_ended(task):
        bare.status.state = task.status.state
    return bare.SerializeToString(deterministic=True)
