"""Which change of the replicated log's members the store asks for next: pure; the leader carries it out, one at a time.

A manager becomes a member once its agent has connected (a member that is not there yet would only raise the quorum), and
stops being one as soon as it is to be a worker or is gone. Leaving comes first: a removed member must not count.
"""

from __future__ import annotations

from dataclasses import dataclass

from swarm.v1 import types_pb2

from orchestrator.consensus import ConsensusStatus, Member
from orchestrator.store import Snapshot


@dataclass(frozen=True)
class AddMember:
    """Also where only the address is another."""

    member: Member


@dataclass(frozen=True)
class RemoveMember:
    node_id: str


def next_member_change(snapshot: Snapshot, status: ConsensusStatus) -> AddMember | RemoveMember | None:
    """None where the members are those that the store wants. Never asks to remove the last one."""
    if snapshot.cluster is None:
        return None
    members = {entry.member.node_id: entry.member for entry in status.members}
    for node_id in sorted(members):
        if len(members) > 1 and not _stays(snapshot.nodes.get(node_id)):
            return RemoveMember(node_id)
    for node in sorted(snapshot.nodes, key=lambda node: node.number):
        wanted = Member(node.id, node.manager.address)
        known = members.get(node.id)
        if known is None and _may_enter(node):
            return AddMember(wanted)
        if known is not None and node.manager.address and known.address != node.manager.address:
            return AddMember(wanted)
    return None


def _stays(node: types_pb2.Node | None) -> bool:
    return node is not None and node.spec.desired_role == types_pb2.NODE_ROLE_MANAGER


def _may_enter(node: types_pb2.Node) -> bool:
    return (
        _stays(node)
        and node.role == types_pb2.NODE_ROLE_MANAGER
        and bool(node.manager.address)
        and node.status.state == types_pb2.NODE_STATE_READY
    )
