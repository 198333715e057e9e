"""A manager's log and store as a process of its own: `python -m tests.bench.raft_member DIRECTORY NAME MEMBERS`.

What a manager has around its log – TLS, sealing, the store, transactions, the control loop – without agents and people. It
reads one JSON request a line ({id, do, ...}), plays the load that the request names from its own event loop, as a manager's
API does, and answers with one line. Meanwhile it notes when each tick of the protocol began.
"""

from __future__ import annotations

import sys

from swarm import footprint

footprint.begin()

# ruff: noqa: E402 – as in a manager: everything else is imported by a process that was told to stay small
import asyncio
import json
import logging
import os
import queue
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from swarm.clock import SystemClock, timestamp
from swarm.errors import SwarmError
from swarm.identity import TlsFiles
from swarm.ids import id_source
from swarm.servers import RpcServer
from swarm.v1 import types_pb2 as types

from orchestrator.consensus import Member
from orchestrator.controllers.loop import ControlLoop
from orchestrator.raft import RaftConfig, RaftNode
from orchestrator.store import Change, Create, Kind, Remove, SetTaskStatus, Store, Transactions
from orchestrator.store.states import is_final
from tests.support.json_lines import serve

TIMEOUT = 60.0  # seconds of one commit under load
FILL_OBJECTS = 500  # in one transaction
NODES = 50
ON_ONE_NETWORK = 2_500  # tasks; a network has 4,094 addresses
STEPS = (
    types.TASK_STATE_ACCEPTED, types.TASK_STATE_PREPARING, types.TASK_STATE_READY, types.TASK_STATE_STARTING,
    types.TASK_STATE_RUNNING,
)  # fmt: skip

log = logging.getLogger(__name__)


def task(id_: str, *, padding: int = 0) -> types.Task:
    """A task that ended long ago; nobody acts upon it."""
    return types.Task(
        id=id_,
        service_id="bench",
        revision_id="bench",
        slot=1 + hash(id_) % 1_000_000,
        node_id=f"node{hash(id_) % NODES}",
        service_name="bench",
        desired_state=types.TASK_STATE_SHUTDOWN,
        # Half of it can be compressed away, about as of ids, addresses and words.
        status=types.TaskStatus(
            state=types.TASK_STATE_SHUTDOWN, message="stopped", error=os.urandom(padding // 2).hex() if padding else ""
        ),
    )


class Inbox:
    """The tick thread's queue; counts how long that thread has waited in it, which is no delay. Waking up later than asked
    for is one."""

    def __init__(self, inner: queue.SimpleQueue[Any]) -> None:
        self.put, self.get_nowait = inner.put, inner.get_nowait
        self._get = inner.get
        self.idle = 0.0

    def get(self, timeout: float) -> Any:
        began = time.monotonic()
        try:
            return self._get(timeout=timeout)
        finally:
            self.idle += min(timeout, time.monotonic() - began)


class Ticks:
    """How long each tick of the protocol kept whatever was due or came next waiting."""

    def __init__(self) -> None:
        self._busy: list[float] = []

    def attach(self, node: RaftNode) -> None:
        core = node._core
        assert core is not None
        inbox: Any = Inbox(node._links._inbox)
        node._links._inbox = inbox
        library_tick, busy = core.doTick, self._busy
        last, idle = time.monotonic(), 0.0

        def tick(wait: float) -> None:
            nonlocal last, idle
            now = time.monotonic()
            busy.append(now - last - (inbox.idle - idle))
            last, idle = now, inbox.idle
            library_tick(wait)

        core.doTick = tick

    def take(self) -> list[float]:
        """Seconds of each tick since the last call, but for its waits."""
        busy = self._busy[:]
        del self._busy[: len(busy)]
        return busy


class MemberProcess:
    def __init__(self, directory: Path, name: str, members: dict[str, str]) -> None:
        tls = TlsFiles(directory / "certificates" / name)
        self.clock = SystemClock()
        self.store = Store()
        self.node = RaftNode(
            RaftConfig(
                directory / name,
                Member(name, members[name]),
                tls.read,
                initial_members=tuple(Member(node_id, address) for node_id, address in members.items()),
                data_key=directory / "certificates" / name / "data.key",
            ),
            self.store,
        )
        self.server = RpcServer()
        self.node.register(self.server)
        self.server.listen_tls(members[name], tls.read)
        self.transactions = Transactions(self.node, self.store, proposer=name, clock=self.clock)
        self.ticks = Ticks()
        self.new_id = id_source(random.Random())
        self.terms: set[int] = set()
        self.loaded = 0.0
        self.background: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        await self.server.start()
        began = time.monotonic()
        await self.node.start()
        self.loaded = time.monotonic() - began
        self.ticks.attach(self.node)
        self.node.on_leadership(lambda leadership: self.terms.add(leadership.term))

    async def stop(self) -> None:
        for running in self.background:
            running.cancel()
        await asyncio.gather(*self.background, return_exceptions=True)
        await self.node.stop(transfer=False)
        await self.server.stop(0)

    # ---- what is asked

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        asked = request.pop("do")
        return await getattr(self, f"do_{asked}")(**request)  # type: ignore[no-any-return]

    async def do_status(self) -> dict[str, Any]:
        leadership, status = self.node.leadership(), self.node.status()
        core = self.node._core
        assert core is not None
        return {
            "leads": leadership.ready, "leader": leadership.leader_id, "term": leadership.term,
            "elections": core.elections_started, "applied": status.applied_index, "loaded": self.loaded,
            "objects": self.store.snapshot().size(), "cpu": time.process_time(),
            "snapshot": core.snapshot.index if core.snapshot else 0, "base": core.base_index, "busy": core._snapshot_busy,
        }  # fmt: skip

    async def do_ticks(self) -> dict[str, Any]:
        return {"busy": self.ticks.take()}

    async def do_write(self, count: int, pause: float = 0.0) -> dict[str, Any]:
        """One writer."""
        seconds = []
        for _ in range(count):
            seconds.append(await self._timed(self._write))
            if pause:
                await asyncio.sleep(pause)
        return {"seconds": seconds}

    async def do_flight(self, width: int, duration: float) -> dict[str, Any]:
        """So many writers at once."""
        seconds: list[float] = []
        end = time.monotonic() + duration

        async def writer() -> None:
            while time.monotonic() < end:
                seconds.append(await self._timed(self._write))

        async with asyncio.TaskGroup() as group:
            for _ in range(width):
                group.create_task(writer())
        return {"seconds": seconds}

    async def do_large(self, objects: int, count: int) -> dict[str, Any]:
        """Transactions of so many tasks; they are removed again."""
        seconds = []
        for _ in range(count):
            ids = [self.new_id() for _ in range(objects)]
            changes = [Create(task(id_)) for id_ in ids]
            seconds.append(await self._timed(lambda c=changes: self.commit(c)))  # type: ignore[misc]
            await self.commit([Remove(Kind.TASK, id_) for id_ in ids])
        return {"seconds": seconds}

    async def do_read(self, count: int) -> dict[str, Any]:
        return {"seconds": [await self._timed(lambda: self.node.read_barrier(timeout=TIMEOUT)) for _ in range(count)]}

    async def do_fill(self, tasks: int, padding: int) -> dict[str, Any]:
        """Brings the store to about so many tasks, of `padding` bytes and some more each."""
        while (missing := tasks - len(self.store.snapshot().tasks)) > 0:
            count = min(missing, FILL_OBJECTS)
            await self.commit([Create(task(self.new_id(), padding=padding)) for _ in range(count)])
        return {"objects": self.store.snapshot().size()}

    async def do_snapshot(self) -> dict[str, Any]:
        """Has the log take a snapshot now; returns once it is stored, with the seconds that took."""
        core = self.node._core
        assert core is not None
        began = time.monotonic()
        loop, stored = asyncio.get_running_loop(), asyncio.Event()
        failures: list[SwarmError] = []

        def done(error: SwarmError | None) -> None:
            if error is not None:
                failures.append(error)
            loop.call_soon_threadsafe(stored.set)

        self.node._links.post(core.take_snapshot, done)
        await asyncio.wait_for(stored.wait(), TIMEOUT)
        if failures:
            raise failures[0]
        return {"took": time.monotonic() - began}

    async def do_schedule(self, tasks: int, duration: float) -> dict[str, Any]:
        """The control loop places so many tasks, while agents of ours report each step of each: until all of them run."""
        await self._prepare_cluster()
        began = time.monotonic()
        self.background = [
            asyncio.create_task(ControlLoop(self.store, self.transactions, clock=self.clock, new_id=self.new_id).run()),
            asyncio.create_task(self._agents()),
        ]
        services = set()
        for number in range(-(-tasks // ON_ONE_NETWORK)):
            services.add(await self._create_service(number, min(ON_ONE_NETWORK, tasks - number * ON_ONE_NETWORK)))
        placed = 0.0
        _, watch = self.store.watch()
        with watch:
            async with asyncio.timeout(duration):
                while True:
                    states = [task.status.state for task in self.store.snapshot().tasks if task.service_id in services]
                    if not placed and sum(state >= types.TASK_STATE_ASSIGNED for state in states) >= tasks:
                        placed = time.monotonic() - began
                    if sum(state == types.TASK_STATE_RUNNING for state in states) >= tasks:
                        break
                    ended = [running for running in self.background if running.done()]
                    for running in ended:
                        running.result()  # raises what ended it
                    await watch.wait()
                    await asyncio.sleep(0.2)  # looking at all of them is a load of its own
                    watch.take()
        for running in self.background:
            running.cancel()
        return {"placed": placed, "running": time.monotonic() - began}

    async def _create_service(self, number: int, replicas: int) -> str:
        network = types.Network(id=f"net{number}", spec=types.NetworkSpec(name=f"net{number}"))
        spec = types.ServiceSpec(
            name=f"scheduled{number}",
            task=types.TaskSpec(container=types.ContainerSpec(image="bench", args=["sleep", "100"])),
        )
        spec.mode.replicated.replicas = replicas
        spec.task.networks.add(network=network.id)
        service_id, revision = self.new_id(), self.new_id()
        await self.commit([
            Create(network),
            Create(types.ServiceRevision(id=revision, service_id=service_id, spec=spec)),
            Create(types.Service(id=service_id, spec=spec, revision_id=revision)),
        ])  # fmt: skip
        return service_id

    # ---- loads

    async def commit(self, changes: Sequence[Change]) -> None:
        await self.transactions.commit(changes, timeout=TIMEOUT)

    async def _timed(self, action: Callable[[], Awaitable[Any]]) -> float:
        began = time.perf_counter()
        await action()
        return time.perf_counter() - began

    async def _write(self) -> None:
        await self.commit([Create(task(self.new_id()))])

    async def _prepare_cluster(self) -> None:
        made: list[Change] = [
            Create(types.Cluster(id="c", spec=types.ClusterSpec(name="default", task_history_limit=1))),
            Create(types.Network(id="net-default", spec=types.NetworkSpec(name="default"))),
        ]
        for number in range(1, NODES + 1):
            made.append(
                Create(
                    types.Node(
                        id=f"node{number}",
                        number=number,
                        role=types.NODE_ROLE_WORKER,
                        spec=types.NodeSpec(availability=types.AVAILABILITY_ACTIVE),
                        description=types.NodeDescription(
                            hostname=f"node{number}", os="linux", architecture="amd64", address=f"192.168.0.{number}",
                            resources=types.Resources(nano_cpus=4_000_000_000, memory_bytes=4 << 30),
                        ),
                        status=types.NodeStatus(state=types.NODE_STATE_READY),
                    )
                )
            )  # fmt: skip
        await self.commit(made)

    async def _agents(self) -> None:
        """Moves each task on, a step at a time, in batches such as the dispatcher commits."""
        snapshot, watch = self.store.watch()
        due = [task.id for task in snapshot.tasks if self._next(task)]
        with watch:
            while True:
                for start in range(0, len(due), FILL_OBJECTS):
                    await self._report(due[start : start + FILL_OBJECTS])
                events = await watch.next()
                changed: Iterator[Any] = (
                    iter(events.snapshot.tasks) if events.changes is None else (change.new for change in events.changes)
                )
                due = [obj.id for obj in changed if isinstance(obj, types.Task) and self._next(obj)]

    async def _report(self, ids: list[str]) -> None:
        now, tasks = timestamp(self.clock.wall()), self.store.snapshot().tasks
        found = ((id_, tasks.get(id_)) for id_ in ids)
        steps = [(id_, step) for id_, obj in found if obj is not None and (step := self._next(obj))]
        if steps:
            await self.commit([SetTaskStatus(id_, types.TaskStatus(state=step, at=now)) for id_, step in steps])

    @staticmethod
    def _next(obj: types.Task) -> types.TaskState.ValueType | None:
        state = obj.status.state
        if state < types.TASK_STATE_ASSIGNED or is_final(state) or obj.desired_state > types.TASK_STATE_RUNNING:
            return None
        return next((step for step in STEPS if step > state), None)


async def main(directory: Path, name: str, members: dict[str, str]) -> None:
    member = MemberProcess(directory, name, members)
    await member.start()

    async def answer(request: dict[str, Any]) -> dict[str, Any]:
        try:
            return await member.answer(request)
        except Exception as error:  # noqa: BLE001 – told to who asked
            return {"error": f"{type(error).__name__}: {error}"}

    await serve(answer)
    await member.stop()


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])))
