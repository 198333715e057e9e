"""Who is alive, as the leader judges it."""

from __future__ import annotations

import pytest

from orchestrator.dispatcher.liveness import RECONNECT_GRACE, LeaderContact, Liveness, heartbeat_period


def run(liveness: Liveness, since: float, until: float) -> list[tuple[float, str]]:
    """Judges four times a second; who was called down, and when."""
    found = []
    ticks = int((until - since) * 4)
    for tick in range(1, ticks + 1):
        now = since + tick / 4
        found += [(now, node_id) for node_id in liveness.judge(now)]
    return found


@pytest.mark.parametrize(
    ("nodes", "configured", "period"),
    [(1, 0, 1.0), (200, 0, 1.0), (201, 0, 1.5), (1000, 0, 5.0), (3, 4.0, 4.0), (3, 0.1, 1.0), (100_000, 0, 60.0)],
)
def test_all_nodes_together_beat_at_most_200_times_a_second(nodes: int, configured: float, period: float) -> None:
    assert heartbeat_period(nodes, configured) == period


def test_a_silent_node_is_down_after_three_periods_and_named_once() -> None:
    liveness = Liveness(1.0, 0.0)
    liveness.heard("n1", 10.0)
    assert run(liveness, 10.0, 20.0) == [(13.0, "n1")]


def test_a_beating_node_stays_up() -> None:
    liveness = Liveness(1.0, 0.0)
    for second in range(20):
        liveness.heard("n1", float(second))
        assert run(liveness, second, second + 1) == []


def test_a_new_leader_grants_an_allowance_and_time_to_find_another_manager() -> None:
    liveness = Liveness(1.0, 100.0)
    liveness.expect(["n1", "n2"])
    liveness.heard("n2", 106.0)
    assert run(liveness, 100.0, 108.5) == [(108.0, "n1")]


def test_the_node_of_the_leader_before_gets_no_grace() -> None:
    liveness = Liveness(1.0, 100.0)
    liveness.expect(["old", "n1"], suspects={"old"})
    assert run(liveness, 100.0, 104.0) == [(103.0, "old")]


def test_nodes_of_a_lost_manager_may_find_another_one_first() -> None:
    liveness = Liveness(1.0, 0.0)
    for node_id in ("n1", "n2", "m2"):
        liveness.heard(node_id, 10.0, via="m2")
    assert run(liveness, 10.0, 11.0) == []
    liveness.manager_lost("m2", 11.0)
    liveness.manager_lost("m2", 12.0)  # once only
    liveness.heard("n2", 13.0, via="m3")
    assert run(liveness, 11.0, 15.0) == [(13.0, "m2")]  # its own node: nothing extra
    liveness.heard("n2", 15.0, via="m3")
    assert run(liveness, 15.0, 19.5) == [(18.0, "n2"), (11.0 + 3.0 + RECONNECT_GRACE, "n1")]


def test_time_in_which_the_judge_did_not_run_is_nobodys_silence() -> None:
    liveness = Liveness(1.0, 0.0)
    liveness.heard("n1", 10.0)
    assert liveness.judge(10.1) == []
    assert liveness.judge(60.0) == []  # stopped for 50 s: the node may have beaten all the while
    assert run(liveness, 60.0, 70.0) != []


def test_a_longer_period_calls_nobody_down_for_the_old_one() -> None:
    liveness = Liveness(1.0, 0.0)
    liveness.heard("n1", 10.0)
    liveness.change_period(4.0, 12.5)
    assert run(liveness, 12.5, 24.0) == []


def test_a_forgotten_node_is_not_judged() -> None:
    liveness = Liveness(1.0, 0.0)
    liveness.heard("n1", 10.0)
    liveness.forget("n1")
    assert run(liveness, 10.0, 20.0) == []


def test_a_follower_that_hears_no_leader_for_two_periods_is_cut_off() -> None:
    contact = LeaderContact()
    assert not contact.is_fresh(0.0, 1.0)
    contact.heard(10.0)
    checks = [contact.check(10.0 + tick / 8, 1.0) for tick in range(1, 18)]
    assert checks == [True] * 16 + [False]


def test_a_follower_that_did_not_run_could_not_have_heard_its_leader() -> None:
    contact = LeaderContact()
    contact.heard(10.0)
    assert contact.check(10.1, 1.0)
    assert contact.check(70.0, 1.0)  # it was stopped for a minute
    assert not all(contact.check(70.0 + tick / 8, 1.0) for tick in range(1, 18))
