"""The resolver and the agent's side of it on a host that lacks descriptors, memory or room for a moment."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest
from dnslib import RCODE, DNSRecord
from swarm.errors import Unavailable

from agent.network.plane import Attached, LinuxDataPlane
from agent.network.resolver import Container, Resolver
from agent.network.resolver_client import ResolverClient
from agent.network.resolver_wire import VERSION
from agent.network.wiring import wire
from tests.unit.network.cluster import BACKEND, CLOSED, INGRESS, attachment, overlay, realised, view


def refusing(number: int) -> Any:
    def refuse(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    return refuse


async def test_a_resolver_whose_state_cannot_be_kept_answers_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """/run was full: the resolver ended each conversation with swarmd, whose networks were never up to date again, and one that
    had died could not start, so that no container of the host resolved a name."""
    network = {"name": "backend", "subnet": "10.0.16.0/20", "names": {"web": ["10.0.16.2"]}, "reverse": {}}
    resolver = Resolver(tmp_path, tmp_path / "resolv.conf", random.Random(1))
    await resolver.update({"networks": {"n": network}})
    with monkeypatch.context() as full:
        full.setattr(Path, "write_text", refusing(errno.ENOSPC))
        again = Resolver(tmp_path, tmp_path / "resolv.conf", random.Random(1))
        await again.restore()
        assert await again.update({"networks": {"n": {**network, "names": {"db": ["10.0.16.3"]}}}}) == {}
    assert again._networks["n"].names == {"db": ["10.0.16.3"]}
    assert "No space left on device" in caplog.text
    for each in (resolver, again):
        await each.close()


@pytest.mark.parametrize(
    "state",
    ["{", "[]", '{"networks": {"n": {"title": "x"}}, "containers": {}}', '{"networks": [], "containers": {"t": 5}}'],
)
async def test_what_another_version_of_the_resolver_kept_does_not_keep_it_from_starting(
    state: str, tmp_path: Path
) -> None:
    """A host was upgraded to a version whose resolver keeps other things: it ended as often as it was started, and no container
    resolved a name."""
    (tmp_path / "resolver.json").write_text(state)
    resolver = Resolver(tmp_path, tmp_path / "resolv.conf", random.Random(1))
    await resolver.restore()
    assert await resolver.update({"complete": ["networks", "containers"]}) == {}
    await resolver.close()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
async def test_a_resolver_that_swarmd_cannot_talk_to_for_lack_of_descriptors_goes_on(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """swarmd started without a descriptor left for its connection: it took the resolver for dead and ended it, and could start
    none, so that no container of the host resolved a name."""
    client = ResolverClient(tmp_path, tmp_path / "log", tmp_path / "resolv.conf")
    ended: list[int] = []

    async def end(number: int) -> None:
        ended.append(number)

    async def opened() -> None:
        refusing(number)()

    monkeypatch.setattr(client, "_end", end)
    monkeypatch.setattr(client, "_open", opened)
    with pytest.raises(Unavailable, match=os.strerror(number)):
        await client.start({})
    assert ended == []


async def test_a_resolver_that_cannot_be_started_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task failed because "the node daemon failed unexpectedly"."""
    client = ResolverClient(tmp_path, tmp_path / "log", tmp_path / "resolv.conf")
    monkeypatch.setattr("agent.network.resolver_client._spawn", refusing(errno.EAGAIN))
    with pytest.raises(Unavailable, match="Resource temporarily unavailable"):
        await client.set_container("t1", {"networks": []})


async def test_a_container_that_the_resolver_cannot_serve_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resolver had no descriptor left: the task ran and resolved no name, until something else on its host changed."""
    client = ResolverClient(tmp_path, tmp_path / "log", tmp_path / "resolv.conf")
    failed = {"t1": "Too many open files"}

    async def ask(message: dict[str, Any]) -> dict[str, Any]:
        return {"ok": True, "failed": {key: failed[key] for key in message["containers"] if key in failed}}

    monkeypatch.setattr(client, "_ask", ask)
    with pytest.raises(Unavailable, match="cannot answer in the container: Too many open files"):
        await client.set_container("t1", {"networks": ["n"]})
    await client.set_container("t2", {"networks": ["n"]})
    await client.set_container("t1", None)
    assert client._failed == {}
    failed.clear()
    await client.set_container("t1", {"networks": ["n"]})


async def test_an_answer_for_a_container_that_is_gone_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question to the outside that a container had under way as it ended left a traceback in the resolver's log."""
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    resolver = Resolver(tmp_path, tmp_path / "resolv.conf", random.Random(1))
    asked: list[Any] = []

    def ask_upstream(container: object, query: bytes, send: Any, done: Any) -> None:
        asked.append(send)

    monkeypatch.setattr(resolver, "ask_upstream", ask_upstream)
    container = Container(resolver, {"networks": []})
    container._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: container, local_addr=("127.0.0.1", 0)
    )
    query = bytes(DNSRecord.question("example.org").pack())
    container.datagram_received(query, ("127.0.0.1", 9))
    container.close()
    await asyncio.sleep(0.01)
    (send,) = asked
    send(query)
    await asyncio.sleep(0.01)
    assert complaints == []
    await resolver.close()


class SlowResolver:
    """Stands for the connection: takes over what it is told, and answers when it is `released`."""

    def __init__(self, client: ResolverClient, monkeypatch: pytest.MonkeyPatch) -> None:
        self.networks: dict[str, Any] = {}
        self.containers: dict[str, Any] = {}
        self.asked, self.released = asyncio.Event(), asyncio.Event()
        self.dead = False
        monkeypatch.setattr(client, "_exchange", self.exchange)
        monkeypatch.setattr(client, "_open", self.exchange)

    async def exchange(self, message: Any = None) -> dict[str, Any]:
        if self.dead:
            self.dead = False
            raise ConnectionError("it died")
        if message is None or message["op"] != "update":
            return {"ok": True, "version": VERSION}
        for kind, kept in (("networks", self.networks), ("containers", self.containers)):
            if kind in message.get("complete", ()):
                kept.clear()
            for key, value in message.get(kind, {}).items():
                kept.pop(key, None)
                if value is not None:
                    kept[key] = value
        self.asked.set()
        await self.released.wait()
        return {"ok": True}


async def test_what_changes_while_the_resolver_is_told_is_told_it_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resolver had died and was being told everything as a task began: the task resolved no name as long as it ran. And one
    that ended while its own beginning was told stayed in the resolver, whose sockets kept its network namespace alive."""
    client = ResolverClient(tmp_path, tmp_path / "log", tmp_path / "resolv.conf")
    resolver = SlowResolver(client, monkeypatch)
    resolver.dead = True
    telling = [asyncio.create_task(client.refresh())]
    await resolver.asked.wait()
    telling.append(asyncio.create_task(client.set_container("t1", {"networks": ["n"]})))
    await asyncio.sleep(0)
    resolver.released.set()
    await asyncio.gather(*telling)
    assert resolver.containers == {"t1": {"networks": ["n"]}}

    resolver.asked.clear(), resolver.released.clear()
    telling = [asyncio.create_task(client.set_container("t2", {"networks": ["n"]}))]
    await resolver.asked.wait()
    telling.append(asyncio.create_task(client.set_container("t2", None)))
    await asyncio.sleep(0)
    resolver.released.set()
    await asyncio.gather(*telling)
    assert resolver.containers == {"t1": {"networks": ["n"]}}


async def test_questions_are_no_way_out_of_internal_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program on an internal network could tell anybody outside what it liked, in the names that it asked for: the host's
    resolvers passed them on."""
    asked: list[tuple[str, ...]] = []

    async def forward(query: bytes, servers: tuple[str, ...], *, stream: bool) -> None:
        asked.append(servers)

    monkeypatch.setattr("agent.network.resolver.forward", forward)
    host = tmp_path / "resolv.conf"
    host.write_text("nameserver 192.0.2.1\n")
    resolver = Resolver(tmp_path, host, random.Random(1))
    query = bytes(DNSRecord.question("secret.example.org").pack())
    seen = view(overlay(INGRESS), overlay(BACKEND), overlay(CLOSED))
    closed, ingress = attachment(CLOSED, "10.0.32.5"), attachment(INGRESS, "10.255.0.5")
    for attachments, nameservers, servers in (
        ([closed, ingress], (), ()),
        ([closed, ingress], ("192.0.2.9",), ("192.0.2.9",)),
        ([closed, attachment(BACKEND, "10.0.16.5")], (), ("192.0.2.1",)),
    ):
        wiring = wire("t1", attachments, realised(seen), hostname="t1", nameservers=nameservers)
        plane = LinuxDataPlane(tmp_path, tmp_path, resolv_conf_path=host)
        container = plane._resolver_container(Attached(wiring, 1))
        await plane.stop()
        assert DNSRecord.parse(await resolver.upstream(container, query, stream=False)).header.rcode == RCODE.SERVFAIL
        assert asked.pop() == servers
    await resolver.close()


async def test_a_task_that_is_given_up_while_the_resolver_is_told_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service was removed while a task of it was being attached: the resolver went on serving the task, and so kept its
    network namespace alive, until something else on the host changed."""
    client = ResolverClient(tmp_path, tmp_path / "log", tmp_path / "resolv.conf")
    heard: list[Any] = []

    class Connection:
        def close(self) -> None:
            pass

    async def write(connection: object, message: dict[str, Any]) -> None:
        heard.append(message["containers"])

    async def answer(connection: object) -> dict[str, Any]:
        if len(heard) == 1:
            await asyncio.sleep(60)
        return {"ok": True}

    async def connect() -> None:
        client._connection = (Connection(), Connection())  # type: ignore[assignment]
        await client._exchange(client._everything())

    monkeypatch.setattr("agent.network.resolver_client.write_message", write)
    monkeypatch.setattr("agent.network.resolver_client.read_message", answer)
    monkeypatch.setattr(client, "_connect", connect)
    client._connection = (Connection(), Connection())  # type: ignore[assignment]
    beginning = asyncio.create_task(client.set_container("t1", {"networks": []}))
    await asyncio.sleep(0)
    beginning.cancel()
    await asyncio.gather(beginning, return_exceptions=True)
    await client.set_container("t1", None)
    assert heard == [{"t1": {"networks": []}}, {}]
