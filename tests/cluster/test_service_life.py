"""The main job on real hosts: deploy, balance, scale, update, restart, drain, remove."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest

from tests.support.lab import TestLab, eventually

PORT = 8090


def create_web(lab: TestLab, replicas: int, *options: str) -> None:
    lab.swarmctl(
        "service", "create", "--name", "web", "--replicas", str(replicas), "--publish", f"{PORT}:80", *options, "web"
    )


def test_deploy_answers_on_every_host_from_every_container(lab: TestLab) -> None:
    create_web(lab, 3)
    tasks = lab.running("web")
    assert len(tasks) == 3
    assert len({task.node for task in tasks}) == 3, "three replicas spread over three hosts"
    for host in lab.layout.hosts:
        answers = eventually(
            lambda host=host: (found := {lab.who(host.name, PORT) for _ in range(12)}) and len(found) == 3 and found
        )
        assert len(answers) == 3
    assert (lab.services()["web"]["running"], lab.services()["web"]["desired"]) == (3, 3)


def test_the_task_sees_the_address_of_the_real_client(lab: TestLab) -> None:
    create_web(lab, 1)
    for host in lab.layout.hosts:
        answer = eventually(lambda host=host: lab.get(host.name, PORT))
        assert f"client {lab.layout.gateway} " in answer


def test_each_task_fills_in_the_placeholders(lab: TestLab) -> None:
    env = "WHERE={{.Service.Name}}.{{.Task.Slot}}@{{.Node.Hostname}}"
    mount = "type=volume,source=data-{{.Task.Slot}},target=/data"
    create_web(lab, 2, "--env", env, "--hostname", "web-{{.Task.Slot}}", "--mount", mount)
    tasks = lab.running("web")
    assert len(tasks) == 2
    for task in tasks:
        pid, slot = lab.task_pid(task.id)[1], task.name.rpartition(".")[2]
        environment = (Path("/proc") / str(pid) / "environ").read_text().split("\0")
        assert {f"WHERE=web.{slot}@{task.node}", f"HOSTNAME=web-{slot}"} <= set(environment)
        assert f"/volumes/data-{slot} /data " in (Path("/proc") / str(pid) / "mountinfo").read_text()
        assert lab.resolve(tasks[0].id, f"web-{slot}") != []


def test_scale_up_and_down_and_the_port_follows(lab: TestLab) -> None:
    create_web(lab, 1)
    lab.swarmctl("service", "scale", "web=5")
    assert len(lab.wait_running("web", 5)) == 5
    eventually(lambda: len({lab.who("w1", PORT) for _ in range(30)}) == 5)
    lab.swarmctl("service", "scale", "web=2")
    lab.wait_running("web", 2)
    assert len({lab.who("w1", PORT) for _ in range(20)}) == 2


def test_a_rolling_update_loses_no_request(lab: TestLab) -> None:
    create_web(lab, 4, "--env", "VERSION=1", "--update-monitor", "300ms")
    eventually(lambda: len({lab.who("m1", PORT) for _ in range(30)}) == 4)
    failures: list[str] = []
    versions: set[str] = set()
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                answer = lab.get("m2", PORT, timeout=3)
                versions.add(answer.rsplit(" ", 1)[1])
            except OSError as error:
                failures.append(f"{time.monotonic():.2f} {error}")

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        lab.swarmctl("service", "update", "--env-add", "VERSION=2", "--update-parallelism", "2", "web")
    finally:
        stop.set()
        for asker in askers:
            asker.join()
    assert failures == []
    assert versions == {"1", "2"}
    assert {lab.get("m3", PORT).rsplit(" ", 1)[1] for _ in range(12)} == {"2"}


def test_a_killed_container_is_replaced_and_its_end_is_told(lab: TestLab) -> None:
    create_web(lab, 2)
    victim = lab.running("web")[0]
    _, pid = lab.task_pid(victim.id)
    import os
    import signal

    os.kill(pid, signal.SIGKILL)

    def replaced() -> bool:
        now = {task.id for task in lab.running("web")}
        return len(now) == 2 and victim.id not in now

    eventually(replaced)
    history = {task.id: task for task in lab.tasks("web")}
    assert "137" in history[victim.id].error


def test_a_failing_command_shows_exit_code_and_last_output_and_backs_off(lab: TestLab) -> None:
    lab.swarmctl(
        "service", "create", "--detach", "--name", "bad", "web", "/bin/sh", "-c", "echo no such luck; exit 3",
    )  # fmt: skip

    def told() -> bool:
        errors = [task.error for task in lab.tasks("bad")]
        return any("3" in error and "no such luck" in error for error in errors)

    eventually(told)
    time.sleep(3)  # what is observed here is that nothing much happens: restarts wait longer and longer
    assert len(lab.tasks("bad")) <= 6


def test_drain_moves_the_tasks_and_active_takes_new_ones(lab: TestLab) -> None:
    create_web(lab, 5)
    lab.swarmctl("node", "update", "--availability", "drain", "w1")

    def moved() -> bool:
        tasks = lab.running("web")
        return len(tasks) == 5 and all(task.node != "w1" for task in tasks)

    eventually(moved)
    assert len({lab.who("w1", PORT) for _ in range(30)}) == 5, "a drained host still answers on the published port"
    lab.swarmctl("node", "update", "--availability", "active", "w1")
    lab.swarmctl("service", "scale", "web=7")
    assert "w1" in {task.node for task in lab.wait_running("web", 7)}


def test_remove_closes_the_port_and_leaves_nothing(lab: TestLab) -> None:
    create_web(lab, 2)
    eventually(lambda: lab.who("m1", PORT))
    lab.swarmctl("service", "rm", "web")

    def closed() -> bool:
        try:
            lab.get("m1", PORT, timeout=1)
        except OSError:
            return True
        return False

    eventually(closed)
    eventually(lambda: "web" not in lab.services())


def test_virtual_ip_and_names_inside_the_network(lab: TestLab) -> None:
    lab.swarmctl("network", "create", "-d", "overlay", "backend")
    lab.swarmctl("service", "create", "--name", "api", "--replicas", "3", "--network", "backend", "web")
    lab.swarmctl("service", "create", "--name", "client", "--network", "backend", "web", "/bin/sleep", "100000")
    client = lab.running("client")[0].id
    one = lab.resolve(client, "api")
    assert len(one) == 1, "the service's name leads to its virtual IP"
    each = lab.resolve(client, "tasks.api")
    assert len(each) == 3, "tasks.NAME leads to every task"
    answers = {lab.fetch_inside(client, f"http://{one[0]}/cgi-bin/whoami").split()[1] for _ in range(15)}
    assert len(answers) == 3, "the virtual IP balances over all tasks"


def test_networks_are_apart_from_each_other(lab: TestLab) -> None:
    for network in ("one", "two"):
        lab.swarmctl("network", "create", "-d", "overlay", network)
        lab.swarmctl("service", "create", "--name", f"in-{network}", "--network", network, "web")
    inside_one = lab.running("in-one")[0].id
    with pytest.raises(AssertionError):
        lab.inside(inside_one, "nslookup", "in-two")


def test_containers_reach_outside_through_their_host_but_not_from_an_internal_network(lab: TestLab) -> None:
    lab.swarmctl("network", "create", "-d", "overlay", "--internal", "closed")
    lab.swarmctl("service", "create", "--name", "open", "web", "/bin/sleep", "100000")
    lab.swarmctl("service", "create", "--name", "shut", "--network", "closed", "web", "/bin/sleep", "100000")
    reach = ("nc", "-w", "2", lab.layout.registry_address, "5000")
    lab.inside(lab.running("open")[0].id, *reach)
    with pytest.raises(AssertionError):
        lab.inside(lab.running("shut")[0].id, *reach)


def test_logs_of_all_tasks_are_merged_and_labelled(lab: TestLab) -> None:
    lab.swarmctl(
        "service", "create", "--name", "talk", "--replicas", "3", "web",
        "/bin/sh", "-c", "echo hello from $(hostname); exec sleep 100000",
    )  # fmt: skip
    lines = eventually(
        lambda: (found := lab.swarmctl("service", "logs", "talk").splitlines()) and len(found) == 3 and found
    )
    assert all("hello from" in line for line in lines)
    assert {found[0] for line in lines if (found := re.findall(r"talk\.(\d)", line))} == {"1", "2", "3"}


def test_reservations_decide_where_tasks_fit_and_the_reason_is_told(lab: TestLab) -> None:
    lab.swarmctl("service", "create", "--detach", "--name", "big", "--replicas", "1", "--reserve-memory", "900g", "web")
    reason = eventually(
        lambda: [
            text for task in lab.tasks("big")
            if "no suitable node" in (text := f"{task.error} {task.message}")
        ]
    )  # fmt: skip
    assert "memory" in reason[0] and "5 nodes" in reason[0]
