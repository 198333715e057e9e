"""Published ports in real namespaces: on every host, with the client's own address, and back the way that they came."""

from __future__ import annotations

import json

import pytest

from agent.network.interface import HostPort
from tests.cluster.network_lab import BACKEND, CLOSED, INGRESS, Lab, laboratory, port, refused, run

pytestmark = pytest.mark.cluster

CLIENT = "192.0.2.200"


async def _web(lab: Lab, replicas: int = 1, network: object = BACKEND) -> list[str]:
    """A service published on 8080 (to 80) and 5353/udp (to 53); its tasks fill the hosts from the first on."""
    assert network is BACKEND or network is CLOSED
    chosen = CLOSED if network is CLOSED else BACKEND
    lab.service(
        "web", "10.0.16.2" if chosen is BACKEND else "10.0.48.2", chosen, (port(8080), port(5353, 53, udp=True))
    )
    tasks = [lab.task(lab.hosts[n % len(lab.hosts)], "web", n + 1, networks=(chosen, INGRESS)) for n in range(replicas)]
    await lab.deploy()
    for task in tasks:
        await lab.serve_tcp(lab.inside(task), task)
        await lab.serve_udp(lab.inside(task), task)
    return tasks


async def test_every_host_answers_and_the_task_sees_the_client() -> None:
    async with laboratory(3) as lab:
        tasks = await _web(lab, 2)  # none on the third host
        for host in lab.hosts:
            answers = [await lab.ask(lab.outside, host.address, 8080) for _ in range(4)]
            assert {answer[0] for answer in answers} == set(tasks)
            assert {answer[1] for answer in answers} == {CLIENT}
            name, address, _ = (await lab.ask_udp(lab.outside, host.address, 5353)).decode().split()
            assert name in tasks and address == CLIENT


async def test_one_client_address_and_port_through_two_hosts_at_once() -> None:
    async with laboratory(2) as lab:
        (task,) = await _web(lab, 1)
        await lab.serve_tcp(lab.inside(task), "held", 81, hold=True)
        lab.service("web", "10.0.16.2", ports=(port(8081, 81),))
        await lab.apply()
        source = (CLIENT, 45000)
        first = await lab.connect(lab.outside, lab.hosts[0].address, 8081, source=source)
        second = await lab.connect(lab.outside, lab.hosts[1].address, 8081, source=source)
        with first, second:
            for connection in (first, second):
                assert (await lab.threads.run(connection.recv, 200)).decode().split()[:2] == ["held", CLIENT]
            for connection in (first, second):
                connection.sendall(b"more")
                assert await lab.threads.run(connection.recv, 10) == b"more"


async def test_the_host_itself_and_containers_reach_a_published_port() -> None:
    async with laboratory(2) as lab:
        tasks = await _web(lab, 2)
        host = lab.hosts[0]
        for address in ("127.0.0.1", host.address, lab.hosts[1].address):
            assert {(await lab.ask(host.path, address, 8080))[0] for _ in range(4)} == set(tasks)
        assert (await lab.ask_udp(host.path, "127.0.0.1", 5353)).decode().split()[0] in tasks
        # A container, also one that may be sent to itself.
        assert {(await lab.ask(lab.inside(tasks[0]), host.address, 8080))[0] for _ in range(4)} == set(tasks)


async def test_a_port_without_a_serving_task_refuses() -> None:
    async with laboratory(2) as lab:
        tasks = await _web(lab, 1)
        lab.withdraw(tasks[0])
        await lab.apply()
        await lab.serve_tcp(lab.hosts[0].path, "the host's own", 8080)  # must not answer instead
        with refused():
            await lab.ask(lab.outside, lab.hosts[0].address, 8080)
        with refused():
            await lab.ask_udp(lab.outside, lab.hosts[1].address, 5353)
        with refused():
            await lab.ask(lab.hosts[1].path, "127.0.0.1", 8080)


async def test_udp_clients_leave_a_withdrawn_task() -> None:
    async with laboratory(2) as lab:
        tasks = await _web(lab, 2)
        source = (CLIENT, 46000)
        address = lab.hosts[0].address
        owner = (await lab.ask_udp(lab.outside, address, 5353, source=source)).decode().split()[0]
        lab.withdraw(owner)
        await lab.apply()
        (other,) = set(tasks) - {owner}
        assert (await lab.ask_udp(lab.outside, address, 5353, source=source)).decode().split()[0] == other


async def test_a_port_that_is_published_no_longer_is_the_hosts_again() -> None:
    async with laboratory(1) as lab:
        await _web(lab, 1)
        await lab.serve_tcp(lab.hosts[0].path, "host", 8080)
        del lab.services[INGRESS.id, "web"]
        await lab.apply()
        assert (await lab.ask(lab.outside, lab.hosts[0].address, 8080))[0] == "host"


async def test_a_service_on_an_internal_network_only() -> None:
    async with laboratory(2) as lab:
        (task,) = await _web(lab, 1, CLOSED)
        await lab.serve_tcp(lab.outside, "outside", 8000)
        for host in lab.hosts:
            assert (await lab.ask(lab.outside, host.address, 8080))[:2] == [task, CLIENT]
        with pytest.raises(OSError):
            await lab.ask(lab.inside(task), CLIENT, 8000)


async def test_host_mode_answers_on_the_tasks_host_only() -> None:
    async with laboratory(2) as lab:
        lab.service("web", "10.0.16.2")
        task = lab.task(lab.hosts[0], "web", 1)
        lab.host_ports.append(HostPort(task, port(8080, host=True)))
        lab.host_ports.append(HostPort(task, port(5353, 53, udp=True, host=True)))
        await lab.deploy()
        await lab.serve_tcp(lab.inside(task), "web")
        await lab.serve_udp(lab.inside(task), "web")
        assert (await lab.ask(lab.outside, lab.hosts[0].address, 8080))[:2] == ["web", CLIENT]
        assert (await lab.ask_udp(lab.outside, lab.hosts[0].address, 5353)).decode().split()[1] == CLIENT
        assert (await lab.ask(lab.hosts[0].path, "127.0.0.1", 8080))[0] == "web"
        assert (await lab.ask(lab.inside(task), lab.hosts[0].address, 8080))[0] == "web"
        with refused():
            await lab.ask(lab.outside, lab.hosts[1].address, 8080)
        await lab.hosts[0].call("detach", task)
        lab.forget(task)
        lab.host_ports.clear()
        await lab.apply()
        with refused():
            await lab.ask(lab.outside, lab.hosts[0].address, 8080)


async def test_containers_do_not_reach_the_hosts_loopback() -> None:
    async with laboratory(1) as lab:
        (task,) = await _web(lab, 1)
        (host,) = lab.hosts
        await lab.serve_tcp(host.path, "private", 9000)
        with lab.threads.inside(lab.inside(task)):
            run("ip", "link", "set", "lo", "down")
            run("ip", "route", "add", "127.0.0.2/32", "via", BACKEND.gateway, "dev", "eth0")
            run("sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")
        with pytest.raises(OSError):
            await lab.ask(lab.inside(task), "127.0.0.2", 9000)


async def test_published_ports_outlive_the_agent_and_the_node_that_goes() -> None:
    async with laboratory(3) as lab:
        (task,) = await _web(lab, 1)
        for host in lab.hosts:
            await host.kill()
        for host in lab.hosts:
            assert (await lab.ask(lab.outside, host.address, 8080))[:2] == [task, CLIENT]
        for host in lab.hosts:
            await host.start()
        gone = lab.hosts.pop()
        await lab.apply()
        assert (await lab.ask(lab.outside, lab.hosts[1].address, 8080))[0] == task
        fdb = json.loads(run("bridge", "-json", "fdb", "show", namespace=lab.hosts[0].namespace))
        assert gone.address not in {entry.get("dst") for entry in fdb}
        lab.hosts.append(gone)
