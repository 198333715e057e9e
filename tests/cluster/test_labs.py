"""A lab that is started again after its hosts left their swarm: one swarm, and a reason where there cannot be one."""

from __future__ import annotations

import asyncio

import pytest
from swarm.errors import DeadlineExceeded, FailedPrecondition

from orchestrator.lab import lab as labs
from tests.support.lab import TestLab, eventually


def swarm_of(lab: TestLab, host: str) -> str:
    (node,) = lab.json("--node", host, "info")["nodes"]
    return str(node["cluster_id"])


def test_a_first_manager_that_left_comes_back_into_the_swarm_of_the_others(own_lab: TestLab) -> None:
    """Found by a newcomer: `lab up` made a second swarm on it, waited a minute for the others and gave up."""
    lab = own_lab
    lab.swarmctl("service", "create", "--name", "web", "--replicas", "2", "web")
    before = swarm_of(lab, "m2")
    lab.swarmctl("swarm", "leave", node="m1")
    said = lab.swarmctl("lab", "up")
    assert "Creating the swarm" not in said
    assert "Joining m1" in said
    assert {swarm_of(lab, host.name) for host in lab.layout.hosts} == {before}
    lab.wait_running("web", 2)

    # Somebody makes a second one on purpose: no waiting for what cannot be.
    lab.swarmctl("swarm", "leave", node="m1")
    lab.swarmctl("swarm", "init", "--advertise-addr", lab.host("m1").address, node="m1")
    code, words = lab.refused("lab", "up")
    assert code == FailedPrecondition.exit_code
    assert "are in different swarms: m1 and m2, m3, w1;" in words
    assert "--node m1 swarm leave --force" in words
    lab.swarmctl("swarm", "leave", "--force", node="m1")
    lab.swarmctl("lab", "up")
    assert swarm_of(lab, "m1") == before


def test_managers_that_the_swarm_went_on_without_say_so_when_the_lab_is_started(own_lab: TestLab) -> None:
    lab = own_lab
    lab.swarmctl("lab", "kill", "m2", "m3")
    lab.swarmctl("swarm", "recover", "--force", node="m1", timeout=120)
    lab.swarmctl("lab", "start", "m2", "m3")

    def both_say_why() -> bool:
        with pytest.raises(DeadlineExceeded) as failure:
            asyncio.run(labs.wait_ready(lab.layout, {"m1", "m2", "m3"}, timeout=2))
        words = str(failure.value)
        assert words.startswith("m2, m3 of lab")
        return words.count("recovered or restored without") == 2 and "`swarmctl swarm leave --force`" in words

    eventually(both_say_why)
    for host in ("m2", "m3"):
        lab.swarmctl("swarm", "leave", "--force", node=host)
    assert "Joining m2, m3" in lab.swarmctl("lab", "up")
