"""The key that this manager's log is sealed with: made with the log, and never replaced by a new one.

The key lies beside the node's key, away from the log, so that a copy of the log alone reveals nothing. Where there is a log
and no key, none is made: a new key could open nothing, and would hide that the right one is missing. The log then says so
where it is sealed (and goes on unsealed where it never was).
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.manager.options import Places


def data_key(places: Places) -> Path | None:
    """The file of the key, which the log makes where it begins; None where a log is there and its key is not."""
    key = places.data_key
    return key if key.exists() or not has_log(places) else None


def has_log(places: Places) -> bool:
    """Whether this host holds the log of a manager."""
    return places.raft.is_dir() and any(path.suffix in (".journal", ".snapshot") for path in places.raft.iterdir())
