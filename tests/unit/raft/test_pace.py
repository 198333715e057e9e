"""What keeps a member's neighbours and its own other threads going: small syncs, breaths, and few messages."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from orchestrator.consensus import Member
from orchestrator.raft import membership, replication
from orchestrator.raft.snapshots import SnapshotStore
from tests.simulation.raft.virtual_disk import VirtualDirectory
from tests.unit.raft.conftest import Lab, until

FOUNDERS = membership.founding([Member("a", "a:1")])


def test_a_snapshot_is_synced_as_it_grows() -> None:
    """One sync at the end would be a burst that the journal's syncs wait behind."""
    disk, done = VirtualDirectory(random.Random(1)), []
    disk.spend = done.append
    breaths: list[int] = []
    store = SnapshotStore(disk, breathe=lambda: breaths.append(done.count("write")))
    store.write(7, 1, FOUNDERS, (os.urandom(64 << 10) for _ in range(32)))
    longest = max(part.count("write") for part in _parts(done))
    assert 2 <= longest <= 5  # blocks of 64 KiB
    assert breaths == list(range(2, 34))  # after each block of the state, of which the first is the second of the file


def _parts(operations: list[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for operation in operations:
        if operation == "sync":
            yield part
            part = []
        else:
            part.append(operation)


async def test_the_news_of_a_commit_travels_with_the_next_entries(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers that follow one another cost each follower one message a write, and a heartbeat now and then; the last commit is
    told all the same. However slow the machine: the news waits for as long as it takes."""
    monkeypatch.setattr(replication, "_COMMIT_NEWS_WAIT", 60.0)
    managers = await lab.grow(3)
    leader = lab.leader()
    assert leader is not None and leader.node._core is not None
    core = leader.node._core
    before = core.sequence
    for number in range(200):
        await leader.node.propose(b"%d" % number, timeout=10.0)
    told = (core.sequence - before) / 2 / 200  # messages to each follower, for each write
    assert told < 1.9, f"{told:.2f} messages to each follower for each write"
    await until(lambda: all(len(manager.machine.commands) == 200 for manager in managers))
