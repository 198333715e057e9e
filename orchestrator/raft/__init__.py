"""The replicated log: `pysyncobj` under our own journal, transport, snapshots and a corrected core.

`RaftNode` (of `node`) is the only thing that the rest of the manager sees; docs/raft.md says what it promises.
"""

from __future__ import annotations

from swarm.footprint import without

with without("cryptography"):  # for an encryption of its own that we do not use; 8 MB
    import pysyncobj.syncobj  # noqa: F401

from orchestrator.raft.config import RaftConfig, Timings
from orchestrator.raft.node import RaftNode

__all__ = ["RaftConfig", "RaftNode", "Timings"]
