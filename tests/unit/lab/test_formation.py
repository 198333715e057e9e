"""Who makes a lab's swarm and who joins it, given what each host says of itself."""

from __future__ import annotations

import re

import pytest
from swarm.errors import FailedPrecondition
from swarm.v1 import node_pb2, types_pb2

from orchestrator.lab import formation, hosts, wiring
from orchestrator.lab.formation import plan_formation, reasons, way_out
from orchestrator.lab.layout import LabHost, LabLayout, plan

LAYOUT = plan("t", 3, 2, [])
OUTSIDE = node_pb2.LocalState(state="inactive")


def manager(swarm: str = "a") -> node_pb2.LocalState:
    return node_pb2.LocalState(state="active", cluster_id=swarm, role=types_pb2.NODE_ROLE_MANAGER)


def worker(swarm: str = "a") -> node_pb2.LocalState:
    return node_pb2.LocalState(state="active", cluster_id=swarm, role=types_pb2.NODE_ROLE_WORKER)


def states(*of: node_pb2.LocalState) -> dict[str, node_pb2.LocalState]:
    return {host.name: state for host, state in zip(LAYOUT.hosts, of, strict=True)}


def names(found: tuple[LabHost, ...]) -> list[str]:
    return [host.name for host in found]


def test_a_swarm_is_made_where_nobody_is_in_one() -> None:
    found = plan_formation(LAYOUT, states(*[OUTSIDE] * 5))
    assert found.founder is LAYOUT.host("m1")
    assert names(found.joining) == ["m2", "m3", "w1", "w2"]
    assert names(found.managers) == ["m1"]


def test_a_first_manager_that_left_joins_the_swarm_of_the_others() -> None:
    """Found by a newcomer: it made a second swarm beside the healthy one."""
    found = plan_formation(LAYOUT, states(OUTSIDE, manager(), manager(), worker(), worker()))
    assert found.founder is None
    assert names(found.joining) == ["m1"]
    assert names(found.managers) == ["m2", "m3"]


def test_a_promoted_worker_is_a_manager_to_join() -> None:
    found = plan_formation(LAYOUT, states(OUTSIDE, OUTSIDE, OUTSIDE, manager(), worker()))
    assert names(found.managers) == ["w1"]
    assert found.founder is None


def test_nobody_makes_a_swarm_beside_workers_that_have_one() -> None:
    with pytest.raises(FailedPrecondition, match=r"w1, w2 of lab 't' .* no manager .*--node w1 swarm leave --force"):
        plan_formation(LAYOUT, states(OUTSIDE, OUTSIDE, OUTSIDE, worker(), worker()))


def test_without_a_leader_it_is_said_whom_nobody_can_wait_for() -> None:
    lost = plan_formation(LAYOUT, states(OUTSIDE, OUTSIDE, manager(), worker(), OUTSIDE))
    words = way_out(LAYOUT, lost)
    assert words.startswith(". m1, m2 of lab 't' can only join anew")
    assert "`swarmctl --lab t --node m3 swarm recover --force`" in words
    assert way_out(LAYOUT, plan_formation(LAYOUT, states(*[manager()] * 3, worker(), OUTSIDE))) == ""


def test_hosts_of_two_swarms_are_told_apart_at_once() -> None:
    with pytest.raises(FailedPrecondition, match=r"different swarms: m1 and m2, m3, w1, w2; .*--node m1 swarm leave"):
        plan_formation(LAYOUT, states(manager("b"), manager(), manager(), worker(), worker()))


async def test_hosts_that_are_not_ready_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """A manager that the swarm was recovered without knows the cure; `lab up` only said that it was not ready."""
    said = {
        "m1": manager(),
        "m2": node_pb2.LocalState(state="active", message="recovered without this manager; leave"),
        "m3": node_pb2.LocalState(state="active", message="recovered without this manager; leave"),
        "w1": node_pb2.LocalState(state="pending"),
        "w2": None,
    }

    async def answer(host: LabHost, timeout: float = 0) -> node_pb2.LocalState | None:
        return said[host.name]

    async def link_is_up(layout: LabLayout, host: LabHost) -> bool:
        return host.name != "m1"

    monkeypatch.setattr(hosts, "daemon_state", answer)
    monkeypatch.setattr(wiring, "link_is_up", link_is_up)
    assert await reasons(LAYOUT, {"m2", "m3", "w1", "w2"}) == (
        "m2, m3: recovered without this manager; leave; w1: its membership is pending; w2: swarmd does not answer"
    )
    assert await reasons(LAYOUT, {"m1"}) == "m1: the network cable is pulled; plug it in with `swarmctl lab heal`"
    assert await reasons(LAYOUT, set()) == ""


async def test_a_host_that_is_just_joining_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is neither in a swarm nor outside; who takes it for either is wrong."""
    layout = LabLayout("t", 0, LAYOUT.hosts[:1])
    turns = [None, node_pb2.LocalState(state="pending", message="joining a swarm"), manager()]

    async def answer(host: LabHost, timeout: float = 0) -> node_pb2.LocalState | None:
        return turns.pop(0) if len(turns) > 1 else turns[0]

    monkeypatch.setattr(hosts, "daemon_state", answer)
    assert (await formation._settled_states(layout))["m1"] == manager()

    turns[:] = [node_pb2.LocalState(state="pending", message="joining a swarm")]
    monkeypatch.setattr(formation, "SETTLE_TIMEOUT", 0.2)
    with pytest.raises(Exception, match=re.escape("m1 is still joining a swarm; repeat `swarmctl lab up --name t`")):
        await formation._settled_states(layout)
