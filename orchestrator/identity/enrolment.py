"""The managers' side of joining and of renewal: `Enrolment` and `Certificates`.

Both act on the leader; `api.forwarding` brings calls there. A join is proved by a secret, makes one transaction, and is
repeated safely: its request id leads back to the node that it made. A renewal gives the caller the role that it is to have
now: this is how promotion and demotion reach a node.
"""

from __future__ import annotations

import hmac
import logging

from swarm.clock import Clock
from swarm.errors import Conflict, InvalidArgument, Unauthenticated
from swarm.ids import IdSource
from swarm.servers import current_peer
from swarm.v1 import enrolment_pb2, types_pb2
from swarm.v1.enrolment_pb2_grpc import CertificatesServicer, EnrolmentServicer

from orchestrator.identity.membership import (
    check_reachable,
    join_changes,
    manager_addresses,
    node_validity,
    require_cluster,
    split_advertised,
    with_role,
)
from orchestrator.identity.signing import sign_for_node
from orchestrator.store import Store, Transactions, Update

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 10  # of a transaction that others' writes overtake
MAX_HOSTNAME = 253
MAX_REQUEST_ID = 128


class EnrolmentService(EnrolmentServicer):
    """Takes hosts in. Served, through the forwarder, on the enrolment port, and on the cluster port for other managers."""

    def __init__(self, store: Store, transactions: Transactions, *, clock: Clock, ids: IdSource) -> None:
        self._store = store
        self._transactions = transactions
        self._clock = clock
        self._ids = ids

    async def Join(self, request: enrolment_pb2.JoinRequest, context: object) -> enrolment_pb2.JoinResponse:
        cluster = require_cluster(self._store.snapshot())
        role = role_of_secret(cluster, request.secret)
        _check_request(request)
        # Signed before the node is written: a request that we would not sign makes no node.
        node_id = self._ids()
        chain = await self._sign(cluster, request.csr_pem, node_id, role)
        node = await self._member(request, node_id, role)
        snapshot = self._store.snapshot()
        if (node.id, node.role) != (node_id, role):  # the request came before
            chain = await self._sign(cluster, request.csr_pem, node.id, node.role)
        return enrolment_pb2.JoinResponse(
            node_id=node.id,
            cluster_id=cluster.id,
            role=node.role,
            certificate_pem=chain,
            ca_pem=cluster.ca.certificate_pem,
            managers=manager_addresses(snapshot),
        )

    async def _sign(
        self, cluster: types_pb2.Cluster, csr_pem: bytes, node_id: str, role: types_pb2.NodeRole.ValueType
    ) -> bytes:
        now, validity = self._clock.wall(), node_validity(cluster)
        return await sign_for_node(cluster.ca, csr_pem, node_id, role, now=now, validity=validity)

    async def _member(
        self, request: enrolment_pb2.JoinRequest, node_id: str, role: types_pb2.NodeRole.ValueType
    ) -> types_pb2.Node:
        """The node that this request made, now or before."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            snapshot = self._store.snapshot()
            check_reachable(snapshot, request.hostname, request.address)
            changes = join_changes(
                snapshot,
                node_id=node_id,
                role=role,
                hostname=request.hostname,
                address=request.address,
                availability=request.availability,
            )
            try:
                result = await self._transactions.commit(changes, request_id=request.request_id)
            except Conflict:  # another host took the number
                if attempt == MAX_ATTEMPTS:
                    raise
                continue
            for obj in result.objects:
                if isinstance(obj, types_pb2.Node):
                    if not result.replayed:
                        log.info("host %s at %s joined as node %s", request.hostname, request.address, obj.id)
                    return obj
            break
        raise InvalidArgument("request_id: it was used for another request, or its node was removed; join anew")


class CertificatesService(CertificatesServicer):
    """Renews the certificates of members, on the cluster port."""

    def __init__(self, store: Store, transactions: Transactions, *, clock: Clock) -> None:
        self._store = store
        self._transactions = transactions
        self._clock = clock

    async def Renew(self, request: enrolment_pb2.RenewRequest, context: object) -> enrolment_pb2.RenewResponse:
        node_id = current_peer().name
        cluster = require_cluster(self._store.snapshot())
        role = await self._take_role(node_id)
        now, validity = self._clock.wall(), node_validity(cluster)
        chain = await sign_for_node(cluster.ca, request.csr_pem, node_id, role, now=now, validity=validity)
        return enrolment_pb2.RenewResponse(certificate_pem=chain, ca_pem=cluster.ca.certificate_pem, role=role)

    async def _take_role(self, node_id: str) -> types_pb2.NodeRole.ValueType:
        """The role of the node's next certificate; a promotion is noted in the store as done.

        A manager that is to be a worker stays one until it has left the log (`manager.roles` then writes its role): else it
        would end its manager while it still counts for the quorum.
        """
        for attempt in range(1, MAX_ATTEMPTS + 1):
            node = self._store.snapshot().nodes.get(node_id)
            if node is None:
                raise Unauthenticated(f"node {node_id} was removed from the swarm; let the host leave and join anew")
            promoted = node.spec.desired_role == types_pb2.NODE_ROLE_MANAGER != node.role
            if not promoted:
                return node.role
            try:
                await self._transactions.commit([Update(with_role(node, types_pb2.NODE_ROLE_MANAGER))])
            except Conflict:  # its status changed in the meantime
                if attempt == MAX_ATTEMPTS:
                    raise
        return types_pb2.NODE_ROLE_MANAGER


def role_of_secret(cluster: types_pb2.Cluster, secret: str) -> types_pb2.NodeRole.ValueType:
    """The role that a token's secret lets one join as. Raises Unauthenticated."""
    for expected, role in (
        (cluster.join_secrets.worker, types_pb2.NODE_ROLE_WORKER),
        (cluster.join_secrets.manager, types_pb2.NODE_ROLE_MANAGER),
    ):
        if expected and hmac.compare_digest(expected.encode(), secret.encode()):
            return role
    raise Unauthenticated(
        "the join token is of this cluster but not valid (any more): it may have been rotated; "
        "`swarmctl swarm join-token worker` on a manager prints the current one"
    )


def _check_request(request: enrolment_pb2.JoinRequest) -> None:
    if not request.request_id or len(request.request_id) > MAX_REQUEST_ID:
        raise InvalidArgument(f"request_id: 1 to {MAX_REQUEST_ID} characters are needed")
    if not 0 < len(request.hostname) <= MAX_HOSTNAME or not request.hostname.isprintable():
        raise InvalidArgument("hostname: the host's name is needed")
    split_advertised(request.address)
    if request.availability not in types_pb2.Availability.values():
        raise InvalidArgument("availability: say active, pause or drain")
