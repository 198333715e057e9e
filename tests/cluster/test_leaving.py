"""A node that leaves the swarm: nothing of the membership stays on its host, and it can join again."""

from __future__ import annotations

from orchestrator.lab import hosts, wiring
from tests.support.lab import TestLab, eventually


def test_a_worker_that_leaves_under_load_leaves_nothing_behind(lab: TestLab) -> None:
    host = lab.host("w2")
    lab.swarmctl("service", "create", "--name", "web", "--publish", "8097:80", "--replicas", "10", "web")
    assert any(task.node == "w2" for task in lab.running("web"))
    assert wiring.cgroups_of(host.cgroup) and len(wiring.mounts_below(host.run_directory, host.state_directory)) > 1
    token = lab.swarmctl("swarm", "join-token", "-q", "worker").strip()
    gone = [node["id"] for node in lab.json("node", "ls") if node["description"]["hostname"] == "w2"]
    lab.swarmctl("swarm", "leave", node="w2")
    try:
        assert wiring.cgroups_of(host.cgroup) == []
        own = [str(host.run_directory)]  # the lab's: a host's /run stays
        assert wiring.mounts_below(host.run_directory, host.state_directory) == own
        assert lab.swarmctl("lab", "exec", "w2", "--", "nft", "list", "tables").strip() == ""
        links = lab.swarmctl("lab", "exec", "w2", "--", "ip", "-o", "link").splitlines()
        assert sorted(line.split(":")[1].split("@")[0].strip() for line in links) == ["eth0", "lo"]
        eventually(lambda: len(hosts.processes(host).all) == 1)  # swarmd waits for the next swarm
        left = {path.name for path in host.run_directory.iterdir()}
        assert left <= {"images", "images-configuration", "swarmd.sock"}, left
    finally:
        lab.swarmctl("swarm", "join", "--token", token, f"{lab.host('m1').address}:2377", node="w2")
        lab.wait_ready("w2")
        for node_id in gone:
            lab.swarmctl("node", "rm", "--force", node_id)
    lab.swarmctl("service", "scale", "web=15")
    assert any(task.node == "w2" for task in lab.running("web"))
