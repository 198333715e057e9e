"""How a cluster begins: its authority, its first node, and its first transaction.

`initialise` runs once, as a process of its own, before any manager runs: it makes the cluster's CA and this node's key and
certificate, and writes the first transaction (which holds the CA's key) to a file that only root reads. The manager commits
it as soon as it leads and the store is empty, and then removes the file: the secret lives on in the replicated state alone.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from pathlib import Path

from google.protobuf.message import DecodeError
from swarm.clock import Clock
from swarm.errors import AlreadyExists, FailedPrecondition, InternalError, InvalidArgument
from swarm.identity import write_atomically
from swarm.ids import IdSource
from swarm.v1 import store_pb2, types_pb2

from orchestrator.manager.options import InitOptions, Places
from orchestrator.store import Change, Store, Transactions
from orchestrator.store.changes import from_action, to_action

log = logging.getLogger(__name__)

BOOTSTRAP_REQUEST = "bootstrap"  # the request id of the first transaction: committed once, also when we die meanwhile
_AVAILABILITY = {
    "active": types_pb2.AVAILABILITY_ACTIVE,
    "pause": types_pb2.AVAILABILITY_PAUSE,
    "drain": types_pb2.AVAILABILITY_DRAIN,
}


class ClusterLost(FailedPrecondition):
    """This manager leads, and has neither a state nor a beginning of one."""


def initialise(options: InitOptions, *, clock: Clock, ids: IdSource) -> dict[str, str]:
    """Makes a new cluster's files. Returns who we are now. Raises AlreadyExists where this host belongs to a cluster."""
    from swarm.keys import new_key_and_request

    from orchestrator.identity.authority import RootAuthority
    from orchestrator.identity.membership import bootstrap_objects, join_host_port

    places = options.places
    if places.certificates.exists() or places.raft.exists():
        raise AlreadyExists(
            f"{places.state} holds the state of a swarm already; leave that swarm first (`swarmctl swarm leave`)"
        )
    spec = _read_spec(options.spec)
    cluster_id, node_id = ids(), ids()
    authority = RootAuthority.create(cluster_id, clock.wall())
    changes = bootstrap_objects(
        spec,
        cluster_id=cluster_id,
        authority=authority,
        node_id=node_id,
        hostname=options.hostname or socket.gethostname(),
        address=join_host_port(options.advertise, options.cluster_port),
        availability=_AVAILABILITY[options.availability],
        ids=ids,
    )
    keys = new_key_and_request(options.hostname)
    chain = authority.issue_node(keys.csr_pem, node_id, types_pb2.NODE_ROLE_MANAGER, now=clock.wall())
    places.manager.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_bootstrap(places.bootstrap, changes)
    places.certificates.write(keys.key_pem, chain, authority.certificate_pem)
    return {"node_id": node_id, "cluster_id": cluster_id}


def _read_spec(path: Path | None) -> types_pb2.ClusterSpec:
    if path is None:
        return types_pb2.ClusterSpec()
    try:
        return types_pb2.ClusterSpec.FromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise InvalidArgument(f"{path} is not a serialized ClusterSpec: {error}") from error


def write_bootstrap(path: Path, changes: Sequence[Change]) -> None:
    """The first transaction, to a file of mode 0600."""
    command = store_pb2.Command(request_id=BOOTSTRAP_REQUEST, actions=[to_action(change) for change in changes])
    write_atomically(path, command.SerializeToString(), 0o600)


def read_bootstrap(path: Path) -> list[Change] | None:
    """The first transaction; None where there is no such file. Raises InternalError where it is damaged."""
    try:
        command = store_pb2.Command.FromString(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, DecodeError) as error:
        raise InternalError(f"the first transaction of the cluster in {path} cannot be read: {error}") from error
    return [from_action(action) for action in command.actions]


async def commit_bootstrap(places: Places, store: Store, transactions: Transactions) -> None:
    """On the leader: commits the first transaction where the store is empty; then forgets the file.

    Raises ClusterLost where the store is empty and there is no first transaction: a lost state directory.
    """
    changes = read_bootstrap(places.bootstrap)
    if store.snapshot().cluster is None:
        if changes is None:
            raise ClusterLost(
                f"this manager leads an empty cluster and {places.bootstrap} is missing: the state directory was damaged; "
                "restore it from a backup, or let the host leave the swarm and join anew"
            )
        await transactions.commit(changes, request_id=BOOTSTRAP_REQUEST)
        log.info("the cluster begins")
    if changes is not None:
        places.bootstrap.unlink(missing_ok=True)


def is_founder(places: Places) -> bool:
    """Whether this manager is the first of a cluster that has not begun yet."""
    return places.bootstrap.exists()
