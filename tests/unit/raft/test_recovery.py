"""Rebuilding a cluster from one member, and snapshots as files."""

from __future__ import annotations

from pathlib import Path

import pytest
from swarm.errors import AlreadyExists, FailedPrecondition, InvalidArgument

from orchestrator.consensus import Member
from orchestrator.raft import recovery
from orchestrator.raft.config import CompactionPolicy
from tests.unit.raft.conftest import Lab, Manager, until


async def filled(lab: Lab, count: int) -> list[bytes]:
    commands = [b"command %d" % number for number in range(count)]
    for command in commands:
        await lab.managers[0].node.propose(command, timeout=10)
    return commands


@pytest.mark.parametrize("compaction", [CompactionPolicy(), CompactionPolicy(entries=10, keep_entries=2)])
async def test_one_member_goes_on_alone_with_everything(lab: Lab, compaction: CompactionPolicy) -> None:
    lab.compaction = compaction
    managers = await lab.grow(3)
    commands = await filled(lab, 30)
    survivor = managers[1]
    await until(lambda: survivor.machine.commands == commands)
    for manager in managers:
        await manager.stop()
    lab.managers.clear()
    directory = lab.directory / survivor.name
    found = recovery.force_new_cluster(directory, survivor.member, dry_run=True)
    assert {member.node_id for member in found.lost} == {managers[0].name, managers[2].name}
    assert recovery.force_new_cluster(directory, survivor.member, dry_run=False) == found
    alone = Manager(lab, survivor.name, address=survivor.address)
    lab.managers.append(alone)
    await alone.start()
    await until(lambda: alone.node.leadership().ready)
    assert alone.machine.commands == commands
    await alone.node.propose(b"goes on", timeout=10)
    new = Manager(lab, "new")
    await new.start()
    lab.managers.append(new)
    await new.join(alone)
    await until(lambda: new.machine.commands == [*commands, b"goes on"])


def test_recovery_needs_a_log(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="holds no log"):
        recovery.force_new_cluster(tmp_path, Member("a", "a:1"), dry_run=True)


async def test_recovery_needs_a_member(lab: Lab) -> None:
    [only] = await lab.grow(1)
    await only.stop()
    with pytest.raises(FailedPrecondition, match="was not a manager of this log"):
        recovery.force_new_cluster(lab.directory / only.name, Member("stranger", "a:1"), dry_run=False)
    lab.managers.clear()


async def test_a_saved_snapshot_founds_a_new_cluster(lab: Lab, tmp_path: Path) -> None:
    [first] = await lab.grow(1)
    commands = await filled(lab, 20)
    path = tmp_path / "backup"
    saved = await first.node.save_snapshot(path, timeout=10)
    assert recovery.inspect(path) == saved
    with pytest.raises(AlreadyExists):
        await first.node.save_snapshot(path, timeout=10)
    new = Manager(lab, "new")
    recovery.restore(path, lab.directory / "new", new.member)
    lab.managers.append(new)
    await new.start()
    await until(lambda: new.node.leadership().ready)
    assert new.machine.commands == commands
    await new.node.propose(b"goes on", timeout=10)
    with pytest.raises(FailedPrecondition, match="is not empty"):
        recovery.restore(path, lab.directory / "new", new.member)


async def test_a_damaged_or_missing_file_is_refused(lab: Lab, tmp_path: Path) -> None:
    [first] = await lab.grow(1)
    await filled(lab, 3)
    path = tmp_path / "backup"
    await first.node.save_snapshot(path, timeout=10)
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    for content in (data, data[:-30], b"root:x:0:0:root:/root:/bin/bash\n" * 40, b""):
        path.write_bytes(content)
        with pytest.raises(
            InvalidArgument, match=r"backup is not the snapshot of a swarm, or it is damaged \(.+\)"
        ) as told:
            recovery.inspect(path)
        assert "this manager" not in str(told.value)
    with pytest.raises(InvalidArgument, match="there is no file"):
        recovery.inspect(tmp_path / "nothing")
