"""The logs of a service or a task, from all its nodes, in one stream.

For each node there is a call to its agent (`NodeAgent.TaskLogs`; more where it had very many of the tasks), and all of them
put records into one bounded queue: an agent that prints faster than the caller reads is held back by its own connection. While
following, the store's watch tells of tasks that start later. A node that cannot be reached becomes a notice in the stream, not
its end.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from swarm.cancellation import raise_if_cancelled
from swarm.errors import NotFound, SwarmError, from_rpc
from swarm.names import MAX_LOG_TASKS
from swarm.retry import Backoff
from swarm.streams import Pumped
from swarm.v1 import control_pb2, node_pb2, types_pb2
from swarm.v1.node_pb2_grpc import NodeAgentStub

from orchestrator.api.lookup import find_service, find_task, name_of_task
from orchestrator.store import Snapshot, Store
from orchestrator.store.tables import node_name

QUEUE_RECORDS = 256
ANSWER_TIMEOUT = 10.0  # seconds for an agent to begin, where it is not followed
_BACKOFF = Backoff(first=0.5, maximum=10.0)

AgentChannel = Callable[[types_pb2.Node], grpc.aio.Channel]


class _Replaced(Exception):
    """The connection was closed on our side, as after a renewal of our certificate: the next call has a new one."""


def has_log(task: types_pb2.Task) -> bool:
    """The task's container was started, or tried, on a node."""
    return bool(task.node_id) and task.status.state >= types_pb2.TASK_STATE_STARTING


class LogStream:
    """One `ServiceLogs` call."""

    def __init__(
        self, store: Store, agent_channel: AgentChannel, request: control_pb2.ServiceLogsRequest, *, rng: random.Random
    ) -> None:
        self._store = store
        self._agent_channel = agent_channel
        self._request = request
        self._rng = rng
        self._queue: asyncio.Queue[control_pb2.LogRecord] = asyncio.Queue(QUEUE_RECORDS)
        self._begun: set[str] = set()  # tasks whose log is, or was, being read

    async def records(self) -> AsyncIterator[control_pb2.LogRecord]:
        """Until every log ended; while following, until the service (or task) is gone. Raises NotFound, InvalidArgument."""
        snapshot = self._store.snapshot()
        service_id, task_id = self._subject(snapshot)
        async with Pumped(self._merged(service_id, task_id)) as merged:
            async for record in merged:
                yield record

    def _subject(self, snapshot: Snapshot) -> tuple[str, str]:
        """(service, "") or ("", task)."""
        reference = self._request.reference
        try:
            return find_service(snapshot, reference).id, ""
        except NotFound:
            try:
                return "", find_task(snapshot, reference).id
            except NotFound:
                raise NotFound(
                    f'there is no service and no task "{reference}"; `swarmctl service ls` lists the services'
                ) from None

    async def _merged(self, service_id: str, task_id: str) -> AsyncIterator[control_pb2.LogRecord]:
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self._read_all(service_id, task_id))
            while not (reading.done() and self._queue.empty()):
                waiting: asyncio.Future[control_pb2.LogRecord] = asyncio.ensure_future(self._queue.get())
                try:
                    await asyncio.wait((waiting, reading), return_when=asyncio.FIRST_COMPLETED)
                    if waiting.done():
                        yield waiting.result()
                finally:
                    waiting.cancel()

    async def _read_all(self, service_id: str, task_id: str) -> None:
        """Begins a reader for each node and group of new tasks; ends when there is nothing more to come."""
        snapshot, watch = self._store.watch()
        with watch:
            async with asyncio.TaskGroup() as readers:
                while True:
                    tasks = self._tasks(snapshot, service_id, task_id)
                    for node_id, new in _by_node(task for task in tasks if self._is_new(task)).items():
                        self._begun.update(task.id for task in new)
                        for first in range(0, len(new), MAX_LOG_TASKS):
                            readers.create_task(self._read_node(snapshot, node_id, new[first : first + MAX_LOG_TASKS]))
                    if not self._request.follow or not self._is_there(snapshot, service_id, task_id):
                        return
                    snapshot = (await watch.next()).snapshot

    @staticmethod
    def _tasks(snapshot: Snapshot, service_id: str, task_id: str) -> Iterable[types_pb2.Task]:
        if service_id:
            return snapshot.tasks.of_service(service_id)
        task = snapshot.tasks.get(task_id)
        return () if task is None else (task,)

    def _is_new(self, task: types_pb2.Task) -> bool:
        return has_log(task) and task.id not in self._begun

    @staticmethod
    def _is_there(snapshot: Snapshot, service_id: str, task_id: str) -> bool:
        """Whether more can come: the service exists, or the one task has not ended."""
        if service_id:
            return service_id in snapshot.services
        task = snapshot.tasks.get(task_id)
        return task is not None and task.status.state < types_pb2.TASK_STATE_COMPLETE

    async def _read_node(self, snapshot: Snapshot, node_id: str, tasks: Sequence[types_pb2.Task]) -> None:
        """Reads the logs of some tasks from their node. While following, a lost connection is taken up where it broke."""
        node = snapshot.nodes.get(node_id)
        names = {task.id: name_of_task(task) for task in tasks}
        if node is None:
            await self._notice(node_id, node_id, f"node {node_id} was removed; the logs of {_list(names)} went with it")
            return
        request = node_pb2.TaskLogsRequest(task_ids=list(names), follow=self._request.follow, tail=self._request.tail)
        if self._request.HasField("since"):
            request.since.CopyFrom(self._request.since)
        if self._request.HasField("until"):
            request.until.CopyFrom(self._request.until)
        delays = _BACKOFF.delays(self._rng)
        told = -1  # how far it had been read when its loss was told last: once for each loss
        while True:
            try:
                error = await self._read_call(node, request, names)
            except _Replaced:
                continue
            if error is None or isinstance(error, NotFound):  # all read, or nothing was ever logged there
                return
            label = node_name(node)
            if request.since.ToNanoseconds() != told:
                told = request.since.ToNanoseconds()
                await self._notice(
                    node_id, label, f'node "{label}" is not reachable, its logs are missing here: {error}'
                )
            current = self._store.snapshot()
            if not self._request.follow or all(task_id not in current.tasks for task_id in names):
                return
            await asyncio.sleep(next(delays))
            node = current.nodes.get(node_id) or node

    async def _read_call(
        self, node: types_pb2.Node, request: node_pb2.TaskLogsRequest, names: dict[str, str]
    ) -> SwarmError | None:
        """One call to the agent, to its end. Moves `request` on past what was read, for the next call. Raises _Replaced."""
        call = NodeAgentStub(self._agent_channel(node)).TaskLogs(request)
        label = node_name(node)
        try:
            while True:
                async with asyncio.timeout(None if request.follow else ANSWER_TIMEOUT):
                    record = await call.read()
                if not isinstance(record, control_pb2.LogRecord):  # the end
                    return None
                if record.HasField("at"):
                    request.since.CopyFrom(_just_after(record.at))
                    request.tail = -1
                record.task_name = names.get(record.task_id, record.task_name)
                record.node_id, record.node_name = node.id, label
                await self._queue.put(record)
        except grpc.aio.AioRpcError as error:
            raise_if_cancelled()
            return from_rpc(error, "its agent")
        except asyncio.CancelledError:
            raise_if_cancelled()
            raise _Replaced from None
        except TimeoutError:
            return SwarmError(f"it did not answer within {ANSWER_TIMEOUT:g} s")
        finally:
            call.cancel()

    async def _notice(self, node_id: str, label: str, text: str) -> None:
        await self._queue.put(control_pb2.LogRecord(node_id=node_id, node_name=label, notice=text))


def _by_node(tasks: Iterable[types_pb2.Task]) -> dict[str, list[types_pb2.Task]]:
    nodes: dict[str, list[types_pb2.Task]] = {}
    for task in tasks:
        nodes.setdefault(task.node_id, []).append(task)
    return nodes


def _just_after(at: Timestamp) -> Timestamp:
    nanos = at.nanos + 1
    return Timestamp(seconds=at.seconds + nanos // 1_000_000_000, nanos=nanos % 1_000_000_000)


def _list(names: dict[str, str]) -> str:
    return ", ".join(sorted(set(names.values())))
