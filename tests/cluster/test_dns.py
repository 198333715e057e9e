"""Names in real namespaces: what a container resolves, what it does not see, and what outlives the agent."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest
from dnslib import QTYPE, RCODE, RR, A, DNSRecord
from swarm.v1 import types_pb2 as types

from agent.network.resolver_client import running_resolver
from tests.cluster.network_lab import BACKEND, INGRESS, OTHER, Lab, eventually, laboratory, port

pytestmark = pytest.mark.cluster

RESOLVER = "127.0.0.11"


async def _query(lab: Lab, path: Path, name: str, kind: str = "A") -> DNSRecord:
    reply = await lab.ask_udp(path, RESOLVER, 53, data=DNSRecord.question(name, kind).pack())
    return DNSRecord.parse(reply)


async def _resolve(lab: Lab, path: Path, name: str, kind: str = "A") -> set[str]:
    reply = await _query(lab, path, name, kind)
    assert reply.header.rcode == RCODE.NOERROR, f"{name}: {RCODE.get(reply.header.rcode)}"
    return {str(record.rdata) for record in reply.rr}


async def _code(lab: Lab, path: Path, name: str, kind: str = "A") -> str:
    return str(RCODE.get((await _query(lab, path, name, kind)).header.rcode))


async def _web(lab: Lab) -> tuple[str, str]:
    lab.service("web", "10.0.16.2", aliases=["www"])
    tasks = lab.task(lab.hosts[0], "web", 1), lab.task(lab.hosts[-1], "web", 2)
    await lab.deploy()
    return tasks


async def test_services_tasks_aliases_and_hostnames() -> None:
    async with laboratory(2) as lab:
        lab.service("ring", "", aliases=["circle"])
        member = lab.task(lab.hosts[1], "ring", 1)
        first, second = await _web(lab)
        here = lab.inside(first)
        both = {lab.address(first), lab.address(second)}
        assert await _resolve(lab, here, "web") == await _resolve(lab, here, "WWW.") == {"10.0.16.2"}
        assert await _resolve(lab, here, "tasks.web") == await _resolve(lab, here, "Tasks.Www") == both
        assert await _resolve(lab, here, "ring") == await _resolve(lab, here, "circle") == {lab.address(member)}
        assert await _resolve(lab, here, "web-2") == {lab.address(second)}
        assert await _resolve(lab, here, "web.backend") == {"10.0.16.2"}
        assert await _resolve(lab, here, "web", "AAAA") == set()
        assert await _resolve(lab, here, "web", "MX") == set()
        reverse = ".".join(reversed(lab.address(second).split("."))) + ".in-addr.arpa"
        assert await _resolve(lab, here, reverse, "PTR") == {"web-2.backend."}
        assert await _code(lab, here, "99.16.0.10.in-addr.arpa", "PTR") == "NXDOMAIN"
        # A task that does not serve is named by its hostname only.
        lab.withdraw(second)
        await lab.apply()
        assert await _resolve(lab, here, "tasks.web") == {lab.address(first)}
        assert await _resolve(lab, here, "web-2") == {lab.address(second)}


async def test_names_of_other_networks_are_not_seen() -> None:
    async with laboratory(1) as lab:
        lab.service("web", "10.0.16.2", ports=(port(8080),))
        lab.service("secret", "10.0.32.2", OTHER)
        web = lab.task(lab.hosts[0], "web", 1, networks=(BACKEND, INGRESS))
        secret = lab.task(lab.hosts[0], "secret", 1, networks=(OTHER,))
        both = lab.task(lab.hosts[0], "bridge", 1, networks=(OTHER, BACKEND))
        await lab.deploy()
        assert await _code(lab, lab.inside(web), "secret") == "SERVFAIL"  # nobody outside knows it either
        assert await _code(lab, lab.inside(secret), "web") == "SERVFAIL"
        assert await _resolve(lab, lab.inside(both), "web") == {"10.0.16.2"}
        assert await _resolve(lab, lab.inside(both), "secret") == {"10.0.32.2"}


def _answer_upstream(data: bytes, address: str) -> bytes:
    query = DNSRecord.parse(data)
    reply = query.reply()
    reply.add_answer(RR(query.q.qname, QTYPE.A, rdata=A(address), ttl=5))
    return bytes(reply.pack())


async def _upstream(lab: Lab, path: Path, address: str) -> None:
    """A name server that answers everything with one address."""

    def bind() -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.bind(("0.0.0.0", 53))
        opened.settimeout(0.2)
        return opened

    bound = await lab.threads.run(lab._open, path, bind)

    def serve() -> None:
        with bound:
            while not lab._stopping.is_set():
                try:
                    data, client = bound.recvfrom(4096)
                except TimeoutError:
                    continue
                bound.sendto(_answer_upstream(data, address), client)

    lab._spawn(serve)


async def test_other_names_go_to_the_hosts_servers_or_to_the_services_own() -> None:
    async with laboratory(1) as lab:
        first, _ = await _web(lab)
        special = lab.task(lab.hosts[0], "special", 1)
        server = lab.task(lab.hosts[0], "names", 1)
        await lab.apply()
        network = await lab.attach(server)
        await lab.attach(
            special, dns=types.DnsConfig(nameservers=[lab.hosts[0].address], search=["x"], options=["ndots:2"])
        )
        assert network.resolv_conf == "nameserver 127.0.0.11\nsearch example.test\noptions ndots:0\n"
        assert network.hosts.splitlines()[-1] == f"{lab.address(server)}\tnames-1"
        assert await _code(lab, lab.inside(first), "example.com") == "SERVFAIL"
        await _upstream(lab, lab.outside, "203.0.113.1")
        await _upstream(lab, lab.hosts[0].path, "203.0.113.2")
        assert await _resolve(lab, lab.inside(first), "example.com") == {"203.0.113.1"}
        assert await _resolve(lab, lab.inside(special), "example.com") == {"203.0.113.2"}
        assert await _resolve(lab, lab.inside(special), "web") == {"10.0.16.2"}
        # A container may be a name server itself.
        await _upstream(lab, lab.inside(server), "203.0.113.3")
        reply = await lab.ask_udp(
            lab.inside(first), lab.address(server), 53, data=DNSRecord.question("example.com").pack()
        )
        assert str(DNSRecord.parse(reply).rr[0].rdata) == "203.0.113.3"


async def test_a_long_answer_is_cut_and_comes_whole_over_tcp() -> None:
    async with laboratory(1) as lab:
        lab.service("web", "")
        tasks = [lab.task(lab.hosts[0], "web", number) for number in range(1, 61)]
        await lab.apply()
        await lab.attach(tasks[0])
        here = lab.inside(tasks[0])
        assert (await _query(lab, here, "web")).header.tc
        question = DNSRecord.question("web").pack()
        with await lab.connect(here, RESOLVER, 53) as connection:
            connection.sendall(len(question).to_bytes(2, "big") + question)

            def receive() -> bytes:
                with connection.makefile("rb") as stream:
                    return stream.read(int.from_bytes(stream.read(2), "big"))

            reply = DNSRecord.parse(await lab.threads.run(receive))
        assert {str(record.rdata) for record in reply.rr} == {lab.address(task) for task in tasks}


async def test_the_resolver_outlives_the_agent_and_the_agent_the_resolver() -> None:
    async with laboratory(1) as lab:
        first, _ = await _web(lab)
        (host,) = lab.hosts
        pid = running_resolver(host.run_dir)
        assert pid is not None
        await host.kill()
        assert await _resolve(lab, lab.inside(first), "web") == {"10.0.16.2"}
        await host.start()
        assert running_resolver(host.run_dir) == pid
        lab.service("late", "10.0.16.9")
        await lab.apply()
        assert await _resolve(lab, lab.inside(first), "late") == {"10.0.16.9"}
        os.kill(pid, signal.SIGKILL)

        async def another() -> bool:
            try:
                return await _resolve(lab, lab.inside(first), "late") == {"10.0.16.9"}
            except OSError:
                return False

        await eventually(another)
        assert running_resolver(host.run_dir) not in (None, pid)


async def test_a_resolver_that_died_with_the_agent_is_taken_up_from_its_file() -> None:
    async with laboratory(1) as lab:
        first, _ = await _web(lab)
        (host,) = lab.hosts
        pid = running_resolver(host.run_dir)
        assert pid is not None
        await host.kill()
        os.kill(pid, signal.SIGKILL)
        await host.start()  # before any view
        assert await _resolve(lab, lab.inside(first), "web") == {"10.0.16.2"}
