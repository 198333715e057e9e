"""The one table of who may call what.

Keyed by the full method name; a method that is not in the table may be called by nobody. The roles of people (`ADMIN`,
`VIEWER`), of nodes, and of the local socket are those of `identity.Role`. Which object a node may touch (its own session,
its own tasks) is checked by the handler, with `servers.current_peer()`.
"""

from __future__ import annotations

from swarm.errors import PermissionDenied, Unauthenticated
from swarm.identity import Peer, Role

_READ = frozenset({Role.VIEWER, Role.ADMIN, Role.MANAGER, Role.LOCAL})
_WRITE = frozenset({Role.ADMIN, Role.MANAGER, Role.LOCAL})
_NODE = frozenset({Role.WORKER, Role.MANAGER})
_MANAGER = frozenset({Role.MANAGER})
_MANAGER_OR_LOCAL = frozenset({Role.MANAGER, Role.LOCAL})
_LOCAL = frozenset({Role.LOCAL})
_ANYBODY = frozenset({Role.ANONYMOUS})

_CONTROL = "/swarm.v1.Control/"
_IMAGES = "/swarm.v1.Images/"
_LOCAL_NODE = "/swarm.v1.LocalNode/"

ALLOWED: dict[str, frozenset[Role]] = {
    **{
        _CONTROL + method: _READ
        for method in (
            "GetInfo", "GetCluster", "ListNodes", "GetNode", "ListServices", "GetService", "WatchService", "ServiceLogs",
            "ListTasks", "GetTask", "ListNetworks", "GetNetwork",
        )
    },
    **{
        _CONTROL + method: _WRITE
        for method in (
            "UpdateCluster", "GetJoinTokens", "RotateJoinToken", "IssueCertificate", "UpdateNode", "RemoveNode", "SaveSnapshot",
            "CreateService", "UpdateService", "RemoveService", "CreateNetwork", "RemoveNetwork",
        )
    },
    "/swarm.v1.Dispatcher/Session": _NODE,
    "/swarm.v1.DispatcherRelay/Relay": _MANAGER,
    "/swarm.v1.Certificates/Renew": _NODE,
    **{"/swarm.v1.Raft/" + method: _MANAGER for method in ("Exchange", "InstallSnapshot")},
    **{"/swarm.v1.RaftMembership/" + method: _MANAGER for method in ("Join", "Leave", "List")},
    "/swarm.v1.Enrolment/Join": _ANYBODY,
    "/swarm.v1.NodeAgent/TaskLogs": _MANAGER_OR_LOCAL,
    **{
        _IMAGES + method: _MANAGER_OR_LOCAL
        for method in (
            "Build", "Pull", "Push", "List", "Inspect", "Tag", "Remove", "Prune", "Import", "Load", "Save", "Resolve",
        )
    },
    **{_LOCAL_NODE + method: _LOCAL for method in ("GetState", "Init", "Join", "Leave", "Recover", "Restore")},
}  # fmt: skip


def authorize(method: str, peer: Peer) -> None:
    """Raises PermissionDenied unless the table lets `peer` call `method`."""
    allowed = ALLOWED.get(method, frozenset())
    if peer.role in allowed:
        return
    if peer.role is Role.ANONYMOUS:
        raise Unauthenticated(f"{method} needs a certificate of the cluster")
    if peer.role is Role.VIEWER and Role.ADMIN in allowed:
        raise PermissionDenied(
            f"{peer.name!r} is a viewer, who may look at the swarm and not change it "
            f"({method.rpartition('/')[2]}); an administrator's certificate comes from `swarmctl cert issue --role admin`"
        )
    raise PermissionDenied(f"the role {peer.role.value} of {peer.name!r} may not call {method}")
