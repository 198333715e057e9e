"""Which version of the log's language is written and read: what makes upgrades one manager at a time possible.

A manager reads every level up to `SUPPORTED` and writes the cluster's feature level (`Cluster.feature_level`), which rises
when all managers support more. So a log never holds what one of its members cannot read. A manager that meets a higher
level all the same (an older program started on a newer log) stops, before it can differ from the others.

Raise `SUPPORTED` with every change that an older manager would misread: a new kind of action, a field that changes what
applying an entry does. Docs: docs/upgrades.md.
"""

from __future__ import annotations

from swarm.errors import InternalError
from swarm.v1.types_pb2 import Cluster

FIRST = 1
SUPPORTED = 1  # the highest level that this program reads and writes


class NewerVersion(InternalError):
    """The log or a snapshot was written by a newer version than this program."""


def level_of(cluster: Cluster | None) -> int:
    """What the managers agreed to write."""
    return max(FIRST, cluster.feature_level) if cluster is not None else FIRST


def check_readable(schema: int, what: str) -> None:
    """Raises NewerVersion where `what` was written at a level that this program does not know."""
    if schema > SUPPORTED:
        raise NewerVersion(f"{what} has schema {schema}, this manager knows up to {SUPPORTED}; update it")


def check_cluster(cluster: Cluster | None) -> None:
    """Raises NewerVersion where the managers have agreed on more than this program supports."""
    if cluster is not None and cluster.feature_level > SUPPORTED:
        raise NewerVersion(
            f"the swarm is at feature level {cluster.feature_level}, this manager supports up to {SUPPORTED}; update it"
        )
