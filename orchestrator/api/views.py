"""How objects are shown: without secrets, with what consensus knows, and when they change."""

from __future__ import annotations

from swarm.v1 import control_pb2, types_pb2

from orchestrator.consensus import ConsensusStatus, Leadership
from orchestrator.store import Events, Kind, Snapshot, Watch, copy_of


def without_secrets(cluster: types_pb2.Cluster) -> types_pb2.Cluster:
    """The cluster without the CA's private key and the join secrets."""
    shown = copy_of(cluster)
    shown.ca.ClearField("private_key_pem")
    shown.ClearField("join_secrets")
    return shown


def info(snapshot: Snapshot, status: ConsensusStatus, node_id: str, version: str) -> control_pb2.GetInfoResponse:
    """What this manager knows by itself, whether there is a leader or not."""
    return control_pb2.GetInfoResponse(
        node_id=node_id,
        cluster_id="" if snapshot.cluster is None else snapshot.cluster.id,
        leader_id=status.leader_id,
        raft=control_pb2.RaftInfo(
            role=status.role,
            term=status.term,
            commit_index=status.commit_index,
            applied_index=status.applied_index,
            members=members(status),
        ),
        version=version,
        nodes=len(snapshot.nodes),
        managers=sum(node.role == types_pb2.NODE_ROLE_MANAGER for node in snapshot.nodes),
        services=len(snapshot.services),
        tasks=len(snapshot.tasks),
    )


def replica(snapshot: Snapshot, leadership: Leadership, node_id: str) -> control_pb2.Replica:
    """Of which state a stale answer is."""
    return control_pb2.Replica(node_id=node_id, index=snapshot.index, leader_id=leadership.leader_id)


def members(status: ConsensusStatus) -> list[control_pb2.RaftMemberInfo]:
    return [
        control_pb2.RaftMemberInfo(
            node_id=member.member.node_id,
            address=member.member.address,
            reachable=member.reachable,
            leader=member.leader,
            match_index=member.match_index,
        )
        for member in status.members
    ]


async def next_about(watch: Watch, service_id: str) -> Snapshot:
    """The next snapshot in which something about the service changed, or may have (after a resync)."""
    while True:
        events = await watch.next()
        if _concerns(events, service_id):
            return events.snapshot


def _concerns(events: Events, service_id: str) -> bool:
    if events.changes is None:
        return True
    for change in events.changes:
        obj = change.new if change.new is not None else change.old
        if change.kind is Kind.SERVICE and change.id == service_id:
            return True
        if isinstance(obj, types_pb2.Task) and obj.service_id == service_id:
            return True
    return False
