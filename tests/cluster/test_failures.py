"""Hosts, managers and daemons that die or are cut off."""

from __future__ import annotations

import json
import subprocess

from tests.support.lab import TestLab, eventually

PORT = 8091


def create_web(lab: TestLab, replicas: int, *options: str) -> None:
    lab.swarmctl(
        "service", "create", "--name", "web", "--replicas", str(replicas), "--publish", f"{PORT}:80", *options, "web"
    )


def test_a_cut_host_is_seen_down_and_its_tasks_are_replaced(lab: TestLab) -> None:
    create_web(lab, 5)
    lab.cut("w2")

    def replaced() -> bool:
        tasks = lab.running("web")
        return len(tasks) == 5 and all(task.node != "w2" for task in tasks)

    eventually(replaced, timeout=40)
    assert lab.state("w2") == "down"
    answers = {lab.who("w1", PORT) for _ in range(30)}
    assert len(answers) == 5, "the port leads to the replacements only"
    lab.heal("w2")
    lab.wait_ready("w2")
    eventually(lambda: len(lab.running("web")) == 5)


def test_killing_the_leader_loses_nothing_and_the_cluster_goes_on(lab: TestLab) -> None:
    create_web(lab, 3)
    before = {task.id for task in lab.running("web")}
    leader = lab.leader()
    addresses = hardware_addresses(lab)
    lab.kill(leader)
    lab.swarmctl("service", "create", "--detach", "--name", "after", "web")
    assert set(lab.services()) == {"web", "after"}
    survivors = {task.id for task in lab.running("web")}
    assert len(before & survivors) >= 2, "tasks on the other hosts are not disturbed"
    lab.wait_running("after", 1)
    lab.wait_running("web", 3, timeout=40)
    lab.start(leader)
    lab.wait_ready()
    eventually(lambda: all("unreachable" not in str(n.get("manager_status")).lower() for n in lab.nodes().values()))
    assert hardware_addresses(lab) == addresses, "the others would look for the host, or the registry, at the old one"


def hardware_addresses(lab: TestLab) -> dict[str, str]:
    """Of the hosts, and of the switch, where the registry listens and the way outside begins."""
    links = {"switch": (lab.layout.switch_namespace, "br0")}
    links |= {host.name: (host.namespace, "eth0") for host in lab.layout.hosts}
    found = {}
    for name, (namespace, link) in links.items():
        shown = subprocess.run(
            ["ip", "-n", namespace, "-j", "link", "show", link], capture_output=True, text=True, check=True
        )
        found[name] = json.loads(shown.stdout)[0]["address"]
    return found


def test_a_killed_manager_process_comes_back_and_catches_up(lab: TestLab) -> None:
    leader = lab.leader()
    lab.kill_manager(leader)
    lab.swarmctl("network", "create", "-d", "overlay", "written-meanwhile")
    eventually(lambda: "written-meanwhile" in lab.swarmctl("network", "ls", node=leader), timeout=40)


def create_client(lab: TestLab, host: str) -> str:
    """The id of a task on `host` that only waits."""
    lab.swarmctl(
        "service", "create", "--name", "client", "--constraint", f"node.hostname=={host}", "web", "/bin/sleep", "100000"
    )
    return lab.running("client")[0].id


def test_a_restarted_agent_takes_its_tasks_up_again(lab: TestLab) -> None:
    create_web(lab, 5)
    before = {task.id for task in lab.running("web")}
    lab.kill_daemon("w1")
    lab.start_daemon("w1")
    lab.wait_ready("w1")
    assert before == {task.id for task in lab.running("web")}
    lab.swarmctl("service", "scale", "web=6")
    lab.wait_running("web", 6)


def test_a_dead_agent_disturbs_neither_containers_nor_addresses_nor_names(lab: TestLab) -> None:
    create_web(lab, 5)
    client = create_client(lab, "w1")
    eventually(lambda: len({lab.who("w1", PORT) for _ in range(30)}) == 5)
    lab.kill_daemon("w1")
    eventually(lambda: lab.state("w1") == "down")
    for _ in range(15):
        assert lab.who("w1", PORT)
        address = lab.resolve(client, "web")[0]
        assert "container" in lab.fetch_inside(client, f"http://{address}/cgi-bin/whoami")
    lab.start_daemon("w1")
    lab.wait_ready("w1")
    lab.wait_running("web", 5)


def test_every_manager_answers_every_command(lab: TestLab) -> None:
    for host in lab.layout.managers:
        lab.swarmctl("network", "create", "-d", "overlay", f"made-by-{host.name}", node=host.name)
    for host in lab.layout.managers:
        shown = lab.swarmctl("network", "ls", node=host.name)
        assert all(f"made-by-{other.name}" in shown for other in lab.layout.managers)


def test_without_a_quorum_writes_are_refused_with_a_reason_and_running_tasks_go_on(lab: TestLab) -> None:
    create_web(lab, 5)
    eventually(lambda: lab.who("w1", PORT))
    others = [host.name for host in lab.layout.managers][1:]
    for name in others:
        lab.cut(name)
    code, said = lab.refused("service", "create", "--detach", "--name", "late", "web")
    assert code in (5, 9), said
    assert "quorum" in said or "leader" in said, said
    # Nobody can tell the workers that two hosts are gone: some connections lead there, the others are answered.
    eventually(lambda: lab.who("w1", PORT))
    for name in others:
        lab.heal(name)
    lab.wait_ready()
    eventually(lambda: lab.swarmctl("service", "ls"))


def test_a_host_that_lost_power_comes_back(lab: TestLab) -> None:
    create_web(lab, 5)
    lab.kill("w1")
    eventually(lambda: len([t for t in lab.running("web") if t.node != "w1"]) == 5, timeout=40)
    lab.start("w1")
    lab.wait_ready("w1")
    lab.swarmctl("service", "scale", "web=8")
    assert "w1" in {task.node for task in lab.wait_running("web", 8)}
    eventually(lambda: len({lab.who("w1", PORT) for _ in range(40)}) == 8)
