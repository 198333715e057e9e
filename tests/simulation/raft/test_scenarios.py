"""What the simulation has found once, set up by hand: each of these failed before it was mended."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest

from orchestrator.raft.engine import Role
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
        made, leader, away, other = settled()
        for host in (leader, other):
            made.network.cut(host.name, away.name, both=True)
        while leader.core.base_index <= away.core.last_index:
            made.step(faults=False)
        restore = away.core.machine.restore

        def slow_restore(index: int, chunks: Iterable[bytes]) -> None:
            away.spent += 4.0
            restore(index, chunks)

        monkeypatch.setattr(away.core.machine, "restore", slow_restore)
        made.network.heal_all()
        sent, base = made.counts["snapshot sent"], leader.core.base_index
        while leader.core.base_index < base + 100:
            made.step(faults=False)
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
