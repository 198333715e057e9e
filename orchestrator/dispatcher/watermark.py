"""Up to which store index all live nodes have programmed the endpoint table.

A task that was withdrawn at index i gets no new connection once every node that knew of it has acknowledged i. Only nodes
that a change concerns have anything to acknowledge: the leader derives from its own mirrors whom a change concerns, and a
node that has acknowledged the last change that concerned it holds everything up to the current index. Pure: the leader
feeds changes, acknowledgements, and who is live.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class _Progress:
    acknowledged: int
    concerned: int  # the last index that changed something for this node


@dataclass
class AcknowledgementTable:
    """One entry for each node that is live and has a session."""

    _nodes: dict[str, _Progress] = field(default_factory=dict)
    _pending: set[str] = field(default_factory=set)
    _announced: int = 0

    def expect(self, node_id: str, index: int) -> None:
        """The node is live; everything up to `index` is to be acknowledged by it (it may hold less)."""
        if node_id not in self._nodes:
            self._nodes[node_id] = _Progress(0, index)
            self._pending.add(node_id)

    def drop(self, node_id: str) -> None:
        """The node is down, gone or without a session: nobody waits for it."""
        self._nodes.pop(node_id, None)
        self._pending.discard(node_id)

    def changed(self, node_ids: Iterable[str], index: int) -> None:
        """At `index` something changed that these nodes must program."""
        for node_id in node_ids:
            progress = self._nodes.get(node_id)
            if progress is None:
                continue
            if node_id not in self._pending:
                progress.acknowledged = max(progress.acknowledged, index - 1)
                self._pending.add(node_id)
            progress.concerned = index

    def acknowledged(self, node_id: str, index: int) -> None:
        """The node holds everything up to `index`."""
        progress = self._nodes.get(node_id)
        if progress is None:
            return
        progress.acknowledged = max(progress.acknowledged, index)
        if progress.acknowledged >= progress.concerned:
            self._pending.discard(node_id)

    def waiting_for(self) -> frozenset[str]:
        return frozenset(self._pending)

    def watermark(self, index: int) -> int:
        """The highest index that every live node holds, where the store is at `index`. Never goes back."""
        held = min((self._nodes[node_id].acknowledged for node_id in self._pending), default=index)
        self._announced = max(self._announced, min(held, index))
        return self._announced
