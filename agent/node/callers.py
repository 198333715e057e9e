"""Which managers an agent still listens to.

An agent has no replica of the store. But its session tells it who the managers are, and so it turns away a node that was a
manager once – removed or demoted since – although its certificate would be good for months: the agent port can build images
and read logs. Pure.
"""

from __future__ import annotations

from collections.abc import Collection

from swarm.identity import JOINING_GRACE, Peer, Role


def is_stranger(peer: Peer, managers: Collection[str], now: float) -> bool:
    """True where `peer` must be turned away. `managers` are the ids that the last session named, empty before the first one;
    a manager whose certificate is new may be newer than that. `now` in seconds since the epoch."""
    return (
        peer.role is Role.MANAGER
        and bool(managers)
        and peer.name not in managers
        and peer.issued_at + JOINING_GRACE < now
    )
