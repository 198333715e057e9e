"""Processes killed or stopped at any moment: afterwards every service has its tasks, each task one container, nothing twice."""

from __future__ import annotations

import random
import threading
import time

from orchestrator.lab import hosts
from tests.support.lab import TestLab, eventually, fill

PORT = 8092
SEED = 20261120


def create_web(lab: TestLab, replicas: int) -> None:
    lab.swarmctl("service", "create", "--name", "web", "--replicas", str(replicas), "--publish", f"{PORT}:80", "web")


def test_processes_killed_at_random_while_the_service_is_scaled(lab: TestLab) -> None:
    rng = random.Random(SEED)
    create_web(lab, 5)
    for _ in range(8):
        scaling = threading.Thread(
            target=lab.run, args=("service", "scale", "--detach", f"web={rng.randint(3, 9)}"), daemon=True
        )
        scaling.start()
        time.sleep(rng.random() * 0.3)  # somewhere within what the managers and agents do now
        host = rng.choice(lab.layout.hosts)
        victims = sorted(hosts.processes(host).all)
        hosts.kill(rng.sample(victims, min(3, len(victims))))
        scaling.join()
        for each in lab.layout.hosts:
            if hosts.processes(each).daemon is None:
                lab.start_daemon(each.name)
    lab.wait_ready()
    lab.swarmctl("service", "scale", "--detach", "web=5")
    lab.wait_consistent({"web": 5})

    def reached() -> bool:
        return all(len({lab.who(host.name, PORT) for _ in range(20)}) == 5 for host in lab.layout.hosts)

    eventually(reached)


def test_all_manager_processes_killed_at_once(lab: TestLab) -> None:
    create_web(lab, 5)
    before = {task.id for task in lab.running("web")}
    for host in lab.layout.managers:
        lab.kill_manager(host.name)
    assert lab.who("w1", PORT)
    eventually(lambda: lab.swarmctl("service", "scale", "web=6"))
    assert before < {task.id for task in lab.running("web")}, "no task was disturbed"
    lab.wait_consistent({"web": 6})


def test_a_paused_leader_is_replaced_and_follows_when_it_goes_on(lab: TestLab) -> None:
    create_web(lab, 3)
    leader = lab.leader()
    with lab.paused(leader, manager=True):
        lab.swarmctl("service", "scale", "web=5")
        assert lab.leader() != leader
    eventually(lambda: "5/5" in lab.swarmctl("service", "ls", node=leader))
    lab.wait_consistent({"web": 5})


def test_a_paused_agent_is_down_and_stops_what_was_replaced_when_it_goes_on(lab: TestLab) -> None:
    create_web(lab, 5)
    with lab.paused("w1", manager=False):
        eventually(lambda: lab.state("w1") == "down")
        eventually(lambda: len([t for t in lab.running("web") if t.node != "w1"]) == 5)
        assert len(lab.containers()) == 6, "the paused host's container cannot be stopped yet"
    lab.wait_ready("w1")
    lab.wait_consistent({"web": 5})


def test_a_full_disk_of_a_worker_rejects_tasks_with_the_reason(lab: TestLab) -> None:
    with lab.small_disk("w1", 3_000_000) as disk:
        create_web(lab, 3)
        filler = fill(disk)
        lab.swarmctl("service", "scale", "--detach", "web=9")
        told = eventually(lambda: [task.error for task in lab.tasks("web") if "full" in task.error])
        assert "free some space" in told[0]
        lab.wait_running("web", 9)
        assert all("unexpectedly" not in task.error for task in lab.tasks("web"))
        filler.unlink()
        lab.wait_consistent({"web": 9})
