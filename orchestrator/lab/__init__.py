"""Whole clusters on one machine: each host a network namespace with its own daemons, state and links.

It drives `swarmd` as an operator of real hosts would and knows nothing of the orchestrator's inside.
"""

import os

# gRPC's own lines on stderr (of forking, of connections that fail) would mix with ours; read when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
