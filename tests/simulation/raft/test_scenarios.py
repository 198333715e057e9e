"""What the simulation has found once, set up by hand: each of these failed before it was mended."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from swarm.errors import SwarmError, Unavailable
from swarm.v1 import raft_pb2 as pb

from orchestrator.consensus import Committed
from orchestrator.raft import membership, replication
from orchestrator.raft.config import CompactionPolicy
from orchestrator.raft.engine import Role
from orchestrator.raft.proposals import Outcome, Proposal
from tests.simulation.raft import world
from tests.simulation.raft.hosts import Host


def settled() -> tuple[world.World, Host, Host, Host]:
    """Three members without faults: the world, the leader, the others."""
    made = world.World(1, world.Options(rude_callers=False))
    for _ in range(60):
        made.step(faults=False, clients=False)
    leader = made.leader()
    assert leader is not None
    one, other = (host for host in made.hosts.values() if host is not leader)
    return made, leader, one, other


def run_until(made: world.World, condition: Callable[[], bool]) -> None:
    """While clients write."""
    end = made.now + 60
    while not condition():
        made.step(faults=False)
        assert made.now < end


def with_one_far_behind(monkeypatch: pytest.MonkeyPatch) -> tuple[world.World, Host, Host, Host]:
    """The world, the leader, who comes back, needs a snapshot and takes 4 s to restore one, and the other."""
    made, leader, away, other = settled()
    for host in (leader, other):
        made.network.cut(host.name, away.name, both=True)
    run_until(made, lambda: leader.core.base_index > away.core.last_index)
    restore = away.core.machine.restore

    def slow_restore(index: int, chunks: Iterable[bytes]) -> None:
        away.spent += 4.0
        restore(index, chunks)

    monkeypatch.setattr(away.core.machine, "restore", slow_restore)
    made.network.heal_all()
    return made, leader, away, other


def test_a_member_that_was_cut_off_from_a_new_leader_needs_no_snapshot() -> None:
    """The new leader has sent it a batch, and no answer ever came: that says nothing about what it holds."""
    with world.small_scale():
        made, leader, away, other = settled()
        while made.counts["snapshot taken"] < 3:
            made.step(faults=False)
        for host in made.hosts.values():
            host.keep_whole_log()
        for _ in range(100):
            made.step(faults=False, clients=False)
        for host in (leader, other):
            made.network.cut(host.name, away.name, both=True)
        made.faults.transfer(other.name)
        while other.core.role is not Role.LEADER:
            made.step(faults=False, clients=False)
        for _ in range(200):  # longer than a batch is waited for
            made.step(faults=False)
        sent = made.counts["snapshot sent"]
        made.network.heal_all()
        for _ in range(100):
            made.step(faults=False, clients=False)
        assert made.counts["snapshot sent"] == sent
        assert away.core.applied_index() == other.core.commit_index


def test_a_member_catches_up_though_others_take_snapshots_while_it_installs_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Found by the soak. When it had installed one, the log began behind it: it needed the next one, and the one after."""
    with world.small_scale():
        made, leader, away, _ = with_one_far_behind(monkeypatch)
        sent, base = made.counts["snapshot sent"], leader.core.base_index
        run_until(made, lambda: leader.core.base_index >= base + 100)
        assert made.counts["snapshot sent"] == sent + 1
        assert away.core.applied_index() >= leader.core.commit_index - 10


@pytest.mark.parametrize("silent", [0, 1])
def test_leadership_is_handed_to_a_member_that_answers(silent: int) -> None:
    """Both hold all entries; one does not run just now."""
    made, leader, *others = settled()
    others[silent].paused_until = made.now + 10
    for _ in range(15):
        made.step(faults=False, clients=False)
    assert {host.name for host in others} == {node.id for node in leader.core.connected}
    term = leader.core.term
    leader.links.post(leader.core.transfer_leadership, None, 0.5, lambda _: None)
    for _ in range(10):
        made.step(faults=False, clients=False)
    assert (others[1 - silent].core.role, others[1 - silent].core.term) == (Role.LEADER, term + 1)


def test_members_that_are_often_too_busy_to_hear_answers_elect_a_leader_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found in CI: no leader for eight seconds on a busy machine. Who would not have heard the votes at its deadline waited for
    the next one, and the one after."""
    made, leader, one, other = settled()
    for host in (one, other):
        looks = itertools.count(1)
        monkeypatch.setattr(host.core, "is_receiving", lambda looks=looks: next(looks) % 8 == 0)
        made.network.cut(leader.name, host.name, both=True)
    began = made.now
    while Role.LEADER not in (one.core.role, other.core.role):
        made.step(faults=False, clients=False)
        assert made.now - began < 2.0


def write(leader: Host, command: bytes) -> list[Outcome]:
    """Hands it to the leader; what it answers will be in the list."""
    answers: list[Outcome] = []
    leader.core.propose(Proposal(command, float("inf"), answers.append))
    return answers


def test_a_change_of_members_whose_caller_has_gone_changes_nothing() -> None:
    """The leader went by members that no log held, and its next change was two at once: two leaders, two quorums."""
    made, leader, one, _ = settled()
    last = leader.core.last_index
    proposal = Proposal(b"", made.now, lambda _: None)
    change = functools.partial(membership.without, node_id=one.name, reachable=frozenset(made.hosts))
    leader.links.post(leader.core.change_configuration, change, proposal)
    proposal.expire()
    for _ in range(10):
        made.step(faults=False, clients=False)
    assert leader.core.last_index == last
    assert membership.voters(leader.core.history.current) == set(made.hosts)


def test_a_slow_link_is_not_fed_the_same_entries_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was on its way for longer than was waited for was sent again, behind itself, and was later still."""
    monkeypatch.setattr(replication, "BATCH_BYTES", 100_000)
    made, leader, other, slow = settled()
    for host in made.hosts.values():
        host.keep_whole_log()
    for host in (leader, other):
        made.network.cut(host.name, slow.name, both=True)
    for number in range(150):
        write(leader, b"k v%d %s" % (number, b"x" * 20_000))
        made.step(faults=False, clients=False)
    send, free, sent = made.network.send, made.now, 0

    def narrow(source: str, target: str, data: Any, later: float = 0.0) -> bool:
        """90 kB a second, in order, without loss."""
        nonlocal free, sent
        if (source, target) != (leader.name, slow.name):
            return send(source, target, data, later)
        size = sum(map(len, data))
        sent, free = sent + size, max(free, made.now) + size / 90_000
        life = made.network._lives[source, target]
        made.at(free, lambda: made.network.arrive(source, target, data, life))
        return True

    monkeypatch.setattr(made.network, "send", narrow)
    made.network.heal_all()
    end = made.now + 100
    while slow.core.applied_index() < leader.core.last_index:
        made.step(faults=False, clients=False)
        assert made.now < end, "33 s would do"
    assert sent < 9_000_000, "3 MB would do"


def test_writes_do_not_wait_long_for_a_successor_that_stopped() -> None:
    made, leader, *_ = settled()
    told: list[SwarmError | None] = []
    leader.links.post(leader.core.transfer_leadership, None, 20.0, told.append)
    made.step(faults=False, clients=False)
    transfer = leader.core._transfer
    assert transfer is not None
    made.hosts[transfer.target.id].paused_until = made.now + 60
    answers, began = write(leader, b"k v"), made.now
    while not answers:
        made.step(faults=False, clients=False)
        assert made.now - began < 2.0
    assert isinstance(answers[0], Committed)
    assert isinstance(told[0], Unavailable)


def test_a_leader_that_did_not_run_does_not_take_old_answers_for_later_ones() -> None:
    """It led on alone for as long as it had stood still, and called everybody reachable."""
    made, leader, *others = settled()
    leader.paused_until = made.now + 60
    for _ in range(6):  # answers that wait for it
        made.step(faults=False, clients=False)
    for other in others:
        made.network.cut(leader.name, other.name, both=True)
    while made.now <= leader.paused_until + 2.0:
        made.step(faults=False, clients=False)
    assert leader.core.role is not Role.LEADER


def test_who_may_not_stand_for_election_notices_the_silence_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A manager without room named a leader that was long gone, and `swarm recover` was refused there because of it."""
    made, leader, one, other = settled()
    monkeypatch.setattr(other.core.journal, "has_margin", lambda: False)
    for host in (leader, one):
        made.network.cut(host.name, other.name, both=True)
    for _ in range(100):
        made.step(faults=False, clients=False)
    assert other.core.leader_node is None


def test_a_new_leader_keeps_what_a_member_needs_that_installs_the_snapshot_of_the_former(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with world.small_scale():
        made, leader, away, other = with_one_far_behind(monkeypatch)
        sent, base = made.counts["snapshot sent"], leader.core.base_index
        run_until(made, away.core.is_installing)
        made.faults.transfer(other.name)
        run_until(made, lambda: other.core.base_index >= base + 75)
        assert made.counts["snapshot sent"] == sent + 1
        assert away.core.applied_index() >= other.core.commit_index - 10


def test_a_tick_waits_where_there_is_nothing_to_do_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole core was used while a snapshot was installed, and while a leader could not serve reads yet."""
    _, leader, one, _ = settled()
    waits: list[float] = []
    for host in (leader, one):
        monkeypatch.setattr(host.links, "deliver", waits.append)
    one.core._installing = pb.RaftSnapshotOffer(index=1000)
    one.core.set_commit_index(one.core.applied_index() + 1)
    monkeypatch.setattr(leader.core, "_is_ready", lambda: False)
    leader.core.read(lambda _: None)
    leader.core.set_next_heartbeat(leader.core.clock() + 1.0)
    for host in (leader, one):
        host.core.journal.sync()
        host.core.wait(0.1)
    assert all(wait > 0.0 for wait in waits) and len(waits) == 2


def test_a_full_disk_is_not_called_empty_while_the_member_syncs() -> None:
    made, leader, one, _ = settled()
    spoken: list[pb.RaftMessage] = []
    one.disk_begins = lambda _, message: spoken.append(message)  # type: ignore[method-assign]
    one.core._no_room_for = (1 << 20, 1)
    one.core._is_disk_full = lambda: True  # type: ignore[method-assign]
    write(leader, b"k v")
    while not spoken:
        made.step(faults=False, clients=False)
    assert spoken[0].append_response.disk_full


def test_large_entries_are_worth_a_snapshot_before_they_are_many() -> None:
    """1,900 entries of 50 kB stayed in memory, and thousands of 1 MB would have."""
    policy = CompactionPolicy()
    assert not policy.is_due(1_000, 20 << 20), "each snapshot costs as much as the state is large"
    assert policy.is_due(2_000, 20 << 20)
    assert policy.is_due(64, 64 << 20)
    assert policy.is_due(40_000, 1 << 20)


def test_the_end_of_a_transfer_is_that_of_its_own_leadership() -> None:
    """That of an earlier one was taken for the end of the transfer under way: the log moved on without what that needs."""
    _, leader, one, _ = settled()
    progress = leader.core.progress[one.name]
    progress.transferring = progress.snapshot_sent = 200
    leader.core.snapshot_transfer_ended(one.name, leader.core.term - 1, 200, True)
    leader.core.snapshot_transfer_ended(one.name, leader.core.term, 100, False)
    assert (progress.transferring, progress.snapshot_sent) == (200, 200)
    leader.core.snapshot_transfer_ended(one.name, leader.core.term, 200, False)
    assert (progress.transferring, progress.snapshot_sent) == (0, 0)
