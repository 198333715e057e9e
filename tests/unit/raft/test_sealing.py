"""What is stored reveals nothing without the key, and comes back with it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from swarm.errors import FailedPrecondition

from orchestrator.consensus import Member
from orchestrator.raft import membership
from orchestrator.raft.journal import Journal
from orchestrator.raft.sealing import KEY_BYTES, Sealed, Sealer, sealer_from
from orchestrator.raft.snapshots import SnapshotDamaged, SnapshotStore
from tests.simulation.raft.virtual_disk import VirtualDirectory

FOUNDERS = membership.founding([Member("a", "a:1")])
SECRET = b"\0a secret that nobody may read"


def key(number: int) -> Sealer:
    return Sealer(bytes([number]) * KEY_BYTES)


def stored(disk: VirtualDirectory) -> bytes:
    return b"".join(disk.contents(name) for name in disk.names())


def test_a_sealed_journal_needs_its_key() -> None:
    disk = VirtualDirectory(random.Random(1))
    journal = Journal(disk, FOUNDERS, sealer=key(1))
    journal.add(SECRET, 2, 1)
    journal.sync()
    assert SECRET[1:] not in stored(disk)
    assert Journal(disk, FOUNDERS, sealer=key(1))[1][0] == SECRET
    for other in (key(2), None):
        with pytest.raises(FailedPrecondition, match=r"put the (right )?key file back"):
            Journal(disk, FOUNDERS, sealer=other)


def test_what_was_written_before_there_was_a_key_stays_readable() -> None:
    disk = VirtualDirectory(random.Random(1))
    journal = Journal(disk, FOUNDERS)
    journal.add(b"\0plain", 2, 1)
    journal.sync()
    again = Journal(disk, FOUNDERS, sealer=key(1))
    again.add(SECRET, 3, 1)
    again.sync()
    assert [entry[0] for entry in Journal(disk, FOUNDERS, sealer=key(1))[1:]] == [b"\0plain", SECRET]


def test_a_snapshot_travels_between_members_with_different_keys() -> None:
    chunks = [SECRET * 100, bytes(700_000), b"end"]
    disks = [VirtualDirectory(random.Random(1)) for _ in range(3)]
    source, sealed, plain = SnapshotStore(disks[0], key(1)), SnapshotStore(disks[1], key(2)), SnapshotStore(disks[2])
    snapshot = source.write(7, 2, FOUNDERS, chunks)
    for target in (sealed, plain):
        size, parts = source.parts(snapshot)
        data = list(parts)
        assert sum(map(len, data)) == size
        with target.receive(snapshot.name) as incoming:
            for part in data:
                incoming.add(part[:10])
                incoming.add(part[10:])
            incoming.finish()
        assert list(target.chunks(target.received(snapshot.name))) == chunks
    assert SECRET not in stored(disks[0]) + stored(disks[1])
    with pytest.raises(FailedPrecondition):
        list(SnapshotStore(disks[0], key(3)).chunks(snapshot))


def test_a_snapshot_that_arrives_damaged_or_cut_is_refused() -> None:
    source = SnapshotStore(VirtualDirectory(random.Random(1)))
    snapshot = source.write(7, 2, FOUNDERS, [b"x" * 1000])
    data = b"".join(source.parts(snapshot)[1])
    flipped = bytearray(data)
    flipped[60] ^= 1
    target = SnapshotStore(VirtualDirectory(random.Random(2)))
    with pytest.raises(SnapshotDamaged), target.receive(snapshot.name) as incoming:
        incoming.add(bytes(flipped))
        incoming.finish()
    with pytest.raises(SnapshotDamaged), target.receive(snapshot.name) as incoming:
        incoming.add(data[:-5])
        incoming.finish()
    assert target.newest() is None


def test_a_key_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "certificates" / "data.key"
    first, again = sealer_from(path), sealer_from(path)
    assert first is not None and again is not None
    assert again.open(first.seal(b"x", b"place"), b"place") == b"x"
    with pytest.raises(Sealed):
        again.open(first.seal(b"x", b"place"), b"another place")
    assert path.stat().st_mode & 0o077 == 0
    path.write_bytes(b"short")
    with pytest.raises(FailedPrecondition, match="is not a data key"):
        sealer_from(path)
    assert sealer_from(None) is None
