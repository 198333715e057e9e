"""The replicated log: `pysyncobj` under our own journal, transport, snapshots and a corrected core.

`RaftNode` (of `node`) is the only thing that the rest of the manager sees; docs/raft.md says what it promises.
"""

from __future__ import annotations

import socket

from swarm.footprint import without

_ntop = socket.inet_ntop
with without("cryptography"):  # for an encryption of its own that we do not use; 8 MB
    import pysyncobj.syncobj  # noqa: F401
socket.inet_ntop = _ntop  # the library puts one in its place that works on Windows only

# ruff: noqa: E402 – only now: they import the library as well
from orchestrator.raft.config import RaftConfig, Timings
from orchestrator.raft.node import RaftNode

__all__ = ["RaftConfig", "RaftNode", "Timings"]
