"""What every part of the agent that meets a full disk advises people to do about it."""

from __future__ import annotations

MAKE_ROOM = "free some space, `swarmctl image prune` helps"
