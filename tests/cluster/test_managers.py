"""Managers: quorums lost and recovered, snapshots, moves to another address, promotion and demotion, full disks."""

from __future__ import annotations

import asyncio
import subprocess
from itertools import count
from pathlib import Path

from orchestrator.lab import hosts
from tests.support.lab import TestLab, eventually, fill

_numbers = count()


def ready(lab: TestLab, *names: str) -> bool:
    nodes = lab.nodes()
    return all(nodes[name]["status"]["state"] == "ready" for name in names)


def epoch(lab: TestLab, directory: Path) -> int:
    file = directory / f"snapshot-{next(_numbers)}"
    lab.swarmctl("swarm", "snapshot", "save", str(file))
    return int(lab.json("swarm", "snapshot", "inspect", str(file))["epoch"])


def local(lab: TestLab, host: str, *arguments: str) -> str:
    return lab.swarmctl(*arguments, node=host, timeout=120)


# ------------------------------------------------------------------------------------------------------------ recovery


def test_the_last_of_three_managers_goes_on_alone_and_the_others_join_anew(own_lab: TestLab, tmp_path: Path) -> None:
    lab = own_lab
    lab.swarmctl("service", "create", "--name", "web", "--replicas", "4", "web")
    lab.swarmctl("network", "create", "-d", "overlay", "kept")
    done = lab.run("swarm", "recover", "--force", node="m1")
    assert done.returncode != 0, "a swarm with a leader is not recovered"
    assert "quorum is not lost" in done.stderr
    lab.kill("m2")
    lab.kill("m3")
    said = local(lab, "m1", "swarm", "recover", "--dry-run")
    assert lab.host("m2").address in said, said
    assert lab.host("m3").address in said, said
    unsure = lab.run("network", "create", "-d", "overlay", "unsure", node="m1")
    assert unsure.returncode != 0, "a dry run changes nothing: there is no quorum"

    local(lab, "m1", "swarm", "recover", "--force")
    lab.swarmctl("service", "create", "--detach", "--name", "after", "web")
    assert set(lab.services()) == {"web", "after"}
    assert "kept" in lab.swarmctl("network", "ls")
    eventually(lambda: ready(lab, "m1", "w1"))
    assert set(lab.nodes()) == {"m1", "w1"}
    assert {task.node for task in lab.wait_running("web", 4)} == {"m1", "w1"}
    assert epoch(lab, tmp_path) > 1

    # Both others come back after all, as a majority of what they remember: the first tells them, and they stop for good.
    lab.start("m2")
    lab.start("m3")
    for name in ("m2", "m3"):
        eventually(lambda name=name: "recovered or restored without" in lab.run("info", node=name).stdout)  # type: ignore[misc]
        lab.refused("node", "ls", node=name)
    lab.swarmctl("service", "scale", "web=6")
    assert {task.node for task in lab.wait_running("web", 6)} == {"m1", "w1"}
    token = local(lab, "m1", "swarm", "join-token", "-q", "manager").strip()
    for name in ("m2", "m3"):
        local(lab, name, "swarm", "leave", "--force")
        address = lab.host(name).address
        join = ("swarm", "join", "--token", token, "--advertise-addr", address, lab.host("m1").address)
        local(lab, name, *join)
    eventually(lambda: [node.get("manager_status") for node in lab.nodes().values()].count("Reachable") == 2)
    lab.kill("m1")
    lab.swarmctl("service", "scale", "--detach", "web=2", node="m2")


def test_all_managers_killed_at_once_lose_nothing(lab: TestLab) -> None:
    for number in range(5):
        lab.swarmctl("network", "create", "-d", "overlay", f"written-{number}")
    before = {node["id"]: node["description"]["hostname"] for node in lab.json("node", "ls")}
    for host in lab.layout.managers:
        lab.kill(host.name)
    for host in lab.layout.managers:
        lab.start(host.name)
    lab.wait_ready()
    shown = lab.swarmctl("network", "ls")
    assert all(f"written-{number}" in shown for number in range(5))
    assert {node["id"]: node["description"]["hostname"] for node in lab.json("node", "ls")} == before


# ----------------------------------------------------------------------------------------------------------- snapshots


def test_a_snapshot_is_saved_inspected_and_restored(own_lab: TestLab, tmp_path: Path) -> None:
    lab, file = own_lab, tmp_path / "state"
    lab.swarmctl("service", "create", "--name", "web", "--replicas", "3", "web")
    lab.swarmctl("swarm", "snapshot", "save", str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    held = lab.json("swarm", "snapshot", "inspect", str(file))
    assert (held["services"], held["nodes"], held["epoch"], len(held["managers"])) == (1, 4, 1, 3)
    lab.refused("swarm", "snapshot", "save", str(file))

    for number in range(10):  # the index of the agents is beyond the snapshot's
        lab.swarmctl("service", "create", "--detach", "--name", f"later-{number}", "web")
    lab.kill("m2")
    lab.kill("m3")
    done = lab.run("swarm", "snapshot", "restore", str(file), node="m1")
    assert done.returncode != 0
    assert "--force" in done.stderr
    local(lab, "m1", "swarm", "snapshot", "restore", "--force", str(file))
    eventually(lambda: ready(lab, "m1", "w1"))
    assert set(lab.services()) == {"web"}
    lab.swarmctl("service", "scale", "web=5")
    assert {task.node for task in lab.wait_running("web", 5)} == {"m1", "w1"}
    eventually(lambda: lab.containers() == {task.id for task in lab.running("web")})
    first_epoch = epoch(lab, tmp_path)
    assert first_epoch > held["epoch"]

    # The same snapshot once more: what the agents saw since then must not keep them from following.
    for number in range(10):
        lab.swarmctl("service", "create", "--detach", "--name", f"lost-{number}", "web")
    local(lab, "m1", "swarm", "snapshot", "restore", "--force", str(file))
    eventually(lambda: ready(lab, "m1", "w1"))
    assert set(lab.services()) == {"web"}
    eventually(lambda: lab.containers() == {task.id for task in lab.running("web")})
    second_epoch = epoch(lab, tmp_path)
    assert second_epoch > first_epoch

    # The same host, having lost everything, at the same address: a new manager, whom the worker follows.
    second = tmp_path / "second"
    lab.swarmctl("swarm", "snapshot", "save", str(second))
    local(lab, "m1", "swarm", "leave", "--force")
    local(lab, "m1", "swarm", "snapshot", "restore", "--advertise-addr", lab.host("m1").address, str(second))
    eventually(lambda: ready(lab, "m1", "w1"))
    assert set(lab.nodes()) == {"m1", "w1"}
    lab.swarmctl("service", "scale", "web=3")
    lab.wait_running("web", 3)
    assert epoch(lab, tmp_path) > second_epoch


def test_a_damaged_snapshot_is_refused_and_nothing_is_changed(lab: TestLab, tmp_path: Path) -> None:
    file, damaged = tmp_path / "state", tmp_path / "damaged"
    lab.swarmctl("swarm", "snapshot", "save", str(file))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    _, said = lab.refused("swarm", "snapshot", "inspect", str(damaged))
    assert "damaged" in said
    assert ready(lab, "m1", "m2", "m3")


# ------------------------------------------------------------------------------------------------- moves, roles, disks


def test_a_manager_moves_to_another_address_without_losing_its_identity(own_lab: TestLab) -> None:
    lab, host = own_lab, own_lab.host("m3")
    before = lab.nodes()["m3"]
    old, new = host.address, host.address.rpartition(".")[0] + ".99"

    def address(action: str, which: str) -> None:
        subprocess.run(["ip", "-n", host.namespace, "addr", action, f"{which}/24", "dev", "eth0"], check=True)

    address("add", new)
    pid = hosts.processes(host).daemon
    assert pid is not None
    hosts.kill([pid])
    eventually(lambda: hosts.processes(host).daemon is None)
    asyncio.run(hosts.start_daemon(host, "--advertise-addr", new))

    def moved() -> bool:
        node = lab.nodes()["m3"]
        assert (node["id"], node["number"]) == (before["id"], before["number"])
        assert node["description"]["address"] == new
        assert node["manager"]["address"].startswith(f"{new}:")
        return node.get("manager_status") in ("Reachable", "Leader")

    eventually(moved, timeout=60)
    subprocess.run(["ip", "-n", host.namespace, "addr", "flush", "dev", "eth0"], check=True)
    address("add", new)
    assert old != new
    first = "m1" if lab.leader() != "m1" else "m2"
    lab.kill(first)  # so that the manager that moved is needed for every write
    eventually(lambda: lab.swarmctl("network", "create", "-d", "overlay", "with-m3", node="m3"))


def test_a_manager_without_its_data_key_says_so_and_starts_when_it_is_back(lab: TestLab) -> None:
    name = next(host.name for host in lab.layout.managers if host.name != lab.leader())
    key = lab.host(name).state_directory / "certificates" / "raft.key"
    aside = key.with_suffix(".aside")
    assert key.stat().st_mode & 0o777 == 0o600
    key.rename(aside)
    try:
        lab.kill_manager(name)
        eventually(lambda: "put the key file back" in lab.run("info", node=name).stdout)
        assert not key.exists(), "a new key could open nothing"
    finally:
        aside.rename(key)
    eventually(lambda: lab.nodes()[name].get("manager_status") == "Reachable", timeout=60)


def test_managers_are_promoted_and_demoted(lab: TestLab) -> None:
    lab.swarmctl("node", "promote", "w1")
    eventually(lambda: lab.nodes()["w1"].get("manager_status") == "Reachable")
    eventually(lambda: "w2" in lab.swarmctl("node", "ls", node="w1"))
    lab.swarmctl("node", "demote", "w1")
    eventually(lambda: not lab.nodes()["w1"].get("manager_status"))
    eventually(lambda: hosts.processes(lab.host("w1")).manager is None)
    eventually(lambda: not (lab.host("w1").state_directory / "manager").exists())


def test_a_demotion_below_the_quorum_is_refused_with_the_numbers(lab: TestLab) -> None:
    leader = lab.leader()
    first, second = (host.name for host in lab.layout.managers if host.name != leader)
    lab.kill(first)
    eventually(lambda: lab.nodes()[first].get("manager_status") == "Unreachable")
    _, said = lab.refused("node", "demote", second)
    assert "2 managers, of which 1" in said, said


def test_a_leader_without_room_hands_over_and_the_disk_is_named_when_no_majority_can_write(lab: TestLab) -> None:
    name = "m3"
    with lab.small_disk(name, 8 << 20) as state:
        lab.lead(name)
        filler = fill(state)
        numbers = iter(range(500))

        def write() -> subprocess.CompletedProcess[str]:
            """Large: the log has some room of its own left, which is used up first."""
            return lab.run("network", "create", "-d", "overlay", "--label", f"l={'x' * 60_000}", f"n{next(numbers)}")

        def led_by_another() -> bool:
            assert write().returncode == 0, "nobody is refused anything while two managers have room"
            return lab.leader() != name

        eventually(led_by_another, timeout=60)
        away = next(host.name for host in lab.layout.managers if host.name not in (name, lab.leader()))
        lab.kill(away)
        eventually(lambda: lab.nodes()[away].get("manager_status") == "Unreachable")

        def refused() -> str:
            done = write()
            assert done.returncode == 8, done.stderr  # or 9: the first one finds out
            return done.stderr

        said = eventually(refused, timeout=60)
        assert "no room on the disk of manager" in said, said
        assert lab.host(name).address in said, said
        assert lab.host(away).address in said, said
        assert "m1" in lab.swarmctl("node", "ls"), "reading goes on"
        filler.unlink()
        eventually(lambda: lab.swarmctl("network", "create", "-d", "overlay", "room"), timeout=60)
        lab.start(away)
        lab.wait_ready()


def test_managers_that_are_stopped_are_not_called_reachable(lab: TestLab) -> None:
    asked, *others = [host.name for host in lab.layout.managers]
    with lab.paused(others[0], manager=True), lab.paused(others[1], manager=True):

        def said() -> str:
            _, sentence = lab.refused("network", "create", "-d", "overlay", "never", node=asked)
            assert "no leader" in sentence, sentence  # and not yet that the outcome is unknown
            return sentence

        assert "no leader: 1 of 3 managers reachable, a quorum needs 2" in eventually(said)


def test_a_leader_that_is_stopped_as_planned_hands_over_before(lab: TestLab) -> None:
    leader = lab.leader()
    others = [host for host in lab.layout.managers if host.name != leader]
    logs = {host.name: host.state_directory / "logs" / "manager.log" for host in others}
    before = {name: log.stat().st_size for name, log in logs.items()}
    lab.stop_manager(leader)
    lab.swarmctl("network", "create", "-d", "overlay", "goes-on", node=others[0].name)
    said = "".join(log.read_text()[before[name] :] for name, log in logs.items())
    assert "this manager leads term" in said
    assert "asking for votes" not in said, "nobody had to notice that the leader was gone"
