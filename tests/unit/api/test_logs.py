"""Logs from real (in-process) agents: merged, labelled, following tasks that appear, outliving agents that do not answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from swarm.channels import open_local
from swarm.clock import timestamp
from swarm.errors import NotFound
from swarm.retry import Backoff
from swarm.servers import RpcServer
from swarm.v1 import control_pb2, node_pb2, types_pb2
from swarm.v1.node_pb2_grpc import NodeAgentServicer, add_NodeAgentServicer_to_server

from orchestrator.api import logs
from orchestrator.api.logs import LogStream
from orchestrator.store import Create, Kind, Remove, SetTaskStatus, Update, copy_of
from tests.unit.api.support import Api, web

TIMEOUT = 20.0
RUNNING = types_pb2.TASK_STATE_RUNNING


class Agent(NodeAgentServicer):
    """Prints, for each task asked for, the lines that the test gave it; while followed it stays open."""

    def __init__(self) -> None:
        self.lines: dict[str, list[bytes]] = {}
        self.requests: list[node_pb2.TaskLogsRequest] = []
        self.break_after: int | None = None

    async def TaskLogs(self, request, context):  # type: ignore[no-untyped-def]
        self.requests.append(request)
        sent = 0
        for task_id in request.task_ids:
            for number, line in enumerate(self.lines.get(task_id, [])):
                at = timestamp(1000.0 + number)
                if request.HasField("since") and at.ToNanoseconds() < request.since.ToNanoseconds():
                    continue
                if self.break_after == sent:
                    self.break_after = None
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "connection lost")
                sent += 1
                yield control_pb2.LogRecord(at=at, task_id=task_id, line=line)
        if request.follow:
            await asyncio.Event().wait()


class Hosts:
    def __init__(self, api: Api, channels: dict[str, grpc.aio.Channel], agents: dict[str, Agent]) -> None:
        self.api = api
        self.agents = agents
        self.channels = channels
        self.service_id = ""

    async def add_task(self, id_: str, slot: int, node: str, state: types_pb2.TaskState.ValueType = RUNNING) -> None:
        task = types_pb2.Task(
            id=id_, service_id=self.service_id, service_name="web", slot=slot, node_id=node, desired_state=RUNNING
        )
        task.status.state = state
        await self.api.transactions.commit([Create(task)])

    def stream(self, **fields: object) -> AsyncIterator[control_pb2.LogRecord]:
        request = control_pb2.ServiceLogsRequest(**{"reference": "web", "tail": -1, **fields})  # type: ignore[arg-type]
        opened = LogStream(self.api.store, lambda node: self.channels[node.id], request, rng=random.Random(1))
        return opened.records()


@asynccontextmanager
async def hosts(directory: Path, *names: str) -> AsyncIterator[Hosts]:
    api = await Api().start()
    channels: dict[str, grpc.aio.Channel] = {}
    agents: dict[str, Agent] = {}
    servers = []
    for number, name in enumerate(names, start=2):
        agent, server = Agent(), RpcServer()
        add_NodeAgentServicer_to_server(agent, server.server)
        server.listen_unix(directory / f"{name}.sock")
        await server.start()
        servers.append(server)
        agents[name], channels[name] = agent, open_local(directory / f"{name}.sock")
        node = types_pb2.Node(id=name, number=number)
        node.description.hostname = f"host-{name}"
        await api.transactions.commit([Create(node)])
    made = Hosts(api, channels, agents)
    made.service_id = "s1"
    await api.transactions.commit([Create(types_pb2.Service(id="s1", spec=web()))])
    try:
        yield made
    finally:
        for channel in channels.values():
            await channel.close()
        for server in servers:
            await server.stop(0)


async def collect(
    stream: AsyncIterator[control_pb2.LogRecord], until: Callable[[list[control_pb2.LogRecord]], bool]
) -> list[control_pb2.LogRecord]:
    records: list[control_pb2.LogRecord] = []
    async with asyncio.timeout(TIMEOUT):
        async for record in stream:
            records.append(record)
            if until(records):
                break
    await stream.aclose()  # type: ignore[attr-defined]
    return records


def never(records: list[control_pb2.LogRecord]) -> bool:
    return False


async def test_the_logs_of_all_nodes_come_labelled_and_end(tmp_path: Path) -> None:
    async with hosts(tmp_path, "w1", "w2") as made:
        made.agents["w1"].lines = {"a": [b"one", b"two"]}
        made.agents["w2"].lines = {"b": [b"three"]}
        await made.add_task("a", 1, "w1")
        await made.add_task("b", 2, "w2")
        await made.add_task("c", 3, "", types_pb2.TASK_STATE_PENDING)
        records = await collect(made.stream(), never)
        assert sorted((record.task_name, record.node_name, record.line) for record in records) == [
            ("web.1", "host-w1", b"one"),
            ("web.1", "host-w1", b"two"),
            ("web.2", "host-w2", b"three"),
        ]


async def test_a_node_with_more_tasks_than_fit_into_a_call_shows_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a node that remembers more than a thousand tasks of the service, ended ones too, nothing was shown: "is not reachable,
    its logs are missing here: the logs of at most 1000 tasks can be asked for at once"."""
    monkeypatch.setattr(logs, "MAX_LOG_TASKS", 2)
    async with hosts(tmp_path, "w1") as made:
        for slot, id_ in enumerate("abc", start=1):
            made.agents["w1"].lines[id_] = [id_.encode()]
            await made.add_task(id_, slot, "w1")
        assert sorted(record.line for record in await collect(made.stream(), never)) == [b"a", b"b", b"c"]
        assert sorted(len(request.task_ids) for request in made.agents["w1"].requests) == [1, 2]


async def test_one_tasks_logs_by_its_name(tmp_path: Path) -> None:
    async with hosts(tmp_path, "w1") as made:
        made.agents["w1"].lines = {"a": [b"one"], "b": [b"two"]}
        await made.add_task("a", 1, "w1")
        await made.add_task("b", 2, "w1")
        assert [record.line for record in await collect(made.stream(reference="web.2"), never)] == [b"two"]
        with pytest.raises(NotFound, match='no service and no task "nix"'):
            await collect(made.stream(reference="nix"), never)


async def test_following_takes_up_tasks_that_start_later(tmp_path: Path) -> None:
    async with hosts(tmp_path, "w1", "w2") as made:
        made.agents["w1"].lines = {"a": [b"one"]}
        made.agents["w2"].lines = {"b": [b"two"]}
        await made.add_task("a", 1, "w1")
        stream = made.stream(follow=True)
        async with asyncio.timeout(TIMEOUT):
            assert (await anext(stream)).line == b"one"
        await made.add_task("b", 2, "w2", types_pb2.TASK_STATE_PREPARING)
        status = types_pb2.TaskStatus(state=types_pb2.TASK_STATE_STARTING)
        await made.api.transactions.commit([SetTaskStatus("b", status)])
        assert [record.line for record in await collect(stream, lambda records: len(records) == 1)] == [b"two"]
        assert len(made.agents["w1"].requests) == 1


async def test_following_ends_with_the_service(tmp_path: Path) -> None:
    async with hosts(tmp_path, "w1") as made:
        stream = made.stream(follow=True)
        ending = asyncio.create_task(collect(stream, never))
        await asyncio.sleep(0)
        await made.api.transactions.commit([Remove(Kind.SERVICE, "s1")])
        assert await ending == []


async def test_a_node_that_is_not_reachable_is_a_notice(tmp_path: Path) -> None:
    async with hosts(tmp_path, "w1", "w2") as made:
        made.agents["w1"].lines = {"a": [b"one"]}
        made.channels["w2"] = open_local(tmp_path / "nobody.sock")
        await made.add_task("a", 1, "w1")
        await made.add_task("b", 2, "w2")
        records = await collect(made.stream(), never)
        assert [record.line for record in records if record.line] == [b"one"]
        [notice] = [record for record in records if record.notice]
        assert notice.notice.startswith('node "host-w2" is not reachable')
        await made.api.transactions.commit([Remove(Kind.NODE, "w2")])
        assert any("w2 was removed" in record.notice for record in await collect(made.stream(), never))


async def test_a_broken_connection_is_taken_up_where_it_broke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_BACKOFF", Backoff(first=0.01, maximum=0.01))
    async with hosts(tmp_path, "w1") as made:
        made.agents["w1"].lines = {"a": [b"one", b"two", b"three"]}
        made.agents["w1"].break_after = 2
        await made.add_task("a", 1, "w1")
        records = await collect(made.stream(follow=True), lambda records: len(records) == 4)
        assert [record.line for record in records if record.line] == [b"one", b"two", b"three"]
        assert len([record for record in records if record.notice]) == 1


async def test_a_connection_that_we_replace_is_taken_up_where_it_was(tmp_path: Path) -> None:
    """Half a minute after the manager's certificate had been renewed, `service logs -f` went silent about every node that was
    asked anything since, without a word: the old connection was closed, and its reader taken for one that was told to end."""
    async with hosts(tmp_path, "w1") as made:
        made.agents["w1"].lines = {"a": [b"one"]}
        await made.add_task("a", 1, "w1")
        stream = made.stream(follow=True)
        async with asyncio.timeout(TIMEOUT):
            assert (await anext(stream)).line == b"one"
        made.agents["w1"].lines["a"] += [b"two"]
        old, made.channels["w1"] = made.channels["w1"], open_local(tmp_path / "w1.sock")
        following = asyncio.ensure_future(anext(stream))
        await old.close()
        async with asyncio.timeout(5.0):
            record = await following
        assert (record.line, record.notice) == (b"two", "")
        await stream.aclose()  # type: ignore[attr-defined]


async def test_a_reader_that_is_slow_holds_the_agent_back(tmp_path: Path) -> None:
    async with hosts(tmp_path, "w1") as made:
        made.agents["w1"].lines = {"a": [b"x" * 1000] * 5000}
        await made.add_task("a", 1, "w1")
        stream = made.stream()
        opened = 0
        async with asyncio.timeout(TIMEOUT):
            async for _ in stream:
                opened += 1
        assert opened == 5000


async def test_the_name_of_a_node_is_the_given_one(tmp_path: Path) -> None:
    async with hosts(tmp_path, "w1") as made:
        node = copy_of(made.api.snapshot.nodes["w1"])
        node.spec.name = "named"
        await made.api.transactions.commit([Update(node)])
        made.agents["w1"].lines = {"a": [b"one"]}
        await made.add_task("a", 1, "w1")
        assert [record.node_name for record in await collect(made.stream(), never)] == ["named"]
