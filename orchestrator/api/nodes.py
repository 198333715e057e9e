"""What updating and removing a node changes: pure decisions over a snapshot and what consensus knows of its members.

Taking a manager away is refused where the managers that stay could not commit anything: with the numbers, so that it is
clear what to bring back first.
"""

from __future__ import annotations

from swarm.errors import AlreadyExists, Conflict, FailedPrecondition
from swarm.v1 import types_pb2

from orchestrator.consensus import ConsensusStatus
from orchestrator.identity.membership import require_cluster
from orchestrator.identity.revocation import revoke
from orchestrator.store import Change, Kind, Remove, Snapshot, Update, copy_of
from orchestrator.store.tables import node_name


def update_node(
    node: types_pb2.Node, spec: types_pb2.NodeSpec, version: int, status: ConsensusStatus, snapshot: Snapshot
) -> list[Change]:
    """`spec` is checked by itself already. Raises Conflict, FailedPrecondition (quorum), AlreadyExists (name)."""
    if version != node.meta.version:
        raise Conflict(
            f'node "{node_name(node)}" changed since it was read (it is at version {node.meta.version}, not {version}); '
            "read it again and repeat"
        )
    if spec.name and spec.name != node.spec.name:
        _check_name_free(snapshot, node, spec.name)
    if _is_manager(node) and spec.desired_role == types_pb2.NODE_ROLE_WORKER:
        check_quorum_without(node, status, snapshot, doing="demoting")
    if spec == node.spec:
        return []
    changed = copy_of(node)
    changed.spec.CopyFrom(spec)
    return [Update(changed)]


def remove_node(
    snapshot: Snapshot, node: types_pb2.Node, status: ConsensusStatus, now: float, *, force: bool
) -> list[Change]:
    """The node goes, and its certificate is good for nothing any more. Raises FailedPrecondition."""
    name = node_name(node)
    if _is_manager(node) or node.role == types_pb2.NODE_ROLE_MANAGER:
        if not force:
            raise FailedPrecondition(
                f'node "{name}" is a manager; demote it first with `swarmctl node demote {name}`, or use --force'
            )
        if any(member.member.node_id == node.id for member in status.members):
            check_quorum_without(node, status, snapshot, doing="removing")
    elif node.status.state != types_pb2.NODE_STATE_DOWN and not force:
        raise FailedPrecondition(
            f'node "{name}" is not down; let it leave with `swarmctl swarm leave` on that host (it counts as down a few '
            "seconds later), or use --force"
        )
    cluster = copy_of(require_cluster(snapshot))
    revoke(cluster, node.id, now)
    return [Remove(Kind.NODE, node.id), Update(cluster)]


def check_quorum_without(node: types_pb2.Node, status: ConsensusStatus, snapshot: Snapshot, *, doing: str) -> None:
    """Raises FailedPrecondition where the members that would stay are none, or too few of them are reachable. Managers that
    are on their way out already do not count as staying."""
    leaving = {other.id for other in snapshot.nodes if not _is_manager(other)} | {node.id}
    staying = [member for member in status.members if member.member.node_id not in leaving]
    reachable = sum(member.reachable for member in staying)
    quorum = len(staying) // 2 + 1
    name = node_name(node)
    if not staying:
        raise FailedPrecondition(
            f'node "{name}" is the only manager, and {doing} it would leave the swarm without one; promote another first'
        )
    if reachable < quorum:
        raise FailedPrecondition(
            f'{doing} node "{name}" would leave {len(staying)} managers, of which {reachable} can be reached '
            f"and a quorum needs {quorum}; bring managers back, or promote others, first"
        )


def _check_name_free(snapshot: Snapshot, node: types_pb2.Node, name: str) -> None:
    """Hosts may share a host name, which nobody chose here; a name that is given must not make a reference ambiguous."""
    for other in snapshot.nodes:
        if other.id != node.id and name in (other.spec.name, other.description.hostname):
            which = "name" if name == other.spec.name else "host name"
            raise AlreadyExists(f'name: "{name}" is the {which} of node {other.id} already; choose another name')


def _is_manager(node: types_pb2.Node) -> bool:
    return node.spec.desired_role == types_pb2.NODE_ROLE_MANAGER
