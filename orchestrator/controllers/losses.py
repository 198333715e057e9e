"""How fast the tasks of lost nodes are replaced.

One lost host among many is replaced at once. When a large part of the cluster is gone in one moment, it is more likely that
the managers are cut off than that all hosts died: then replacements are paced, so that the remaining hosts are not
flooded, and a quick return costs little.
"""

from __future__ import annotations

from dataclasses import dataclass

from swarm.v1.types_pb2 import NODE_STATE_DOWN, NODE_STATE_READY

from orchestrator.store import Snapshot

MASS_LOSS_SHARE = 1 / 3  # of all nodes, and more than one node
PACED_RATE = 20.0  # replacements a second at least; one a second for each node that is left where that is more


@dataclass
class ReplacementBudget:
    """A token bucket that is consulted only in a mass loss. Belongs to the leader; a new leader begins with a full one."""

    tokens: float = PACED_RATE
    filled_at: float = 0.0
    rate: float = PACED_RATE
    paced: bool = False

    def observe(self, snapshot: Snapshot, now: float) -> None:
        """Takes in the nodes' states; called once before each round of decisions. `now`: wall clock."""
        down = ready = 0
        for node in snapshot.nodes:
            down += node.status.state == NODE_STATE_DOWN
            ready += node.status.state == NODE_STATE_READY
        self.paced = down > 1 and down >= MASS_LOSS_SHARE * len(snapshot.nodes)
        self.rate = max(PACED_RATE, float(ready))
        self.tokens = min(self.rate, self.tokens + max(0.0, now - self.filled_at) * self.rate)
        self.filled_at = now

    def take(self) -> bool:
        """Whether one more task may be replaced now."""
        if not self.paced:
            return True
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True

    def next_at(self) -> float:
        """When to ask again after a refusal."""
        return self.filled_at + max(0.05, (1 - self.tokens) / self.rate)
