"""What a user gets wrong: one clear sentence, a stable exit code, and nothing half made."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.lab import TestLab, eventually


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("service", "create", "--detach", "nosuchimage"), 3, ("nosuchimage",)),
        (("service", "create", "--detach", "UPPER CASE"), 2, ("UPPER CASE",)),
        (("service", "create", "--detach", "--publish", "99999:80", "web"), 2, ("99999",)),
        (("service", "create", "--detach", "--publish", "2377:80", "web"), 2, ("2377/tcp", "the swarm's own port")),
        (("service", "create", "--detach", "--publish", "1-65535:1-65535", "web"), 2, ("65535", "at most 1024")),
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
        (("network", "create", "-d", "overlay", "--subnet", "0.1.0.0/16", "b"), 2, ("0.1.0.0/16", "reserved")),
        (("node", "update", "--name", "m1", "w1"), 4, ("m1",)),
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


def test_a_subnet_that_the_hosts_are_in_is_refused_and_names_one(lab: TestLab) -> None:
    code, said = lab.refused("network", "create", "-d", "overlay", "--subnet", "198.18.0.0/15", "b")
    assert code == 2 and "m1" in said and lab.host("m1").address in said


def test_a_network_in_use_is_not_removed(lab: TestLab) -> None:
    lab.swarmctl("network", "create", "-d", "overlay", "used")
    lab.swarmctl("service", "create", "--detach", "--name", "user", "--network", "used", "web")
    code, said = lab.refused("network", "rm", "used")
    assert code == 4 and "user" in said


def test_an_image_that_vanished_is_told_in_service_ps(lab: TestLab) -> None:
    lab.swarmctl("service", "create", "--detach", "--name", "odd", "web", "/no/such/program")
    error = eventually(lambda: [t.error for t in lab.tasks("odd") if "/no/such/program" in t.error])
    assert "Traceback" not in error[0]


def test_a_registry_that_swallows_packets_is_told_while_it_is_waited_for_and_given_up(lab: TestLab) -> None:
    registry = lab.layout.registry_address
    rules = f"add table inet swallow; add chain inet swallow out {{ type filter hook output priority 0; }}; \
add rule inet swallow out ip daddr {registry} tcp dport 5999 drop"
    try:
        for host in lab.layout.hosts:
            lab.swarmctl("lab", "exec", host.name, "--", "nft", rules)
        lab.swarmctl("service", "create", "--detach", "--no-resolve-image", "--name", "odd", f"{registry}:5999/x:1")
        told = eventually(lambda: [t for t in lab.tasks("odd") if t.state == "preparing" and t.error])
        assert "has not answered yet" in told[0].error
        given_up = eventually(lambda: [t for t in lab.tasks("odd") if t.state == "rejected"])
        assert "did not answer on port 5999 within 5 s" in given_up[0].error
    finally:
        for host in lab.layout.hosts:
            lab.swarmctl("lab", "exec", host.name, "--", "nft", "delete table inet swallow")


def test_a_registry_that_refuses_is_told_within_seconds(lab: TestLab) -> None:
    lab.swarmctl("service", "create", "--detach", "--no-resolve-image", "--name", "odd", "127.0.0.1:1/x:1")
    refused = eventually(lambda: [t for t in lab.tasks("odd") if t.error], timeout=15)
    assert "connection refused" in refused[0].error


def test_a_host_of_a_swarm_does_not_join_again(lab: TestLab) -> None:
    token = lab.swarmctl("swarm", "join-token", "-q", "worker").strip()
    code, said = lab.refused("--node", "w1", "swarm", "join", "--token", token, f"{lab.host('m1').address}:2377")
    assert code == 10 and "leave" in said


def test_a_network_without_room_for_all_replicas_says_so(lab: TestLab) -> None:
    lab.swarmctl("network", "create", "-d", "overlay", "--subnet", "10.99.0.0/29", "tiny")
    lab.swarmctl("service", "create", "--detach", "--name", "many", "--network", "tiny", "--replicas", "10", "web")
    eventually(lambda: 'network "tiny" has no free address' in lab.swarmctl("service", "ps", "--no-trunc", "many"))
    assert 0 < len(lab.running("many")) < 10


def test_of_many_that_want_the_same_name_or_port_at_once_one_gets_it(lab: TestLab) -> None:
    def create(number: int) -> subprocess.CompletedProcess[str]:
        what = ("--name", "same") if number % 2 else ("--name", f"port{number}", "--publish", "8098:80")
        host = lab.layout.managers[number % 3].name
        return lab.run("service", "create", "--detach", *what, "web", node=host)

    with ThreadPoolExecutor(6) as threads:
        done = list(threads.map(create, range(12)))
    for group, words in (
        (done[1::2], 'service "same" exists already'),
        (done[0::2], "port 8098/tcp is already published"),
    ):
        assert sorted(one.returncode for one in group) == [0, 4, 4, 4, 4, 4]
        assert all(words in one.stderr for one in group if one.returncode)
    assert len(lab.services()) == 2


def test_a_program_that_ends_at_once_does_not_count_as_converged(lab: TestLab) -> None:
    code, said = lab.refused("service", "create", "--name", "brief", "--wait-timeout", "4s", "web", "/bin/false")
    assert code == 7 and "did not converge" in said and "exit code 1" in said


def test_tokens_that_are_malformed_foreign_or_rotated(lab: TestLab) -> None:
    address = f"{lab.host('m1').address}:2377"
    token = lab.swarmctl("swarm", "join-token", "-q", "worker").strip()
    lab.swarmctl("swarm", "leave", node="w2")
    gone = [node["id"] for node in lab.json("node", "ls") if node["description"]["hostname"] == "w2"]
    try:
        foreign = f"SWMTKN-1-{'1' * 50}-{token.rpartition('-')[2]}"
        for wrong, expected, words in (
            ("", 2, "malformed"),
            ("💥", 2, "malformed"),
            (token[:40], 2, "malformed"),
            (foreign, 6, "another cluster"),
        ):
            code, said = lab.refused("--node", "w2", "swarm", "join", "--token", wrong, address)
            assert (code, words in said) == (expected, True), said
        code, said = lab.refused(
            "--node", "w2", "swarm", "join", "--token", token, "--advertise-addr", "127.0.0.1", address
        )
        assert code == 2 and "no other host reaches it" in said
        lab.swarmctl("swarm", "join-token", "--rotate", "worker")
        code, said = lab.refused("--node", "w2", "swarm", "join", "--token", token, address)
        assert code == 6 and "rotated" in said
    finally:
        token = lab.swarmctl("swarm", "join-token", "-q", "worker").strip()
        lab.swarmctl("swarm", "join", "--token", token, address, node="w2")
        lab.wait_ready("w2")
    for node_id in gone:
        lab.swarmctl("node", "rm", "--force", node_id)


def test_a_viewer_looks_and_changes_nothing(lab: TestLab, tmp_path: Path) -> None:
    lab.swarmctl("cert", "issue", "--role", "viewer", "--output", str(tmp_path / "eve"), "eve")
    manager = ("--host", f"{lab.host('m2').address}:2378", "--tls", str(tmp_path / "eve"))
    assert lab.run(*manager, "service", "ls").returncode == 0
    code, said = lab.refused(*manager, "service", "create", "--detach", "web")
    assert code == 6 and "viewer" in said and not lab.services()
    joining_port = ("--host", f"{lab.host('m2').address}:2377", "--tls", str(tmp_path / "eve"))
    code, said = lab.refused(*joining_port, "service", "ls")
    assert code in (5, 6, 10) and "2378" in said, said


def test_a_live_node_is_not_removed_by_mistake_and_the_last_manager_not_demoted(lab: TestLab) -> None:
    code, said = lab.refused("node", "rm", "w1")
    assert code == 10 and "--force" in said
    code, said = lab.refused("node", "rm", "m2")
    assert code == 10 and "demote" in said
    try:
        lab.swarmctl("node", "demote", "m2", "m3")
        eventually(lambda: [n for n in lab.nodes().values() if n.get("manager_status")] == [lab.nodes()["m1"]])
        code, said = lab.refused("node", "demote", "m1")
        assert code == 10 and "only manager" in said
    finally:
        lab.swarmctl("node", "promote", "m2", "m3")
        reachable = ("Leader", "Reachable")
        eventually(lambda: sum(n.get("manager_status") in reachable for n in lab.nodes().values()) == 3, timeout=40)
