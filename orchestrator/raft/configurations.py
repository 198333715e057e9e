"""Changes of the members in the running log, on the tick thread (removes defect K; the rules stand in `membership`).

A configuration is in force from the moment its entry is appended: links are opened and closed, the library's sets of voters and
learners follow. A truncated entry takes its configuration back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from swarm.errors import FailedPrecondition, SwarmError, Unavailable
from swarm.v1 import raft_pb2 as pb

from orchestrator.consensus import Committed
from orchestrator.raft import membership
from orchestrator.raft.engine import MemberNode, Role
from orchestrator.raft.links import Links
from orchestrator.raft.proposals import Proposal, Stage
from orchestrator.raft.replication import Replication
from orchestrator.raft.surroundings import Observer

log = logging.getLogger(__name__)

_PROMOTION_LAG = 64  # entries that a learner may be behind when it gets its vote

Change = Callable[[pb.RaftConfiguration], pb.RaftConfiguration]


class Configurations(Replication):
    """Membership, on the tick thread."""

    links: Links
    _observer: Observer

    def __init__(self, *arguments: Any) -> None:
        self.configuration_published: pb.RaftConfiguration | None = None
        super().__init__(*arguments)

    # ---- what the core answers

    def _is_ready(self) -> bool:
        """Whether this member leads and has applied an entry of its own term."""
        raise NotImplementedError

    def _append(self, command: bytes, proposal: Proposal) -> bool:
        """Puts it into the log; False where the caller has gone."""
        raise NotImplementedError

    # ---- changes

    def change_configuration(self, change: Change, proposal: Proposal) -> None:
        """Appends `change` of the configuration in force. One at a time, really: the library's own guard is dead code."""
        try:
            self._begin_change(change, proposal)
        except SwarmError as error:
            proposal.end(error)

    def _begin_change(self, change: Change, proposal: Proposal) -> None:
        if self.role is not Role.LEADER:
            raise Unavailable("this manager does not lead; nothing was changed, repeat it")
        if not self._is_ready() or self.history.current_index > self.commit_index:
            raise FailedPrecondition("another change of the managers is under way; repeat it when that has ended")
        changed = change(self.history.current)
        if changed == self.history.current:
            proposal.begin()
            proposal.end(Committed(self.history.current_index, b""))
            return
        if self.own_id not in membership.voters(changed):
            raise FailedPrecondition("a leader cannot remove itself; it hands leadership over first")
        command = membership.encode(changed)
        self.journal.reserve(len(command))
        if self._append(command, proposal):
            self.configuration_appended(self.last_index, changed)

    def _promote_learners(self) -> None:
        """A learner that has caught up gets its vote."""
        if not self._is_ready() or self.history.current_index > self.commit_index:
            return
        for node in sorted(self.learner_nodes, key=lambda node: str(node.id)):
            match = self.match_index.get(node, 0)  # 0: it has not answered yet
            if node in self.connected and match > 0 and match + _PROMOTION_LAG >= self.last_index:
                proposal = Proposal(b"", float("inf"), lambda _: None)
                self.change_configuration(lambda now, node=node: membership.with_vote(now, node.id), proposal)  # type: ignore[misc]
                if proposal.stage is Stage.APPENDED:
                    log.info("manager %s has caught up and gets its vote", node.id)
                return

    def configuration_appended(self, index: int, configuration: pb.RaftConfiguration) -> None:
        self.history.appended(index, configuration)
        self._adopt_configuration()

    def log_truncated(self, index: int) -> None:
        """Entries from `index` on contradict the leader's: what they changed of the membership is taken back. Who waits for
        them goes on waiting: another member may hold them still and commit them as a later leader, so that only what is
        committed in their place says that they were never written."""
        self.history.truncated(index)
        self._adopt_configuration()

    def _adopt_configuration(self) -> None:
        """Brings links and the library's sets in line with the configuration in force."""
        configuration = self.history.current
        wanted = {m.node_id: m for m in configuration.members if m.node_id != self.own_id}
        for node in self.peers():
            entry = wanted.get(node.id)
            if entry is None or entry.address != node.address:
                self._drop(node)
        for node_id, entry in sorted(wanted.items()):
            self._include(node_id, entry)
        if configuration != self.configuration_published:
            self.configuration_published = configuration
            self._observer.configuration_changed(configuration)

    def _drop(self, node: MemberNode) -> None:
        self.voter_nodes.discard(node)
        self.learner_nodes.discard(node)
        self.connected.discard(node)
        self.progress.pop(node.id, None)
        for known in (self.next_index, self.match_index, self.last_response):
            known.pop(node, None)
        self.links.disconnect(node.id)

    def _include(self, node_id: str, entry: pb.RaftMember) -> None:
        node = next((known for known in self.peers() if known.id == node_id), None)
        if node is None:
            node = MemberNode(node_id, entry.address)
            self.next_index[node] = self.last_index + 1
            self.match_index[node] = 0
            self.last_response[node] = self.clock()
            self.links.connect(node)
        group, other = self.learner_nodes, self.voter_nodes
        if not entry.learner:
            group, other = other, group
        other.discard(node)
        group.add(node)

    def reachable(self) -> frozenset[str]:
        """The members that answered this leader lately, and itself. Also asked from the event loop, hence the copy."""
        since, answers = self.clock() - self.timings.quorum, list(self.last_response.items())
        return frozenset({self.own_id, *(node.id for node, when in answers if when >= since)})
