"""Small clusters for the tests of the dispatcher."""

from __future__ import annotations

from collections.abc import Iterable

from swarm.clock import ManualClock
from swarm.v1 import dispatcher_pb2 as dispatcher
from swarm.v1 import types_pb2 as types

from orchestrator.dispatcher.wire import Key
from orchestrator.store import Change, Create, Snapshot, Store, Transactions
from tests.support.consensus import LocalConsensus

INGRESS, BACK, FRONT = "net-ingress", "net-back", "net-front"


class World:
    """A store with a log of one member."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = Store()
        self.log = LocalConsensus(self.store)
        self.transactions = Transactions(self.log, self.store, proposer="m1", clock=self.clock)

    async def commit(self, *changes: Change) -> Snapshot:
        await self.transactions.commit(changes)
        return self.store.snapshot()

    async def found(self, nodes: int = 3) -> Snapshot:
        """A cluster with nodes n1, n2 … and the networks ingress, back and front."""
        cluster = types.Cluster(id="c1", epoch=1)
        cluster.ca.certificate_pem = b"the CA"
        return await self.commit(
            Create(cluster),
            Create(network(INGRESS, ingress=True)),
            Create(network(BACK)),
            Create(network(FRONT)),
            *(Create(node(number)) for number in range(1, nodes + 1)),
        )


def network(network_id: str, *, ingress: bool = False) -> types.Network:
    return types.Network(id=network_id, spec=types.NetworkSpec(name=network_id.removeprefix("net-"), ingress=ingress))


def node(number: int, *, manager: bool = False) -> types.Node:
    made = types.Node(
        id=f"n{number}",
        number=number,
        role=types.NODE_ROLE_MANAGER if manager else types.NODE_ROLE_WORKER,
        description=types.NodeDescription(hostname=f"host{number}", address=f"192.0.2.{number}"),
        status=types.NodeStatus(state=types.NODE_STATE_READY),
    )
    if manager:
        made.manager.address = f"192.0.2.{number}:2378"
    return made


def service(service_id: str, *networks: str, removing: bool = False) -> types.Service:
    return types.Service(
        id=service_id,
        spec=types.ServiceSpec(
            name=service_id,
            task=types.TaskSpec(networks=[types.NetworkAttachmentConfig(network=id_) for id_ in networks]),
        ),
        virtual_ips=[types.VirtualIp(network_id=id_, address=f"10.0.{i}.2") for i, id_ in enumerate(networks)],
        removing=removing,
    )


def revision(revision_id: str, service_id: str) -> types.ServiceRevision:
    return types.ServiceRevision(id=revision_id, service_id=service_id, number=1)


def task(
    task_id: str,
    node_id: str,
    *networks: str,
    state: types.TaskState.ValueType = types.TASK_STATE_RUNNING,
    desired: types.TaskState.ValueType = types.TASK_STATE_RUNNING,
    address: int = 5,
    revision_id: str = "r1",
) -> types.Task:
    return types.Task(
        id=task_id,
        service_id="web",
        service_name="web",
        revision_id=revision_id,
        slot=address,
        node_id=node_id,
        desired_state=desired,
        status=types.TaskStatus(state=state),
        attachments=[
            types.NetworkAttachment(
                network_id=id_, address=f"10.0.{i}.{address}/24", mac=f"02:42:0a:00:0{i}:{address:02x}"
            )
            for i, id_ in enumerate(networks)
        ],
    )


class ReferenceMirror:
    """What an agent holds, by the rules of the protocol: for comparing with what it should hold."""

    def __init__(self) -> None:
        self.objects: dict[Key, dispatcher.AssignedObject] = {}
        self.position = (0, 0)
        self._parts: list[dispatcher.Assignments] = []

    def take(self, messages: Iterable[bytes]) -> None:
        for data in messages:
            message = dispatcher.ManagerMessage.FromString(data)
            assert message.WhichOneof("message") == "assignments"
            self._take(message.assignments)

    def _take(self, assignments: dispatcher.Assignments) -> None:
        assert (assignments.epoch, assignments.index) >= self.position
        self._parts.append(assignments)
        if assignments.more:
            return
        parts, self._parts = self._parts, []
        if parts[0].complete:
            self.objects = {}
        for part in parts:
            for change in part.changes:
                self.objects[key_of(change)] = change
            for removal in part.removals:
                self.objects.pop(Key(removal.kind, removal.key), None)  # of what was never sent: ignored
        self.position = (assignments.epoch, assignments.index)

    def names(self, kind: int) -> set[str]:
        return {key.key for key in self.objects if key.kind == kind}


def key_of(change: dispatcher.AssignedObject) -> Key:
    match change.WhichOneof("object"):
        case "task":
            return Key(dispatcher.ASSIGNED_KIND_TASK, change.task.id)
        case "revision":
            return Key(dispatcher.ASSIGNED_KIND_REVISION, change.revision.id)
        case "network":
            return Key(dispatcher.ASSIGNED_KIND_NETWORK, change.network.id)
        case "endpoint":
            return Key(dispatcher.ASSIGNED_KIND_ENDPOINT, f"{change.endpoint.network_id}/{change.endpoint.task_id}")
        case "service":
            return Key(dispatcher.ASSIGNED_KIND_SERVICE, f"{change.service.network_id}/{change.service.service_id}")
        case "peer":
            return Key(dispatcher.ASSIGNED_KIND_PEER, change.peer.node_id)
    raise AssertionError(change)
