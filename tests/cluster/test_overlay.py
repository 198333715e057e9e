"""The overlay between real namespaces: who reaches whom, what is left when something goes, what survives the agent."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import Coroutine

import pytest

from agent.network import namespaces
from agent.network.resolver_client import running_resolver
from tests.cluster.network_lab import BACKEND, CLOSED, INGRESS, OTHER, Host, Lab, laboratory, refused, run

pytestmark = pytest.mark.cluster


def _links(host: Host) -> dict[str, dict[str, object]]:
    found = json.loads(run("ip", "-json", "-details", "link", namespace=host.namespace))
    return {link["ifname"]: link for link in found}


def _everything(host: Host) -> tuple[object, ...]:
    """What the data plane may have left on a host."""
    return (
        sorted(_links(host)),
        run("nft", "list", "ruleset", namespace=host.namespace),
        run("ip", "rule", namespace=host.namespace),
        run("ip", "-4", "route", "show", "table", "all", namespace=host.namespace),
        sorted(path.name for path in (host.run_dir / "netns").glob("*")),
        running_resolver(host.run_dir),
    )


async def _pair(lab: Lab) -> tuple[str, str]:
    """Two tasks of a service on different hosts, both answering."""
    lab.service("web", "10.0.16.2")
    first, second = lab.task(lab.hosts[0], "web", 1), lab.task(lab.hosts[1], "web", 2)
    await lab.deploy()
    await lab.serve_tcp(lab.inside(first), "first", hold=True)
    await lab.serve_tcp(lab.inside(second), "second", hold=True)
    return first, second


async def _transfer(lab: Lab, source: str, address: str, size: int) -> None:
    """Sends bytes to an echoing server and expects them back."""
    with await lab.connect(lab.inside(source), address) as connection:
        sent = bytes(range(256)) * (size // 256)

        def exchange() -> bytes:
            received = b""
            while not received.endswith(b"\n"):
                received += connection.recv(1)
            received = b""
            for start in range(0, size, 65536):
                connection.sendall(sent[start : start + 65536])
                while len(received) < min(start + 65536, size):
                    received += connection.recv(65536)
            return received

        assert await lab.threads.run(exchange) == sent


async def test_tasks_reach_each_other_across_hosts() -> None:
    async with laboratory(2) as lab:
        first, second = await _pair(lab)
        for client, server, name in ((first, second, "second"), (second, first, "first")):
            assert (await lab.ask(lab.inside(client), lab.address(server)))[:2] == [name, lab.address(client)]
        await _transfer(lab, first, lab.address(second), 1 << 20)


async def test_the_device_mtu_follows_a_smaller_underlay() -> None:
    async with laboratory(2, mtu=1380) as lab:
        first, second = await _pair(lab)
        assert _links(lab.hosts[0])["sw1001"]["mtu"] == 1330
        with lab.threads.inside(lab.inside(first)):
            inside = json.loads(run("ip", "-json", "link"))
        assert {link["mtu"] for link in inside if link["ifname"] == "eth0"} == {1330}
        await _transfer(lab, first, lab.address(second), 1 << 20)


async def test_networks_are_apart_and_internal_ones_have_no_way_out() -> None:
    async with laboratory(2) as lab:
        first, _ = await _pair(lab)
        stranger = lab.task(lab.hosts[0], "stranger", 1, networks=(OTHER,))
        closed = lab.task(lab.hosts[0], "closed", 1, networks=(CLOSED,))
        neighbour = lab.task(lab.hosts[1], "closed", 2, networks=(CLOSED,))
        await lab.deploy()
        await lab.serve_tcp(lab.outside, "outside", 8000)
        await lab.serve_tcp(lab.inside(neighbour), "neighbour")
        with pytest.raises(OSError):
            await lab.ask(lab.inside(stranger), lab.address(first))
        # Outside, the host answers for its containers.
        assert (await lab.ask(lab.inside(stranger), "192.0.2.200", 8000))[:2] == ["outside", lab.hosts[0].address]
        assert (await lab.ask(lab.inside(closed), lab.address(neighbour, CLOSED)))[0] == "neighbour"
        with pytest.raises(OSError):
            await lab.ask(lab.inside(closed), "192.0.2.200", 8000)
        # A machine that routes into an overlay through a host is turned away.
        run("ip", "route", "add", BACKEND.subnet, "via", lab.hosts[0].address, namespace=lab.outside.name)
        with pytest.raises(OSError):
            await lab.ask(lab.outside, lab.address(first))


async def test_entries_and_devices_go_with_what_they_were_for() -> None:
    async with laboratory(2) as lab:
        first, second = await _pair(lab)
        host = lab.hosts[0]
        mac = lab.endpoints[BACKEND.id, second].mac
        words = ("bridge", "fdb", "show", "dev", "sx1001")
        assert mac in run(*words, namespace=host.namespace)
        assert lab.address(second) in run("ip", "neighbour", "show", "dev", "sx1001", namespace=host.namespace)
        await lab.tasks[second][0].call("detach", second)
        lab.forget(second)
        await lab.apply()
        assert mac not in run(*words, namespace=host.namespace)
        assert lab.address(first) not in run("ip", "neighbour", "show", namespace=host.namespace)
        assert "sw1001" not in _links(lab.hosts[1]) and "sx1001" not in _links(lab.hosts[1])
        assert "sw1000" in _links(lab.hosts[1])  # ingress is everywhere
        # While a task is still attached its network stays, though the view names it no longer.
        lab.forget(first)
        await lab.apply()
        assert "sw1001" in _links(host)
        await host.call("detach", first)
        await lab.apply()
        assert "sw1001" not in _links(host)


async def _echoed(lab: Lab, connection: socket.socket, data: bytes) -> None:
    connection.sendall(data)
    received = b""
    while not received.endswith(data):
        received += await lab.threads.run(connection.recv, 100)


async def test_traffic_goes_on_without_the_agent_and_a_new_one_takes_over() -> None:
    async with laboratory(2) as lab:
        first, second = await _pair(lab)
        host = lab.hosts[0]
        connection = await lab.connect(lab.inside(first), "10.0.16.2")
        await host.kill()
        await _echoed(lab, connection, b"still there")
        assert (await lab.ask(lab.inside(first), "10.0.16.2"))[0] in ("first", "second")
        # What a crash half-way leaves: a namespace without a record, a record without a namespace, a stray entry.
        await lab.threads.run(namespaces.create, host.namespace_of("half-made"))
        (host.run_dir / "network/tasks/gone.json").write_text(
            (host.run_dir / f"network/tasks/{first}.json").read_text().replace(first, "gone")
        )
        stray = ("02:42:0a:00:10:99", "dev", "sx1001", "dst", "192.0.2.2", "self", "static")
        run("bridge", "fdb", "add", *stray, namespace=host.namespace)
        run("ip", "link", "set", "sx1001", "down", namespace=host.namespace)
        await host.start()
        assert await host.call("attached") == {first}
        assert not host.namespace_of("half-made").exists()
        await lab.apply()
        await _echoed(lab, connection, b"and now")
        connection.close()
        assert "02:42:0a:00:10:99" not in run("bridge", "fdb", namespace=host.namespace)
        assert (await lab.ask(lab.inside(first), lab.address(second)))[0] == "second"
        await host.call("detach", first)
        assert not host.namespace_of(first).exists()


async def test_leaving_removes_everything_and_nothing_else() -> None:
    async with laboratory(2) as lab:
        host = lab.hosts[0]
        run("nft", "add", "table", "inet", "somebody", namespace=host.namespace)
        run("ip", "link", "add", "swx", "type", "bridge", namespace=host.namespace)
        await host.call("stop", remove=True)
        await host.kill()
        before = _everything(host)
        await host.start()
        await _pair(lab)
        assert _everything(host) != before
        await host.call("stop", remove=True)
        assert _everything(host) == before
        assert not list(host.run_dir.rglob("*"))
        assert "Traceback" not in (host.directory / "state/logs/resolver.log").read_text()


async def test_a_failed_attachment_leaves_nothing() -> None:
    async with laboratory(1) as lab:
        (host,) = lab.hosts
        task = lab.task(host, "web", 1)
        await lab.apply()
        before = _everything(host)
        with pytest.raises(AssertionError, match=r"sysctl.*net\.ipv4\.nonsense"):
            await lab.attach(task, sysctls={"net.ipv4.nonsense": "1"})
        assert _everything(host) == before
        assert await host.call("attached") == set()
        network = await lab.attach(task, sysctls={"net.ipv4.tcp_keepalive_time": "77", "kernel.msgmax": "1"})
        with lab.threads.inside(network.namespace):
            assert run("sysctl", "-n", "net.ipv4.tcp_keepalive_time").strip() == "77"
        again = await lab.attach(task)
        assert again.namespace == network.namespace


async def test_an_agent_killed_at_any_point_is_repaired_by_the_next() -> None:
    rng = random.Random(20)
    async with laboratory(1) as lab:
        (host,) = lab.hosts
        lab.service("web", "10.0.16.2")
        await lab.apply()
        before = _everything(host)
        tasks = [lab.task(host, "web", number, networks=(BACKEND, INGRESS)) for number in range(1, 9)]
        for _ in range(5):
            attached = await host.call("attached")
            work: list[Coroutine[None, None, object]] = [lab.apply()]
            for task in tasks:
                coming = task not in attached or rng.random() < 0.5
                work.append(lab.attach(task) if coming else host.call("detach", task))
            running = asyncio.gather(*work, return_exceptions=True)
            await asyncio.sleep(rng.uniform(0, 0.12))
            await host.kill()
            await running
            await host.start()
            left = {name for name in _links(host) if name.startswith("sv")}
            assert len(left) == 2 * len(await host.call("attached"))
            assert {path.name for path in (host.run_dir / "netns").iterdir()} == await host.call("attached")
            await lab.apply()
        await asyncio.gather(*(lab.attach(task) for task in tasks))
        await lab.serve_tcp(lab.inside(tasks[0]), "one")
        for task in tasks[1:]:
            assert (await lab.ask(lab.inside(task), lab.address(tasks[0])))[0] == "one"
        for task in tasks:
            await host.call("detach", task)
            lab.forget(task)
        await lab.apply()
        assert _everything(host)[0] == before[0]
        assert not list((host.run_dir / "netns").iterdir())


async def test_many_containers_at_once() -> None:
    async with laboratory(2) as lab:
        lab.service("web", "10.0.16.2")
        tasks = [lab.task(lab.hosts[number % 2], "web", number, networks=(BACKEND, INGRESS)) for number in range(1, 31)]
        await lab.apply()
        async with asyncio.TaskGroup() as group:
            for task in tasks:
                group.create_task(lab.attach(task))
            for _ in range(3):
                group.create_task(lab.apply())
        await lab.serve_tcp(lab.inside(tasks[0]), "here")
        assert (await lab.ask(lab.inside(tasks[1]), lab.address(tasks[0])))[0] == "here"
        async with asyncio.TaskGroup() as group:
            for task in tasks:
                group.create_task(lab.tasks[task][0].call("detach", task))
        for host in lab.hosts:
            assert await host.call("attached") == set()
            assert not [name for name in _links(host) if name.startswith("sv")]
            assert not list((host.run_dir / "netns").iterdir())


async def test_an_address_that_moves_to_another_host_is_found_there() -> None:
    async with laboratory(3) as lab:
        first, second = await _pair(lab)
        address = lab.address(second)
        await lab.tasks[second][0].call("detach", second)
        lab.forget(second)
        moved = lab.task(lab.hosts[2], "web", 2)
        assert lab.address(moved) == address
        await lab.apply()
        await lab.attach(moved)
        await lab.serve_tcp(lab.inside(moved), "moved")
        assert (await lab.ask(lab.inside(first), address))[0] == "moved"
        with refused():
            await lab.ask(lab.inside(first), address, 81)


async def test_a_network_that_is_just_going_away_comes_back_for_a_new_task() -> None:
    """A view without the network is being put in force while a task of the next view, which has it again, is attached."""
    async with laboratory(1) as lab:
        [host] = lab.hosts
        lab.service("web", "10.0.16.2")
        first = lab.task(host, "web", 1)
        await lab.deploy()
        for slot in range(2, 10):
            with_network = lab.view(host)
            await host.call("detach", first)
            lab.forget(first)
            without_network = lab.view(host)
            first = lab.task(host, "web", slot)
            again = lab.view(host)
            await host.call("apply", with_network)
            going = asyncio.create_task(host.call("apply", without_network))
            coming = asyncio.create_task(host.call("apply", again))
            await lab.attach(first)
            await asyncio.gather(going, coming)
            ports = [
                link for link in _links(host).values() if link.get("master") == "sw1001" and link["ifname"][:2] == "sv"
            ]
            assert len(ports) == 1, "the task's interface is on the bridge of the network"
