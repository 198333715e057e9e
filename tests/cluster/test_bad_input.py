"""What a user gets wrong: one clear sentence, a stable exit code, and nothing half made."""

from __future__ import annotations

import pytest

from tests.support.lab import TestLab, eventually


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("service", "create", "--detach", "nosuchimage"), 3, ("nosuchimage",)),
        (("service", "create", "--detach", "UPPER CASE"), 2, ("UPPER CASE",)),
        (("service", "create", "--detach", "--publish", "99999:80", "web"), 2, ("99999",)),
        (("service", "create", "--detach", "--limit-memory", "1", "web"), 2, ("memory",)),
        (("service", "create", "--detach", "--replicas", "-1", "web"), 2, ("replicas",)),
        (("service", "create", "--detach", "--network", "nosuch", "web"), 3, ("nosuch",)),
        (("service", "create", "--detach", "--name", "a b", "web"), 2, ("a b",)),
        (("service", "inspect", "nosuch"), 3, ("nosuch",)),
        (("service", "scale", "nosuch=3"), 3, ("nosuch",)),
        (("node", "inspect", "nosuch"), 3, ("nosuch",)),
        (("network", "rm", "nosuch"), 3, ("nosuch",)),
        (("network", "create", "-d", "overlay", "default"), 4, ("default",)),
        (("network", "create", "-d", "bridge", "b"), 2, ("bridge",)),
    ],
)
def test_refused_with_a_sentence(lab: TestLab, arguments: tuple[str, ...], code: int, words: tuple[str, ...]) -> None:
    got, said = lab.refused(*arguments)
    assert got == code, said
    for word in words:
        assert word in said
    assert not lab.services()


def test_a_taken_name_and_a_taken_port_name_the_owner(lab: TestLab) -> None:
    lab.swarmctl("service", "create", "--detach", "--name", "first", "--publish", "8099:80", "web")
    code, said = lab.refused("service", "create", "--detach", "--name", "first", "web")
    assert code == 4 and "first" in said
    code, said = lab.refused("service", "create", "--detach", "--name", "second", "--publish", "8099:80", "web")
    assert code == 4 and "8099" in said and "first" in said
    assert list(lab.services()) == ["first"]


def test_a_network_in_use_is_not_removed(lab: TestLab) -> None:
    lab.swarmctl("network", "create", "-d", "overlay", "used")
    lab.swarmctl("service", "create", "--detach", "--name", "user", "--network", "used", "web")
    code, said = lab.refused("network", "rm", "used")
    assert code == 4 and "user" in said


def test_an_image_that_vanished_is_told_in_service_ps(lab: TestLab) -> None:
    lab.swarmctl("service", "create", "--detach", "--name", "odd", "web", "/no/such/program")
    error = eventually(lambda: [t.error for t in lab.tasks("odd") if "/no/such/program" in t.error])
    assert "Traceback" not in error[0]


def test_a_host_of_a_swarm_does_not_join_again(lab: TestLab) -> None:
    token = lab.swarmctl("swarm", "join-token", "-q", "worker").strip()
    code, said = lab.refused("--node", "w1", "swarm", "join", "--token", token, f"{lab.host('m1').address}:2377")
    assert code == 10 and "leave" in said
