"""What can be done with a stopped manager's log, and with snapshots as files.

* `force_new_cluster` rebuilds a one-manager cluster from what one member holds, after the others are lost for good. Everything
  in its log counts as committed then: it may include writes that were never acknowledged, never less than what this member
  had acknowledged.
* `export` / `inspect` / `restore` carry the state in a file: for backups, and into a new cluster of one manager.

A saved snapshot is not sealed, since it has to be readable elsewhere: guard it. The caller raises the cluster's epoch
afterwards, so that agents and lost managers know that history was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from swarm.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from swarm.v1 import raft_pb2 as pb

from orchestrator.consensus import Member
from orchestrator.raft import membership
from orchestrator.raft.disk import LocalDirectory
from orchestrator.raft.journal import Journal
from orchestrator.raft.sealing import sealer_from
from orchestrator.raft.snapshots import Snapshot, SnapshotDamaged, SnapshotStore


@dataclass(frozen=True)
class Recovery:
    """What a recovery finds, or did."""

    last_index: int
    term: int
    kept: Member
    lost: tuple[Member, ...]


@dataclass(frozen=True)
class SnapshotSummary:
    """What a snapshot file says of itself."""

    index: int
    term: int
    members: tuple[Member, ...]
    state_bytes: int


def force_new_cluster(
    state_directory: Path, member: Member, *, dry_run: bool, data_key: Path | None = None
) -> Recovery:
    """Makes `member` the only one. The manager must be stopped. Raises FailedPrecondition where there is nothing to recover
    or the member is not one of the log, InternalError where its files are damaged."""
    if not state_directory.is_dir() or not any(state_directory.glob("*.journal")):
        raise FailedPrecondition(f"{state_directory} holds no log; recover on a host that was a manager")
    directory = LocalDirectory(state_directory)
    sealer = sealer_from(data_key)
    journal = Journal(directory, pb.RaftConfiguration(), sealer=sealer)
    try:
        snapshot = SnapshotStore(directory, sealer).newest()
        if snapshot is not None:
            # As the start does: one that came just before the end is newer than the log, which would give way to it then.
            journal.align(snapshot.index, snapshot.term, snapshot.configuration, keep=snapshot.index)
        current = _configuration(journal, snapshot)
        if membership.member(current, member.node_id) is None:
            raise FailedPrecondition(f"node {member.node_id} was not a manager of this log; recover on one that was")
        lost = [m for m in current.members if m.node_id != member.node_id]
        found = Recovery(
            last_index=journal[-1][1],
            term=max(journal.getCurrentTerm(), journal[-1][2]),  # such a snapshot may be of a later term
            kept=member,
            lost=tuple(Member(m.node_id, m.address) for m in lost),
        )
        if not dry_run:
            alone = membership.founding([member])
            alone.removed.extend([*current.removed, *(m.node_id for m in lost)])
            # A term of its own: entries of lost members that lead in the old term can never be mistaken for these.
            journal.setCurrentTerm(found.term + 1, member.node_id)
            journal.reserve(alone.ByteSize())
            journal.add(membership.encode(alone), found.last_index + 1, found.term + 1)
            journal.sync()
        return found
    finally:
        journal._destroy()


def _configuration(journal: Journal, snapshot: Snapshot | None) -> pb.RaftConfiguration:
    configuration = snapshot.configuration if snapshot is not None else journal.base_configuration
    for command, index, _ in journal[:]:
        if snapshot is None or index > snapshot.index:
            configuration = membership.decode(command) or configuration
    return configuration


def export(
    path: Path, index: int, term: int, configuration: pb.RaftConfiguration, produce: Callable[[], Iterable[bytes]]
) -> SnapshotSummary:
    """Writes a snapshot to `path`, durably. Raises AlreadyExists, DiskFull."""
    if path.exists():
        raise AlreadyExists(f"{path} exists; choose another name")
    store, written = SnapshotStore(LocalDirectory(path.parent)), 0

    def counted() -> Iterator[bytes]:
        nonlocal written
        for chunk in produce():
            written += len(chunk)
            yield chunk

    store.write_as(path.name, index, term, configuration, counted())
    return SnapshotSummary(index, term, _members(configuration), written)


def inspect(path: Path) -> SnapshotSummary:
    """Reads and checks all of a snapshot file. Raises InvalidArgument where there is none, or something else."""
    if not path.is_file():
        raise InvalidArgument(f"there is no file {path}")
    store = SnapshotStore(LocalDirectory(path.parent))
    try:
        snapshot = store.describe(path.name)
        size = sum(len(chunk) for chunk in store.chunks(snapshot))
    except SnapshotDamaged as error:  # nothing is wrong with this manager: people choose the file
        raise InvalidArgument(
            f"{path} is not the snapshot of a swarm, or it is damaged ({error.what}); take a file that "
            "`swarmctl swarm snapshot save` wrote"
        ) from error
    return SnapshotSummary(snapshot.index, snapshot.term, _members(snapshot.configuration), size)


def state_of(path: Path) -> Iterator[bytes]:
    """The state in a snapshot file, in chunks. Raises SnapshotDamaged while it is read: `inspect` comes first."""
    store = SnapshotStore(LocalDirectory(path.parent))
    return iter(store.chunks(store.describe(path.name)))


def restore(path: Path, state_directory: Path, member: Member, *, data_key: Path | None = None) -> SnapshotSummary:
    """Founds a one-manager cluster with the state of a snapshot file. Raises FailedPrecondition where the directory is not
    empty."""
    summary = inspect(path)
    directory = LocalDirectory(state_directory)
    if directory.names():
        raise FailedPrecondition(f"{state_directory} is not empty; a snapshot is restored into a new manager only")
    source = SnapshotStore(LocalDirectory(path.parent))
    alone = membership.founding([member])
    sealer = sealer_from(data_key)
    target = SnapshotStore(directory, sealer)
    target.write(summary.index, summary.term, alone, source.chunks(source.describe(path.name)))
    journal = Journal(directory, alone, sealer=sealer)
    try:
        journal.reset(summary.index, summary.term, alone)
        journal.setCurrentTerm(summary.term + 1, member.node_id)
        journal.sync()
    finally:
        journal._destroy()
    return summary


def _members(configuration: pb.RaftConfiguration) -> tuple[Member, ...]:
    return tuple(Member(m.node_id, m.address) for m in configuration.members)
