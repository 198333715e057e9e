"""Whether a peer with a valid certificate is (still) a member: what every server of a manager asks.

A node is a member while the store has it. One that just joined may be newer than a follower's replica, so a node that is
unknown is believed for a short time after its certificate was issued; one that was removed is on the list of revoked nodes
until no certificate of it can be valid any more, and is never believed. A manager that was demoted counts as a worker from
then on, although the certificate that it still has would let it speak for others and for the log.
"""

from __future__ import annotations

from swarm.clock import seconds_of
from swarm.errors import HistoryCut
from swarm.identity import JOINING_GRACE, Peer, Role
from swarm.v1 import types_pb2

from orchestrator.identity.authority import NODE_VALIDITY
from orchestrator.store import Snapshot


def is_revoked(snapshot: Snapshot, peer: Peer, now: float) -> bool:
    """True where `peer` must be turned away. `now` in seconds since the epoch."""
    if peer.role in (Role.LOCAL, Role.ANONYMOUS):
        return False
    cluster = snapshot.cluster
    if cluster is None:  # nothing replicated yet: whoever our CA signed may bring it
        return False
    if peer.cluster_id != cluster.id:
        return True
    if not peer.is_node or peer.name in snapshot.nodes:
        return False
    if any(revoked.node_id == peer.name for revoked in cluster.revoked_nodes):
        return True
    return peer.issued_at + JOINING_GRACE < now


def check_history(snapshot: Snapshot, peer: Peer) -> None:
    """Raises HistoryCut where `peer` is a manager that a recovery or a restored snapshot left behind."""
    cluster = snapshot.cluster
    if cluster is None or peer.name in snapshot.nodes:
        return
    for revoked in cluster.revoked_nodes:
        if revoked.node_id == peer.name and revoked.epoch:
            raise HistoryCut(
                f"the swarm was recovered or restored without manager {peer.name} (epoch {revoked.epoch}); "
                "let this host leave (`swarmctl swarm leave --force`) and join anew"
            )


def is_demoted(snapshot: Snapshot, peer: Peer, now: float, *, leading: bool = False) -> bool:
    """True where the certificate of `peer` says manager and the store says that its node is a worker, and is to stay one.

    It goes on as a worker: it has to renew its certificate. A node that was just promoted may be newer than a replica, but not
    newer than what the leader knows (`leading`)."""
    node = snapshot.nodes.get(peer.name)
    return (
        peer.role is Role.MANAGER
        and node is not None
        and types_pb2.NODE_ROLE_MANAGER not in (node.role, node.spec.desired_role)
        and (leading or peer.issued_at + JOINING_GRACE < now)
    )


def revoke(cluster: types_pb2.Cluster, node_id: str, now: float, *, epoch: int = 0) -> None:
    """Adds a node to the list of `cluster` (a copy that may be changed), and forgets those whose certificates have ended.
    `epoch`: the one that begins without it, where the swarm's history is cut."""
    validity = max(NODE_VALIDITY, seconds_of(cluster.spec.node_certificate_validity))
    kept = [
        revoked
        for revoked in cluster.revoked_nodes
        if revoked.node_id != node_id and seconds_of(revoked.at) + validity > now
    ]
    entry = types_pb2.RevokedNode(node_id=node_id, epoch=epoch)
    entry.at.FromSeconds(int(now))
    del cluster.revoked_nodes[:]
    cluster.revoked_nodes.extend([*kept, entry])
