"""What is done to a manager's state while no manager runs: life after a lost quorum, and life from a snapshot.

`recover` makes this manager the only one, with everything that its log holds. `restore` founds a cluster of one manager with
the state of a snapshot file: on a fresh host, which gets an identity from the snapshot's authority, or on a manager of the
same cluster, whose log is put aside. `inspect` says what a snapshot file holds.

History is cut by both. So each leaves a note (`Cut`) for the manager that starts next: as the leader, and before it does
anything else, it raises the cluster's epoch and removes the other managers' nodes (`commit_cut`). Agents follow the higher
epoch and refuse the old one; managers that come back after all are strangers, are told so by the one that they knew
(`HistoryCut`), and stop: `manager/superseded` keeps them from starting again until their host leaves or is recovered itself.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from swarm.clock import Clock
from swarm.errors import FailedPrecondition, InternalError, InvalidArgument
from swarm.identity import Role, write_atomically
from swarm.ids import IdSource
from swarm.v1 import types_pb2 as types

from orchestrator.consensus import Member
from orchestrator.identity.membership import join_changes, join_host_port, require_cluster, split_advertised
from orchestrator.identity.revocation import revoke
from orchestrator.manager.data_key import data_key, has_log
from orchestrator.manager.options import OfflineOptions, Places
from orchestrator.manager.pidfile import locked
from orchestrator.raft.disk import LocalDirectory
from orchestrator.store import Change, Create, Kind, Remove, Snapshot, Store, Transactions, Update, copy_of, features
from orchestrator.store.persistence import load

log = logging.getLogger(__name__)

COPIES = 3  # attempts to copy the log of a manager that goes on writing
REPLACED = "raft.replaced"  # the log that a restore put aside, beside the new one
RESTORING = "raft.restoring"  # the new one while it is made


@dataclass(frozen=True)
class Cut:
    """What a recovered or restored manager commits first."""

    request_id: str  # committed once, also where the manager dies meanwhile
    node_id: str
    hostname: str
    address: str  # HOST:PORT of the cluster port
    seen_epoch: int = 0  # the highest one that this host's agent knows

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(path, json.dumps(asdict(self)).encode())


def read_cut(path: Path) -> Cut | None:
    """None where there is none. Raises InternalError where it is damaged."""
    try:
        return Cut(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise InternalError(f"{path} cannot be read: {error}; recover or restore this manager again") from error


# ------------------------------------------------------------------------------------------------------------ recovering


def recover(options: OfflineOptions, ids: IdSource) -> dict[str, Any]:
    """Makes this manager the only one. With `dry_run` only says what that would mean; a manager may run meanwhile.

    Raises FailedPrecondition where this host is no manager, AlreadyExists where one runs."""
    from orchestrator.raft import recovery

    places = options.places
    member = _member(options)
    if not has_log(places):
        raise FailedPrecondition(f"{places.raft} holds no log; recover on a host that was a manager")
    if options.dry_run:
        found = _look(places, member)
    else:
        with locked(places.pid_file):
            _note(options, member, ids)
            found = recovery.force_new_cluster(places.raft, member, dry_run=False, data_key=data_key(places))
            places.superseded.unlink(missing_ok=True)  # not before: it must not start with the log that it had
    return {
        "node_id": member.node_id,
        "last_index": found.last_index,
        "term": found.term,
        "lost": [{"node_id": other.node_id, "address": other.address} for other in found.lost],
    }


def _look(places: Places, member: Member) -> Any:
    """What a recovery would do, from a copy: opening a log tidies it up, and its manager may be using it."""
    from orchestrator.raft import recovery

    for attempt in range(COPIES):
        with tempfile.TemporaryDirectory(prefix="recovery-", dir=places.manager) as directory:
            copy = Path(directory) / "raft"
            try:
                shutil.copytree(places.raft, copy)
            except shutil.Error:  # files went meanwhile: the log was compacted
                if attempt == COPIES - 1:
                    raise FailedPrecondition(
                        f"{places.raft} changes too fast to be looked at; this manager is well"
                    ) from None
                continue
            return recovery.force_new_cluster(copy, member, dry_run=True, data_key=data_key(places))
    raise AssertionError("the loop returns or raises")


def _note(options: OfflineOptions, member: Member, ids: IdSource) -> None:
    cut = Cut(ids(), member.node_id, options.hostname, member.address, options.seen_epoch)
    cut.write(options.places.recovery)


def _member(options: OfflineOptions) -> Member:
    me = options.places.certificates.read().peer
    if me.role is not Role.MANAGER:
        raise FailedPrecondition("this node is a worker; recover on a host that was a manager")
    return Member(me.name, join_host_port(options.advertise, options.cluster_port))


# ------------------------------------------------------------------------------------------------------------- snapshots


def inspect(path: Path) -> dict[str, Any]:
    """What a snapshot file holds, all of it read and checked. Raises InvalidArgument."""
    summary, snapshot = _read(path)
    cluster = require_cluster(snapshot)
    return {
        "cluster_id": cluster.id,
        "cluster_name": cluster.spec.name,
        "epoch": cluster.epoch,
        "feature_level": features.level_of(snapshot.cluster),
        "index": summary.index,
        "term": summary.term,
        "state_bytes": summary.state_bytes,
        "managers": [{"node_id": member.node_id, "address": member.address} for member in summary.members],
        "nodes": len(snapshot.nodes),
        "services": len(snapshot.services),
        "tasks": len(snapshot.tasks),
        "networks": len(snapshot.networks),
    }


def _read(path: Path) -> tuple[Any, Snapshot]:
    from orchestrator.raft import recovery

    summary = recovery.inspect(path)
    snapshot, _ = load(summary.index, recovery.state_of(path))
    if snapshot.cluster is None:
        raise InvalidArgument(f"{path} holds the snapshot of a cluster that had not begun")
    return summary, snapshot


def restore(options: OfflineOptions, clock: Clock, ids: IdSource) -> dict[str, Any]:
    """Founds a one-manager cluster with the state of a snapshot file.

    Raises FailedPrecondition where this host belongs to another cluster or is a worker, AlreadyExists where a manager runs.
    """
    from orchestrator.raft import recovery

    places, path = options.places, options.file
    assert path is not None
    _, snapshot = _read(path)
    cluster = require_cluster(snapshot)
    with locked(places.pid_file):
        if places.certificates.exists():
            member = _member(options)
            if places.certificates.read().peer.cluster_id != cluster.id:
                raise FailedPrecondition(
                    f"{path} is a snapshot of swarm {cluster.id}, and this host belongs to another one; leave that first "
                    "(`swarmctl swarm leave`)"
                )
        else:
            member = _new_identity(options, cluster, clock, ids)
        places.manager.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = places.manager / RESTORING
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(mode=0o700)
        recovery.restore(path, made, member, data_key=data_key(places))
        _note(options, member, ids)  # not before: the only manager of a swarm would cut the history that it has
        _put_in_place(made, places)
        places.bootstrap.unlink(missing_ok=True)
        places.superseded.unlink(missing_ok=True)
    return {"node_id": member.node_id, **inspect(path)}


def _new_identity(options: OfflineOptions, cluster: types.Cluster, clock: Clock, ids: IdSource) -> Member:
    """A key, and a certificate of the snapshot's authority."""
    from swarm.keys import new_key_and_request

    from orchestrator.identity.authority import RootAuthority

    authority, node_id = RootAuthority.from_cluster(cluster), ids()
    keys = new_key_and_request(options.hostname)
    chain = authority.issue_node(keys.csr_pem, node_id, types.NODE_ROLE_MANAGER, now=clock.wall())
    options.places.certificates.write(keys.key_pem, chain, authority.certificate_pem)
    return Member(node_id, join_host_port(options.advertise, options.cluster_port))


def _put_in_place(made: Path, places: Places) -> None:
    """The whole log takes the place of the former one, which is put aside. Killed at any moment, a restore may be repeated and
    leaves the former one either in its place or aside."""
    if places.raft.exists():
        replaced = places.manager / REPLACED
        shutil.rmtree(replaced, ignore_errors=True)
        places.raft.rename(replaced)
    made.rename(places.raft)
    LocalDirectory(places.manager).sync()


# -------------------------------------------------------------------------------------------------- the manager afterwards


def cut_changes(snapshot: Snapshot, cut: Cut, now: float) -> list[Change]:
    """A higher epoch, this manager's node, and no other manager's. `now`: wall clock. Pure."""
    cluster = copy_of(require_cluster(snapshot))
    cluster.epoch = _next_epoch(cluster.epoch, cut.seen_epoch, now)
    gone: list[Change] = []
    for node in sorted(snapshot.nodes, key=lambda node: node.number):
        if node.id != cut.node_id and types.NODE_ROLE_MANAGER in (node.role, node.spec.desired_role):
            revoke(cluster, node.id, now, epoch=cluster.epoch)
            gone.append(Remove(Kind.NODE, node.id))
    return [*_own_node(snapshot, cluster, cut), Update(cluster), *gone]


def _next_epoch(held: int, seen: int, now: float) -> int:
    """Higher than any that was ever in use. What the state says is not enough: where a snapshot is restored twice, the first
    time began an epoch that the snapshot does not know, and nodes that saw it would refuse everything of the second time.
    So it is the time in seconds; where that clock is behind, one more than the highest that is known here."""
    return max(int(now), held + 1, seen + 1)


def _own_node(snapshot: Snapshot, cluster: types.Cluster, cut: Cut) -> Iterable[Change]:
    """This manager's node as it must be; a new one where the snapshot does not know it (`cluster`: gives the number)."""
    own = snapshot.nodes.get(cut.node_id)
    if own is None:
        changes = join_changes(
            snapshot,
            node_id=cut.node_id,
            role=types.NODE_ROLE_MANAGER,
            hostname=cut.hostname,
            address=cut.address,
            availability=types.AVAILABILITY_ACTIVE,
        )
        cluster.next_node_number += 1
        kept = [revoked for revoked in cluster.revoked_nodes if revoked.node_id != cut.node_id]
        del cluster.revoked_nodes[:]
        cluster.revoked_nodes.extend(kept)
        return [change for change in changes if isinstance(change, Create)]
    changed = copy_of(own)
    changed.role = changed.spec.desired_role = types.NODE_ROLE_MANAGER
    changed.manager.address = cut.address
    changed.description.address = split_advertised(cut.address)[0]
    return [Update(changed)] if changed != own else []


async def commit_cut(
    places: Places, store: Store, transactions: Transactions, members: Sequence[Member], now: float
) -> None:
    """On the leader: commits what a recovery or a restore left to be done; then forgets it."""
    cut = read_cut(places.recovery)
    if cut is None:
        return
    if [member.node_id for member in members] != [cut.node_id]:
        log.warning("%s is ignored: a recovery was begun and did not happen", places.recovery)
    else:
        snapshot = store.snapshot()
        await transactions.commit(cut_changes(snapshot, cut, now), request_id=cut.request_id)
        log.warning(
            "this manager is the only one from here on: epoch %d; the other managers' nodes were removed",
            require_cluster(store.snapshot()).epoch,
        )
    places.recovery.unlink(missing_ok=True)
