"""Where the last number of each kind was taken, so that a freed one is used again as late as possible.

Only a hint: nothing is unsafe where it is forgotten, so it lives in the leader's memory and is not replicated. A new leader
begins after the newest allocation that it can see.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.store import Snapshot
from orchestrator.store.tables import bare_address


@dataclass
class Rotation:
    """The last taken number of each cursor: addresses of a network, VNIs, published ports."""

    cursors: dict[str, int] = field(default_factory=dict)

    def next(self, cursor: str, first: int, last: int, taken: Callable[[int], bool]) -> int | None:
        """The next free number in [first, last] after the cursor, wrapping around; None where all are taken. Moves the
        cursor."""
        size = last - first + 1
        if size <= 0:
            return None
        start = self.cursors.get(cursor, first - 1) + 1
        if not first <= start <= last:
            start = first
        for step in range(size):
            candidate = first + (start - first + step) % size
            if not taken(candidate):
                self.cursors[cursor] = candidate
                return candidate
        return None

    def begin_after_newest(self, snapshot: Snapshot, network_id: str) -> None:
        """Sets a network's cursor from what the snapshot shows, once."""
        if network_id in self.cursors:
            return
        newest, found = -1, 0
        for task in snapshot.tasks.on_network(network_id):
            for attachment in task.attachments:
                if attachment.network_id == network_id:
                    address = int(ipaddress.IPv4Address(bare_address(attachment.address)))
                    newest, found = max((newest, found), (task.meta.created_index, address))
        if found:
            self.cursors[network_id] = found
