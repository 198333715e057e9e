"""Which of the suitable nodes: a tree of the placement preferences' labels, with a heap of nodes at each leaf.

Tasks go to the branch with the fewest tasks of their service, level by level, and in the leaf to the node with the fewest
tasks of their revision, then of their service, then of all. The revision comes first so that a rolling update, whose old
tasks are about to leave, ends evenly spread. Nodes on which the revision keeps failing come last: a broken host, where
tasks end at once, would look like the emptiest one and draw all of them.

Choosing costs O(branches + log nodes), not a scan of all nodes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence

from swarm.v1.types_pb2 import ServiceRevision

from orchestrator.scheduler.constraints import attribute
from orchestrator.scheduler.nodes import NodeTally

Refuses = Callable[[NodeTally], bool]
Rank = tuple[int, int, int, int, str]

AVOIDED_FROM = 3  # failures of a revision on a node, within the time that `step.FAILURES_FOR` says


class SpreadTree:
    """The nodes that may take the tasks of one group. `pop` gives the best that is not refused; `push` returns it after its
    tally changed. A node that is refused at `pop` is dropped for good."""

    def __init__(
        self,
        tallies: Sequence[NodeTally],
        preferences: Sequence[str],
        revision: ServiceRevision,
        failures: Mapping[str, int],
    ) -> None:
        self._service_id = revision.service_id
        self._revision_id = revision.id
        self._failures = failures
        self._branches: dict[str, SpreadTree] = {}
        self._key = preferences[0] if preferences else ""
        self._heap: list[tuple[Rank, NodeTally]] = []
        self._count = sum(tally.by_service.get(revision.service_id, 0) for tally in tallies)
        if not preferences:
            self._heap = [(self._rank(tally), tally) for tally in tallies]
            heapq.heapify(self._heap)
            return
        by_value: dict[str, list[NodeTally]] = {}
        for tally in tallies:
            by_value.setdefault(attribute(tally.node, self._key), []).append(tally)
        for value, members in sorted(by_value.items()):
            self._branches[value] = SpreadTree(members, preferences[1:], revision, failures)

    def _rank(self, tally: NodeTally) -> Rank:
        failures = self._failures.get(tally.node.id, 0)
        return (
            failures if failures >= AVOIDED_FROM else 0,
            tally.by_revision.get(self._revision_id, 0),
            tally.by_service.get(self._service_id, 0),
            tally.tasks,
            tally.node.id,
        )

    def pop(self, refuses: Refuses) -> NodeTally | None:
        """The best node, taken out; None where every node is refused."""
        if not self._key:
            while self._heap:
                _, tally = heapq.heappop(self._heap)
                if not refuses(tally):
                    return tally
            return None
        for _, value in sorted((branch._count, value) for value, branch in self._branches.items()):
            found = self._branches[value].pop(refuses)
            if found is not None:
                return found
            del self._branches[value]  # nothing left in it
        return None

    def push(self, tally: NodeTally) -> None:
        """Returns a node that `pop` gave, with one more task on it."""
        self._count += 1
        if self._key:
            self._branches[attribute(tally.node, self._key)].push(tally)
        else:
            heapq.heappush(self._heap, (self._rank(tally), tally))
