"""The `Control` service: what people and tools ask of the managers.

Each method reads a linearizable snapshot or makes one transaction; what it decides is in the pure modules beside this one.
Reads that ask for it (`stale`) get this manager's replica as it is, without asking the others.
Writes are decided and committed one after another, so that a decision never rests on what another write is just changing.
A request id that was answered before is answered again, before any check that the first success would make fail.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

import grpc
from swarm.clock import Clock
from swarm.errors import Conflict, InvalidArgument, Unavailable
from swarm.identity import Role
from swarm.ids import IdSource
from swarm.names import ENROLMENT_PORT
from swarm.retry import Backoff, retry
from swarm.servers import RpcServer
from swarm.tokens import new_secret
from swarm.v1 import control_pb2, types_pb2
from swarm.v1.control_pb2_grpc import ControlServicer, add_ControlServicer_to_server

from orchestrator.api import lists, networks, nodes, services, views
from orchestrator.api.forwarding import Forwarder, Place
from orchestrator.api.images import Resolver, pin_image
from orchestrator.api.logs import AgentChannel, LogStream
from orchestrator.api.lookup import find_network, find_node, find_service, find_task
from orchestrator.api.progress import progress, settles_in, summarize
from orchestrator.api.validation import check_cluster_spec, check_network_spec, check_node_spec, check_service_spec
from orchestrator.consensus import Consensus
from orchestrator.identity.authority import check_server_addresses, join_token
from orchestrator.identity.membership import join_host_port, manager_addresses, require_cluster, split_advertised
from orchestrator.identity.signing import sign_for_person, sign_for_server
from orchestrator.store import Change, Snapshot, Store, StoreObject, Transactions, Update, copy_of

READ_TIMEOUT = 5.0  # seconds to confirm leadership with a majority
WRITE_TIMEOUT = 10.0  # seconds to commit
MAX_REQUEST_ID = 128
_CONFLICTS = Backoff(first=0.005, attempts=5)

_PLACES = {
    "GetInfo": Place.ANYWHERE,
    "WatchService": Place.LEADER_RESUMED,
    "ServiceLogs": Place.ANYWHERE_IF_FOUND,
}
_PEOPLE = {"admin": Role.ADMIN, "viewer": Role.VIEWER}

ObjectT = TypeVar("ObjectT", bound=StoreObject)
ShownT = TypeVar(
    "ShownT",
    control_pb2.ListNodesResponse,
    control_pb2.GetNodeResponse,
    control_pb2.ListServicesResponse,
    control_pb2.GetServiceResponse,
    control_pb2.ListTasksResponse,
    control_pb2.GetTaskResponse,
    control_pb2.ListNetworksResponse,
    control_pb2.GetNetworkResponse,
)
_Read = control_pb2.ListRequest | control_pb2.ListTasksRequest | control_pb2.GetRequest
Decide = Callable[[Snapshot], list[Change]]
Context = grpc.aio.ServicerContext[Any, Any]


class ControlService(ControlServicer):
    """`resolve` asks a registry for an image's digest; `agent_channel` opens (or has) the connection to a node's agent."""

    def __init__(
        self,
        store: Store,
        transactions: Transactions,
        consensus: Consensus,
        forwarder: Forwarder,
        *,
        resolve: Resolver,
        agent_channel: AgentChannel,
        clock: Clock,
        ids: IdSource,
        rng: random.Random,
        node_id: str,
        version: str,
        save_snapshot: Callable[[], AsyncIterator[bytes]],
        enrolment_port: int = ENROLMENT_PORT,
    ) -> None:
        self._store = store
        self._transactions = transactions
        self._consensus = consensus
        self._forwarder = forwarder
        self._resolve = resolve
        self._agent_channel = agent_channel
        self._clock = clock
        self._ids = ids
        self._rng = rng
        self._node_id = node_id
        self._version = version
        self._save_snapshot = save_snapshot
        self._enrolment_port = enrolment_port  # the same at all managers, as their other ports
        self._writing = asyncio.Lock()

    def register(self, server: RpcServer) -> None:
        """Serves it on `server`: on the cluster port and on the local socket."""
        self._forwarder.register(server, add_ControlServicer_to_server, self, _PLACES)

    # --------------------------------------------------------------------------------------------------- reading, writing

    async def _read(self) -> Snapshot:
        """Everything that was committed before the call. Raises Unavailable."""
        await self._consensus.read_barrier(timeout=READ_TIMEOUT)
        return self._store.snapshot()

    async def _shown(self, request: _Read, show: Callable[[Snapshot], ShownT]) -> ShownT:
        """What `show` makes of everything that was committed before the call; where the request is content with a stale
        answer, of what this manager has applied. Raises Unavailable."""
        if not request.stale:
            return show(await self._read())
        snapshot = self._store.snapshot()
        if snapshot.cluster is None:
            raise Unavailable("this manager has not received the cluster's state yet; ask another one")
        answer = show(snapshot)
        answer.replica.CopyFrom(views.replica(snapshot, self._consensus.leadership(), self._node_id))
        return answer

    async def _write(self, kind: type[ObjectT], request_id: str, decide: Decide) -> ObjectT | None:
        """Commits what `decide` returns; returns the object of `kind` that was written, now or by the same request before.
        None where none was (a removal). What the control loop wrote in between is looked at and decided upon anew: it is up to
        `decide` to refuse where the caller named a version."""
        if len(request_id) > MAX_REQUEST_ID:
            raise InvalidArgument(f"request_id: at most {MAX_REQUEST_ID} characters are allowed")

        async def attempt() -> Sequence[StoreObject]:
            changes = decide(self._store.snapshot())
            if not changes:
                return ()
            return (await self._transactions.commit(changes, request_id=request_id, timeout=WRITE_TIMEOUT)).objects

        async with self._writing:
            known = self._replayed(kind, request_id)
            if known is not None:
                return known[0]
            objects = await retry(attempt, backoff=_CONFLICTS, rng=self._rng, on=(Conflict,))
        return next((obj for obj in objects if isinstance(obj, kind)), None)

    def _replayed(self, kind: type[ObjectT], request_id: str) -> tuple[ObjectT | None] | None:
        """What the request wrote when it was made before: None where it was not."""
        written = self._store.written_by(request_id)
        if written is None:
            return None
        snapshot = self._store.snapshot()
        found = (snapshot.get(*key) for key in written)
        return (next((obj for obj in found if isinstance(obj, kind)), None),)

    # ------------------------------------------------------------------------------------------------------------ cluster

    async def GetInfo(self, request: control_pb2.GetInfoRequest, context: Context) -> control_pb2.GetInfoResponse:
        return views.info(self._store.snapshot(), self._consensus.status(), self._node_id, self._version)

    async def GetCluster(
        self, request: control_pb2.GetClusterRequest, context: Context
    ) -> control_pb2.GetClusterResponse:
        return control_pb2.GetClusterResponse(cluster=views.without_secrets(require_cluster(await self._read())))

    async def UpdateCluster(
        self, request: control_pb2.UpdateClusterRequest, context: Context
    ) -> control_pb2.UpdateClusterResponse:
        check_cluster_spec(request.spec)

        def decide(snapshot: Snapshot) -> list[Change]:
            cluster = copy_of(require_cluster(snapshot))
            cluster.spec.CopyFrom(request.spec)
            cluster.meta.version = request.version
            return [Update(cluster)]

        written = await self._write(types_pb2.Cluster, request.request_id, decide)
        return control_pb2.UpdateClusterResponse(cluster=views.without_secrets(_there(written)))

    async def GetJoinTokens(
        self, request: control_pb2.GetJoinTokensRequest, context: Context
    ) -> control_pb2.GetJoinTokensResponse:
        return _tokens(await self._read(), self._enrolment_port)

    async def RotateJoinToken(
        self, request: control_pb2.RotateJoinTokenRequest, context: Context
    ) -> control_pb2.GetJoinTokensResponse:
        if request.role not in (types_pb2.NODE_ROLE_WORKER, types_pb2.NODE_ROLE_MANAGER):
            raise InvalidArgument("role: say whose token to rotate, worker or manager")

        def decide(snapshot: Snapshot) -> list[Change]:
            cluster = copy_of(require_cluster(snapshot))
            if request.role == types_pb2.NODE_ROLE_MANAGER:
                cluster.join_secrets.manager = new_secret()
            else:
                cluster.join_secrets.worker = new_secret()
            return [Update(cluster)]

        await self._write(types_pb2.Cluster, request.request_id, decide)
        return _tokens(self._store.snapshot(), self._enrolment_port)

    async def IssueCertificate(
        self, request: control_pb2.IssueCertificateRequest, context: Context
    ) -> control_pb2.IssueCertificateResponse:
        snapshot = await self._read()
        ca = require_cluster(snapshot).ca
        now = self._clock.wall()
        if request.role == "server":
            check_server_addresses(request.addresses, list(snapshot.nodes.ids()))
            chain = await sign_for_server(ca, request.csr_pem, request.name, list(request.addresses), now)
        elif request.role in _PEOPLE:
            if request.addresses:
                raise InvalidArgument("addresses: only a server's certificate carries addresses")
            chain = await sign_for_person(ca, request.csr_pem, request.name, _PEOPLE[request.role], now)
        else:
            raise InvalidArgument(f"role: {request.role!r} is not known; say admin, viewer or server")
        return control_pb2.IssueCertificateResponse(certificate_pem=chain, ca_pem=ca.certificate_pem)

    # -------------------------------------------------------------------------------------------------------------- nodes

    async def SaveSnapshot(
        self, request: control_pb2.SaveSnapshotRequest, context: Context
    ) -> AsyncIterator[control_pb2.SnapshotChunk]:
        await self._read()
        async for data in self._save_snapshot():
            yield control_pb2.SnapshotChunk(data=data)

    async def ListNodes(self, request: control_pb2.ListRequest, context: Context) -> control_pb2.ListNodesResponse:
        return await self._shown(
            request, lambda snapshot: lists.list_nodes(snapshot, self._consensus.status(), request)
        )

    async def GetNode(self, request: control_pb2.GetRequest, context: Context) -> control_pb2.GetNodeResponse:
        return await self._shown(
            request, lambda snapshot: control_pb2.GetNodeResponse(node=find_node(snapshot, request.reference))
        )

    async def UpdateNode(
        self, request: control_pb2.UpdateNodeRequest, context: Context
    ) -> control_pb2.UpdateNodeResponse:
        check_node_spec(request.spec)

        def decide(snapshot: Snapshot) -> list[Change]:
            node = find_node(snapshot, request.reference)
            return nodes.update_node(node, request.spec, request.version, self._consensus.status(), snapshot)

        written = await self._write(types_pb2.Node, request.request_id, decide)
        return control_pb2.UpdateNodeResponse(node=written or find_node(self._store.snapshot(), request.reference))

    async def RemoveNode(
        self, request: control_pb2.RemoveNodeRequest, context: Context
    ) -> control_pb2.RemoveNodeResponse:
        removed = request.reference

        def decide(snapshot: Snapshot) -> list[Change]:
            nonlocal removed
            node = find_node(snapshot, request.reference)
            removed = node.id
            status = self._consensus.status()
            return nodes.remove_node(snapshot, node, status, self._clock.wall(), force=request.force)

        await self._write(types_pb2.Node, request.request_id, decide)
        return control_pb2.RemoveNodeResponse(id=removed)

    # ----------------------------------------------------------------------------------------------------------- services

    async def CreateService(
        self, request: control_pb2.CreateServiceRequest, context: Context
    ) -> control_pb2.CreateServiceResponse:
        check_service_spec(request.spec)
        if self._replayed(types_pb2.Service, request.request_id) is None:  # before the registry is asked
            services.create_service(self._store.snapshot(), request.spec, ids=self._ids)
        warnings = await self._pin(request, None)
        written = await self._write(
            types_pb2.Service,
            request.request_id,
            lambda snapshot: services.create_service(snapshot, request.spec, ids=self._ids),
        )
        return control_pb2.CreateServiceResponse(service=_there(written), warnings=warnings)

    async def ListServices(
        self, request: control_pb2.ListRequest, context: Context
    ) -> control_pb2.ListServicesResponse:
        return await self._shown(request, lambda snapshot: lists.list_services(snapshot, request))

    async def GetService(self, request: control_pb2.GetRequest, context: Context) -> control_pb2.GetServiceResponse:
        def show(snapshot: Snapshot) -> control_pb2.GetServiceResponse:
            service = find_service(snapshot, request.reference)
            return control_pb2.GetServiceResponse(summary=summarize(snapshot, service))

        return await self._shown(request, show)

    async def UpdateService(
        self, request: control_pb2.UpdateServiceRequest, context: Context
    ) -> control_pb2.UpdateServiceResponse:
        if request.rollback:
            return await self._roll_back(request)
        current = find_service(self._store.snapshot(), request.reference)
        warnings: list[str] = []
        if request.version:
            check_service_spec(request.spec)
            warnings = await self._pin(request, current.spec.task.container)

        def decide(snapshot: Snapshot) -> list[Change]:
            service = find_service(snapshot, request.reference)
            if request.version:
                return services.update_service(snapshot, service, request.spec, request.version, ids=self._ids)
            scaled = services.scaled_spec(service, request.spec)
            check_service_spec(scaled)
            return services.update_service(snapshot, service, scaled, service.meta.version, ids=self._ids)

        written = await self._write(types_pb2.Service, request.request_id, decide)
        return self._updated(request, written, warnings)

    async def _roll_back(self, request: control_pb2.UpdateServiceRequest) -> control_pb2.UpdateServiceResponse:
        def decide(snapshot: Snapshot) -> list[Change]:
            service = find_service(snapshot, request.reference)
            return services.roll_back_service(snapshot, service, request.version, self._clock.wall())

        return self._updated(request, await self._write(types_pb2.Service, request.request_id, decide), [])

    def _updated(
        self, request: control_pb2.UpdateServiceRequest, written: types_pb2.Service | None, warnings: list[str]
    ) -> control_pb2.UpdateServiceResponse:
        service = written or find_service(self._store.snapshot(), request.reference)
        return control_pb2.UpdateServiceResponse(service=service, warnings=warnings)

    async def _pin(
        self,
        request: control_pb2.CreateServiceRequest | control_pb2.UpdateServiceRequest,
        current: types_pb2.ContainerSpec | None,
    ) -> list[str]:
        cluster = require_cluster(self._store.snapshot())
        resolve = None if request.no_resolve_image else self._resolve
        container = request.spec.task.container
        return await pin_image(container, current, resolve, default_registry=cluster.spec.default_registry)

    async def RemoveService(self, request: control_pb2.RemoveRequest, context: Context) -> control_pb2.RemoveResponse:
        def decide(snapshot: Snapshot) -> list[Change]:
            return services.remove_service(find_service(snapshot, request.reference))

        written = await self._write(types_pb2.Service, request.request_id, decide)
        return control_pb2.RemoveResponse(id=written.id if written is not None else request.reference)

    async def WatchService(
        self, request: control_pb2.WatchServiceRequest, context: Context
    ) -> AsyncIterator[control_pb2.ServiceProgress]:
        await self._read()
        snapshot, watch = self._store.watch()
        with watch:
            service: types_pb2.Service | None = find_service(snapshot, request.reference)
            shown: control_pb2.ServiceProgress | None = None
            while service is not None:
                now = self._clock.wall()
                current = progress(snapshot, service, now)
                if current != shown:
                    yield current
                    shown = current
                settles = None if current.converged else settles_in(snapshot, service, now)
                try:
                    async with asyncio.timeout(settles):
                        snapshot = await views.next_about(watch, service.id)
                except TimeoutError:  # nothing happened to it meanwhile: it may have settled
                    snapshot = self._store.snapshot()
                service = snapshot.services.get(service.id)

    async def ServiceLogs(
        self, request: control_pb2.ServiceLogsRequest, context: Context
    ) -> AsyncIterator[control_pb2.LogRecord]:
        async for record in LogStream(self._store, self._agent_channel, request, rng=self._rng).records():
            yield record

    # -------------------------------------------------------------------------------------------------------------- tasks

    async def ListTasks(self, request: control_pb2.ListTasksRequest, context: Context) -> control_pb2.ListTasksResponse:
        return await self._shown(request, lambda snapshot: lists.list_tasks(snapshot, request))

    async def GetTask(self, request: control_pb2.GetRequest, context: Context) -> control_pb2.GetTaskResponse:
        def show(snapshot: Snapshot) -> control_pb2.GetTaskResponse:
            task = find_task(snapshot, request.reference)
            revision = snapshot.revisions.get(task.revision_id)
            return control_pb2.GetTaskResponse(task=task, revision=revision, names=lists.names_of(snapshot, task))

        return await self._shown(request, show)

    # ----------------------------------------------------------------------------------------------------------- networks

    async def CreateNetwork(
        self, request: control_pb2.CreateNetworkRequest, context: Context
    ) -> control_pb2.CreateNetworkResponse:
        check_network_spec(request.spec)
        written = await self._write(
            types_pb2.Network,
            request.request_id,
            lambda snapshot: networks.create_network(snapshot, request.spec, ids=self._ids),
        )
        return control_pb2.CreateNetworkResponse(network=_there(written))

    async def ListNetworks(
        self, request: control_pb2.ListRequest, context: Context
    ) -> control_pb2.ListNetworksResponse:
        return await self._shown(request, lambda snapshot: lists.list_networks(snapshot, request))

    async def GetNetwork(self, request: control_pb2.GetRequest, context: Context) -> control_pb2.GetNetworkResponse:
        def show(snapshot: Snapshot) -> control_pb2.GetNetworkResponse:
            network = find_network(snapshot, request.reference)
            return control_pb2.GetNetworkResponse(network=network, tasks=lists.tasks_on(snapshot, network))

        return await self._shown(request, show)

    async def RemoveNetwork(self, request: control_pb2.RemoveRequest, context: Context) -> control_pb2.RemoveResponse:
        removed = request.reference

        def decide(snapshot: Snapshot) -> list[Change]:
            nonlocal removed
            network = find_network(snapshot, request.reference)
            removed = network.id
            return networks.remove_network(snapshot, network)

        await self._write(types_pb2.Network, request.request_id, decide)
        return control_pb2.RemoveResponse(id=removed)


def _tokens(snapshot: Snapshot, enrolment_port: int) -> control_pb2.GetJoinTokensResponse:
    cluster = require_cluster(snapshot)
    ca_pem = cluster.ca.certificate_pem
    return control_pb2.GetJoinTokensResponse(
        worker=join_token(ca_pem, cluster.join_secrets.worker),
        manager=join_token(ca_pem, cluster.join_secrets.manager),
        addresses=[
            join_host_port(split_advertised(address)[0], enrolment_port) for address in manager_addresses(snapshot)
        ],
    )


def _there(obj: ObjectT | None) -> ObjectT:
    """The object of a repeated request may be gone again by now."""
    if obj is None:
        raise InvalidArgument("request_id: this request was made before, and what it wrote has been removed since")
    return obj
