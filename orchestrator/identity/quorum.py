"""Which member of the replicated log has to go, by what the store says of its node: pure; the leader carries it out.

Managers enter by themselves, when they start (`orchestrator.raft.admission`). They leave by decision of the cluster: once a
node is to be a worker, or is gone, it must not count for the quorum any more.
"""

from __future__ import annotations

from swarm.v1 import types_pb2

from orchestrator.consensus import ConsensusStatus
from orchestrator.store import Snapshot


def next_removal(snapshot: Snapshot, status: ConsensusStatus) -> str | None:
    """The node id of a member to remove now (one change at a time), None where all may stay. Members that cannot be reached
    go first, since they hold up the quorum; the leader goes last; the only member never goes."""
    if snapshot.cluster is None or len(status.members) < 2:
        return None
    leaving = [entry for entry in status.members if not _stays(snapshot.nodes.get(entry.member.node_id))]
    leaving.sort(key=lambda entry: (entry.leader, entry.reachable, entry.member.node_id))
    return leaving[0].member.node_id if leaving else None


def _stays(node: types_pb2.Node | None) -> bool:
    return node is not None and node.spec.desired_role == types_pb2.NODE_ROLE_MANAGER
