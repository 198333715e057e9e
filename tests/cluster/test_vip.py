"""Virtual IPs in real namespaces: who answers, who does not any more, and what stays as it was."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.cluster.network_lab import BACKEND, Lab, eventually, laboratory, refused, run

pytestmark = pytest.mark.cluster

VIP = "10.0.16.2"


async def _web(lab: Lab, replicas: int = 2) -> tuple[list[str], str]:
    """A service over all hosts that answers with the task's id, and a client on the first host."""
    lab.service("web", VIP)
    lab.service("client", "10.0.16.3")
    tasks = [lab.task(lab.hosts[number % len(lab.hosts)], "web", number + 1) for number in range(replicas)]
    client = lab.task(lab.hosts[0], "client", 1)
    await lab.deploy()
    for task in tasks:
        await lab.serve_tcp(lab.inside(task), task, hold=True)
        await lab.serve_udp(lab.inside(task), task)
    return tasks, client


async def _answers(lab: Lab, client: str, count: int, address: str = VIP) -> list[str]:
    return [(await lab.ask(lab.inside(client), address))[0] for _ in range(count)]


async def test_connections_go_to_all_tasks_in_turn_and_show_the_client() -> None:
    async with laboratory(2) as lab:
        tasks, client = await _web(lab, 3)
        answers = await _answers(lab, client, 9)
        assert {task: answers.count(task) for task in tasks} == dict.fromkeys(tasks, 3)
        assert (await lab.ask(lab.inside(client), VIP))[1] == lab.address(client)
        assert (await lab.ask_udp(lab.inside(client), VIP)).decode().split()[0] in tasks


async def test_a_task_reaches_its_own_service_and_itself() -> None:
    async with laboratory(1) as lab:
        tasks, _ = await _web(lab, 2)
        assert set(await _answers(lab, tasks[0], 4)) == set(tasks)
        lab.withdraw(tasks[1])
        await lab.apply()
        assert set(await _answers(lab, tasks[0], 3)) == {tasks[0]}


async def test_without_a_serving_task_connections_are_refused_at_once() -> None:
    async with laboratory(1) as lab:
        tasks, client = await _web(lab, 1)
        lab.withdraw(tasks[0])
        await lab.apply()
        with refused():
            await lab.ask(lab.inside(client), VIP)
        with pytest.raises(
            (ConnectionRefusedError, PermissionError)
        ):  # whichever the kernel tells a sender of datagrams
            await lab.ask_udp(lab.inside(client), VIP)
        with refused():
            await lab.ask(lab.inside(tasks[0]), VIP)


async def test_a_virtual_ip_answers_ping() -> None:
    async with laboratory(2) as lab:
        _, client = await _web(lab, 2)

        def ping() -> bytes:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as opened:
                opened.settimeout(5)
                opened.sendto(b"\x08\x00\x00\x00\x00\x00\x00\x01hello", (VIP, 0))
                data, (address, _) = opened.recvfrom(100)
                assert address == VIP
                return data

        assert (await lab.threads.run(lab._open, lab.inside(client), ping)).endswith(b"hello")


async def test_a_withdrawn_task_keeps_its_connections_and_gets_no_new_ones() -> None:
    async with laboratory(2) as lab:
        tasks, client = await _web(lab, 2)
        connections = [await lab.connect(lab.inside(client), VIP) for _ in range(4)]
        owners = [(await lab.threads.run(one.recv, 200)).decode().split()[0] for one in connections]
        assert set(owners) == set(tasks)
        host = lab.tasks[tasks[1]][0]
        assert await host.call("connections", tasks[1]) == 2
        lab.withdraw(tasks[1])
        await lab.apply()
        assert set(await _answers(lab, client, 6)) == {tasks[0]}
        for connection in connections:
            connection.sendall(b"still")
            assert await lab.threads.run(connection.recv, 10) == b"still"
        for connection in connections:
            connection.close()

        async def drained() -> bool:
            return await host.call("connections", tasks[1]) == 0

        await eventually(drained)


async def test_outgoing_connections_do_not_hold_a_drain() -> None:
    async with laboratory(1) as lab:
        tasks, client = await _web(lab, 1)
        with await lab.connect(lab.inside(client), VIP):
            assert await lab.hosts[0].call("connections", client) == 0
            assert await lab.hosts[0].call("connections", tasks[0]) == 1
        with await lab.connect(lab.inside(tasks[0]), VIP):  # with itself
            assert await lab.hosts[0].call("connections", client) == 0


async def test_udp_clients_leave_a_withdrawn_task() -> None:
    async with laboratory(2) as lab:
        tasks, client = await _web(lab, 2)
        source = ("", 40001)
        owner = (await lab.ask_udp(lab.inside(client), VIP, source=source)).decode().split()[0]
        assert (await lab.ask_udp(lab.inside(client), VIP, source=source)).decode().split()[0] == owner
        lab.withdraw(owner)
        await lab.apply()
        (other,) = set(tasks) - {owner}
        assert (await lab.ask_udp(lab.inside(client), VIP, source=source)).decode().split()[0] == other


async def test_a_connection_that_is_not_answered_yet_goes_to_another_task_when_its_host_is_lost() -> None:
    async with laboratory(2) as lab:
        tasks, client = await _web(lab, 2)
        here, lost = tasks
        run("ip", "link", "set", "uplink", "down", namespace=lab.hosts[1].namespace)
        waiting = [asyncio.create_task(lab.ask(lab.inside(client), VIP)) for _ in range(2)]
        done, pending = await asyncio.wait(waiting, timeout=0.5)
        assert len(done) == len(pending) == 1  # the other one was sent to the lost host
        lab.forget(lost)
        await lab.apply(lab.hosts[0])
        assert {(await one)[0] for one in waiting} == {here}


async def test_no_connection_fails_while_backends_come_and_go() -> None:
    async with laboratory(2) as lab:
        tasks, client = await _web(lab, 4)
        finished = asyncio.Event()

        async def load() -> int:
            count = 0
            while not finished.is_set():
                assert (await lab.ask(lab.inside(client), VIP))[0] in tasks
                count += 1
            return count

        async with asyncio.TaskGroup() as group:
            loads = [group.create_task(load()) for _ in range(2)]
            whole = dict(lab.endpoints)
            for task in [*tasks, *tasks]:
                lab.withdraw(task)
                await lab.apply()
                lab.endpoints = dict(whole)
                await lab.apply()
            finished.set()
        assert sum(one.result() for one in loads) > 0


async def test_only_what_changed_is_programmed() -> None:
    async with laboratory(1) as lab:
        _, client = await _web(lab, 2)
        await lab.apply()
        listing = ("nft", "-a", "list", "ruleset")
        with lab.threads.inside(lab.inside(client)):
            before = run(*listing)
        await lab.apply()
        with lab.threads.inside(lab.inside(client)):
            assert run(*listing) == before
        lab.service("late", "10.0.16.4")
        task = lab.task(lab.hosts[0], "late", 1, networks=(BACKEND,))
        await lab.deploy()
        await lab.serve_tcp(lab.inside(task), "late")
        assert await _answers(lab, client, 1, "10.0.16.4") == ["late"]
