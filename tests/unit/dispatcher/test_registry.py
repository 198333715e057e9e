"""One session for each node id."""

from __future__ import annotations

from swarm.v1 import dispatcher_pb2 as dispatcher

from orchestrator.dispatcher.registry import Claim, SessionRegistry

SUPERSEDED = dispatcher.SESSION_END_REASON_SUPERSEDED
CLONED = dispatcher.SESSION_END_REASON_CLONED
RECONNECTED = dispatcher.SESSION_END_REASON_UNSPECIFIED


def claim(session_id: str, boot_id: str, counter: int, *, via: str = "", resumed: bool = False) -> Claim:
    return Claim("n1", session_id, boot_id, counter, via, resumed)


def test_the_newer_boot_wins_and_the_older_one_is_told() -> None:
    registry = SessionRegistry()
    old, new = claim("s1", "a", 1), claim("s2", "b", 2)
    assert registry.claim(old).accepted
    verdict = registry.claim(new)
    assert verdict.accepted
    assert (verdict.loser, verdict.reason) == (old, SUPERSEDED)
    late = registry.claim(claim("s3", "a", 1))
    assert not late.accepted
    assert late.reason == SUPERSEDED
    assert registry.holder("n1") == new


def test_an_agent_that_comes_back_to_another_manager_keeps_its_place() -> None:
    registry = SessionRegistry()
    here, there = claim("s1", "a", 1, via="m1"), claim("s2", "a", 1, via="m2")
    registry.claim(here)
    verdict = registry.claim(there)
    assert verdict.accepted
    assert (verdict.loser, verdict.reason) == (here, RECONNECTED)
    assert not registry.end("n1", "s1")  # the old stream's end ends nothing
    assert registry.holder("n1") == there


def test_old_sessions_that_are_announced_to_a_new_leader_are_ordered_by_their_beginning() -> None:
    registry = SessionRegistry()
    registry.claim(claim("0002", "a", 1, via="m2", resumed=True))
    verdict = registry.claim(claim("0001", "a", 1, via="m1", resumed=True))
    assert not verdict.accepted
    assert verdict.loser is not None
    assert verdict.loser.via == "m1"


def test_two_boots_that_claim_one_counter_in_turn_are_a_clone() -> None:
    registry = SessionRegistry()
    registry.claim(claim("s1", "a", 5))
    assert registry.claim(claim("s2", "b", 5)).reason == SUPERSEDED  # may be a restored backup
    verdict = registry.claim(claim("s3", "a", 5))
    assert not verdict.accepted
    assert verdict.reason == CLONED
    assert "n1" in verdict.message
    holder = registry.holder("n1")
    assert holder is not None
    assert holder.boot_id == "b"


def test_a_later_boot_ends_the_story_of_a_clone() -> None:
    registry = SessionRegistry()
    registry.claim(claim("s1", "a", 5))
    registry.claim(claim("s2", "b", 5))
    registry.claim(claim("s3", "c", 6))
    assert registry.claim(claim("s4", "a", 7)).accepted


def test_sessions_of_a_lost_manager_no_longer_count() -> None:
    registry = SessionRegistry()
    mine = claim("s1", "a", 1, via="m1")
    registry.claim(mine)
    assert registry.end_via("m1") == [mine]
    assert registry.holder("n1") is None
    assert len(registry) == 0
    assert registry.claim(claim("s2", "a", 1, via="m2")).loser is None


def test_the_same_session_announced_twice_is_one() -> None:
    registry = SessionRegistry()
    registry.claim(claim("s1", "a", 1))
    verdict = registry.claim(claim("s1", "a", 1))
    assert verdict.accepted
    assert verdict.loser is None
