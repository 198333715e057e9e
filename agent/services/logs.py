"""The service `NodeAgent`: the output of this node's containers, merged by time, with those that follow.

What is there already is merged strictly: the oldest of the tasks' next lines comes first. What is written from then on comes
as it is written; lines that are there at the same moment are put in order.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from swarm.clock import Clock
from swarm.errors import InvalidArgument, first_error
from swarm.names import MAX_LOG_TASKS, task_name
from swarm.v1 import control_pb2 as control
from swarm.v1 import node_pb2 as node
from swarm.v1.node_pb2_grpc import NodeAgentServicer

from agent.runtime.logs import LogLine, read
from agent.tasks.worker import TaskWorker

QUEUE_LINES = 1000  # lines that wait for a slow reader; the containers' logs wait on disk
GAP_LINES = 10_000  # lines a task may write between the two readings

_STREAMS = {"stdout": control.LOG_STREAM_STDOUT, "stderr": control.LOG_STREAM_STDERR}


@dataclass(frozen=True)
class TaskLog:
    """One task's log, and what its lines are labelled with."""

    task_id: str
    name: str
    node_id: str
    path: Path
    ended: asyncio.Event

    def record(self, line: LogLine) -> control.LogRecord:
        return control.LogRecord(
            at=Timestamp(seconds=line.at_ns // 10**9, nanos=line.at_ns % 10**9),
            task_id=self.task_id,
            task_name=self.name,
            node_id=self.node_id,
            stream=_STREAMS[line.stream],
            line=line.line,
        )


class NodeAgentService(NodeAgentServicer):
    """`worker` finds a task of this node; `log_path` says where its output is."""

    def __init__(
        self, worker: Callable[[str], TaskWorker | None], log_path: Callable[[str], Path], clock: Clock
    ) -> None:
        self._worker = worker
        self._log_path = log_path
        self._clock = clock

    async def TaskLogs(self, request: node.TaskLogsRequest, context: Any) -> AsyncIterator[control.LogRecord]:
        if len(request.task_ids) > MAX_LOG_TASKS:
            raise InvalidArgument(f"the logs of at most {MAX_LOG_TASKS} tasks can be asked for at once")
        logs: list[TaskLog] = []
        for task_id in dict.fromkeys(request.task_ids):
            worker = self._worker(task_id)
            if worker is None:
                yield control.LogRecord(task_id=task_id, notice="this node holds no log of the task any more")
                continue
            task = worker.task
            name = task_name(task.service_name, task.slot, task.node_id)
            logs.append(TaskLog(task_id, name, task.node_id, self._log_path(task_id), worker.ended))
        now = int(self._clock.wall() * 1e9)
        since = _nanoseconds(request.since) if request.HasField("since") else None
        until = _nanoseconds(request.until) if request.HasField("until") else None
        tail = request.tail if request.tail >= 0 else None
        history_until = now if until is None else min(until, now)
        async with aclosing(merged(logs, tail=tail, since=since, until=history_until)) as history:
            async for record in history:
                yield record
        if request.follow and (until is None or until > now):
            async with aclosing(following(logs, max(now + 1, since or 0), until)) as news:
                async for record in news:
                    yield record


def _nanoseconds(value: Timestamp) -> int:
    return value.seconds * 10**9 + value.nanos


async def merged(
    logs: Sequence[TaskLog], *, tail: int | None, since: int | None, until: int
) -> AsyncGenerator[control.LogRecord, None]:
    """What the logs hold, by time; `tail` counts for each task."""
    readers = [read(log.path, tail=tail, since_ns=since, until_ns=until) for log in logs]
    heads: list[tuple[int, int, LogLine]] = []
    try:
        for position, reader in enumerate(readers):
            first = await anext(reader, None)
            if first is not None:
                heads.append((first.at_ns, position, first))
        heapq.heapify(heads)
        while heads:
            _, position, line = heads[0]
            yield logs[position].record(line)
            following_line = await anext(readers[position], None)
            if following_line is None:
                heapq.heappop(heads)
            else:
                heapq.heapreplace(heads, (following_line.at_ns, position, following_line))
    finally:
        for reader in readers:
            await _close(reader)


async def following(logs: Sequence[TaskLog], since: int, until: int | None) -> AsyncGenerator[control.LogRecord, None]:
    """What is written from `since` on, until all tasks have ended."""
    lines: asyncio.Queue[tuple[int, int, LogLine] | None] = asyncio.Queue(QUEUE_LINES)

    async def pump(position: int, log: TaskLog) -> None:
        reader = read(log.path, tail=GAP_LINES, since_ns=since, until_ns=until, follow=True, ended=log.ended)
        try:
            async for line in reader:
                await lines.put((line.at_ns, position, line))
        finally:
            await _close(reader)

    async def pump_all() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for position, log in enumerate(logs):
                    group.create_task(pump(position, log))
        except BaseExceptionGroup as errors:
            raise first_error(errors) from errors

    async def finish() -> None:
        try:
            await pump_all()
        except Exception:
            await lines.put(None)
            raise
        await lines.put(None)  # not where it was cancelled: nobody takes from a full queue then

    pumping = asyncio.create_task(finish())
    try:
        over = False
        while not over:
            batch = [await lines.get()]
            while not lines.empty():
                batch.append(lines.get_nowait())
            over = None in batch
            for _, position, line in sorted((each for each in batch if each is not None), key=lambda each: each[:2]):
                yield logs[position].record(line)
        await pumping
    finally:
        pumping.cancel()
        await asyncio.gather(pumping, return_exceptions=True)


async def _close(reader: AsyncIterator[LogLine]) -> None:
    closing = getattr(reader, "aclose", None)
    if closing is not None:
        await closing()
