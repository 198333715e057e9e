"""Which nodes are members of the log: kept in step with the roles that the store wants.

The leader compares members and nodes and takes one step at a time, the safest first. A node that is to be a worker leaves
the log before its role changes, so that it never counts for a quorum without running a manager; a node that was removed from
the swarm leaves it too. Nobody is removed where the others would then be fewer than a majority of those that remain. A new
manager joins the log by itself (`raft.admission`); where it is reached is noted in its node. Pure but for `RoleKeeper`.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from swarm.cancellation import raise_if_cancelled
from swarm.errors import SwarmError
from swarm.v1 import types_pb2 as types

from orchestrator.consensus import Consensus, ConsensusStatus
from orchestrator.store import Kind, Snapshot, Store, Transactions, Update, copy_of

log = logging.getLogger(__name__)

LOOK_AGAIN = 2.0  # seconds: a member that was not reachable may be now
CHANGE_TIMEOUT = 10.0


@dataclass(frozen=True)
class RemoveMember:
    node_id: str
    reason: str


@dataclass(frozen=True)
class HandOver:
    """This leader is to go: another member leads first, and then removes it."""

    reason: str


@dataclass(frozen=True)
class WriteNode:
    node: types.Node


@dataclass(frozen=True)
class Blocked:
    """What should happen and cannot now, in a sentence."""

    sentence: str


Step = RemoveMember | HandOver | WriteNode | Blocked


def next_step(snapshot: Snapshot, status: ConsensusStatus, leader_id: str) -> Step | None:
    """What the leader should do next; None where members and roles agree."""
    if snapshot.cluster is None:
        return None
    for member in status.members:
        node = snapshot.nodes.get(member.member.node_id)
        reason = _reason_to_leave(node)
        if reason:
            return _removal(status, member.member.node_id, leader_id, reason)
    members = {member.member.node_id: member.member for member in status.members}
    for node in sorted(snapshot.nodes, key=lambda node: node.number):
        wanted = _as_it_is(node, members[node.id].address if node.id in members else "")
        if wanted != node:
            return WriteNode(wanted)
    return None


def _reason_to_leave(node: types.Node | None) -> str:
    if node is None:
        return "it was removed from the swarm"
    if types.NODE_ROLE_WORKER in (node.role, node.spec.desired_role):
        return "it is to be a worker"
    return ""


def _as_it_is(node: types.Node, address: str) -> types.Node:
    """The node with the role and the address that go with its membership (`address` empty: it is no member)."""
    wanted = copy_of(node)
    if address:
        wanted.manager.address = address
    elif node.role == types.NODE_ROLE_MANAGER and node.spec.desired_role == types.NODE_ROLE_WORKER:
        wanted.role = types.NODE_ROLE_WORKER
        wanted.ClearField("manager")
    return wanted


def _removal(status: ConsensusStatus, node_id: str, leader_id: str, reason: str) -> Step:
    others = [member for member in status.members if member.member.node_id != node_id and not member.learner]
    answering = [member for member in others if member.reachable or member.member.node_id == leader_id]
    if not others:
        return Blocked(f"manager {node_id} is the last one and stays; promote another node first")
    if 2 * len(answering) <= len(others):
        return Blocked(
            f"manager {node_id} stays a member although {reason}: of the other {len(others)} managers only "
            f"{len(answering)} answer, which is no majority"
        )
    if node_id == leader_id:
        return HandOver(reason)
    return RemoveMember(node_id, reason)


class RoleKeeper:
    """Carries the steps out, on the leader."""

    def __init__(self, store: Store, transactions: Transactions, consensus: Consensus, node_id: str) -> None:
        self._store = store
        self._transactions = transactions
        self._consensus = consensus
        self._node_id = node_id
        self._blocked = ""

    async def run(self) -> None:
        """Until cancelled: after each change of a node, and every few seconds."""
        _, watch = self._store.watch()
        with watch:
            while True:
                await self._settle()
                try:
                    async with asyncio.timeout(LOOK_AGAIN):
                        while True:
                            events = await watch.next()
                            if events.changes is None or any(change.kind is Kind.NODE for change in events.changes):
                                break
                except TimeoutError:
                    continue

    async def _settle(self) -> None:
        """Steps until there is none, or one fails: then the next look tries again."""
        while True:
            step = next_step(self._store.snapshot(), self._consensus.status(), self._node_id)
            if isinstance(step, Blocked):
                if step.sentence != self._blocked:
                    log.warning("%s", step.sentence)
                self._blocked = step.sentence
                return
            self._blocked = ""
            if step is None:
                return
            try:
                await self._take(step)
            except SwarmError as error:
                raise_if_cancelled()
                log.warning("the managers' membership is tried again: %s", error)
                return
            if isinstance(step, HandOver):
                return

    async def _take(self, step: RemoveMember | HandOver | WriteNode) -> None:
        match step:
            case RemoveMember(node_id, reason):
                log.info("manager %s leaves the log: %s", node_id, reason)
                await self._consensus.remove_member(node_id, timeout=CHANGE_TIMEOUT)
            case HandOver(reason):
                log.info("this manager hands leadership over: %s", reason)
                await self._consensus.transfer_leadership(None, timeout=CHANGE_TIMEOUT)
            case WriteNode(node):
                await self._transactions.commit([Update(node)], timeout=CHANGE_TIMEOUT)
