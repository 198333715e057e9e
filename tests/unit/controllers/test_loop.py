"""The leader's loop over a log of one member: few entries, no polling, conflicts decided anew, an end with the leadership."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from swarm.clock import SystemClock, duration
from swarm.errors import OutcomeUnknown, ResourceExhausted, SwarmError, Unavailable
from swarm.ids import id_source
from swarm.v1.store_pb2 import Command
from swarm.v1.types_pb2 import (
    NODE_STATE_READY,
    TASK_STATE_ASSIGNED,
    TASK_STATE_FAILED,
    Cluster,
    Network,
    NetworkSpec,
    Node,
    NodeStatus,
    Service,
    ServiceRevision,
    ServiceSpec,
    TaskStatus,
)

from orchestrator.consensus import Committed
from orchestrator.controllers import ControlLoop
from orchestrator.controllers import loop as loop_module
from orchestrator.store import Create, SetTaskStatus, Snapshot, Store, Transactions, Update, copy_of
from tests.support.consensus import LocalConsensus


class Bench:
    def __init__(self) -> None:
        self.store = Store()
        self.log = LocalConsensus(self.store)
        self.transactions = Transactions(self.log, self.store, proposer="m1", clock=SystemClock())
        self.rounds: list[int] = []
        self.loop = ControlLoop(
            self.store,
            self.transactions,
            clock=SystemClock(),
            new_id=id_source(random.Random(1)),
            observer=lambda changes, _: self.rounds.append(changes),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.transactions.commit(
            [
                Create(Cluster(id="c")),
                Create(Network(id="default", spec=NetworkSpec(name="default"))),
                *(Create(Node(id=f"n{n}", number=n, status=NodeStatus(state=NODE_STATE_READY))) for n in (1, 2)),
            ]
        )
        task = asyncio.create_task(self.loop.run())
        await self.until(lambda snapshot: bool(snapshot.networks["default"].vni))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def create(self, name: str, replicas: int, delay: float | None = None) -> None:
        spec = ServiceSpec(name=name)
        spec.mode.replicated.replicas = replicas
        if delay is not None:
            spec.task.restart.delay.CopyFrom(duration(delay))
        revision = ServiceRevision(id=f"{name}-1", service_id=name, number=1, spec=spec)
        await self.transactions.commit([Create(revision), Create(Service(id=name, spec=spec, revision_id=revision.id))])

    async def until(self, condition: Callable[[Snapshot], bool]) -> Snapshot:
        snapshot, watch = self.store.watch()
        with watch:
            async with asyncio.timeout(20):
                while not condition(snapshot):
                    snapshot = (await watch.next()).snapshot
        return snapshot


def assigned(count: int) -> Callable[[Snapshot], bool]:
    return lambda snapshot: sum(task.status.state == TASK_STATE_ASSIGNED for task in snapshot.tasks) == count


async def test_one_entry_from_the_created_service_to_assigned_tasks() -> None:
    bench = Bench()
    async with bench.running():
        before = bench.log.index
        await bench.create("web", 30)
        await bench.until(assigned(30))
        await asyncio.sleep(0)
        assert bench.log.index == before + 2
        assert bench.rounds[-1] == 31, "30 tasks and the service's virtual IP"


async def test_a_conflict_is_decided_anew() -> None:
    bench = Bench()
    propose = bench.log.propose
    met: list[str] = []

    async def meddle(command: bytes, *, timeout: float) -> Committed:
        """Somebody changes the service between the loop's decision and its entry."""
        if not met and any(action.create.HasField("task") for action in Command.FromString(command).actions):
            met.append("conflict")
            changed = copy_of(bench.store.snapshot().services["web"])
            changed.spec.mode.replicated.replicas = 5
            await bench.transactions.commit([Update(changed)])
        return await propose(command, timeout=timeout)

    bench.log.propose = meddle  # type: ignore[method-assign]
    async with bench.running():
        await bench.create("web", 3)
        snapshot = await bench.until(assigned(5))
        assert len(snapshot.tasks) == 5 and met


async def test_a_chosen_port_that_somebody_asked_for_by_number_is_chosen_anew() -> None:
    """The leader's whole work began anew, with a traceback in its log."""
    bench = Bench()
    propose = bench.log.propose
    taken: list[int] = []

    def with_port(name: str, published: int = 0) -> Service:
        service = Service(id=name, revision_id=f"{name}-1", spec=ServiceSpec(name=name))
        service.spec.mode.replicated.replicas = 1
        service.spec.ports.add(target_port=80, published_port=published)
        return service

    async def meddle(command: bytes, *, timeout: float) -> Committed:
        """Another service takes the port between the loop's decision and its entry."""
        for action in Command.FromString(command).actions:
            for port in action.update.service.published_ports:
                if not taken:
                    taken.append(port.published_port)
                    await bench.transactions.commit([Create(with_port("quick", port.published_port))])
        return await propose(command, timeout=timeout)

    bench.log.propose = meddle  # type: ignore[method-assign]
    async with bench.running():
        service = with_port("web")
        revision = ServiceRevision(id="web-1", service_id="web", number=1, spec=service.spec)
        await bench.transactions.commit([Create(revision), Create(service)])
        snapshot = await bench.until(lambda snapshot: bool(snapshot.services["web"].published_ports))
        assert taken and snapshot.services["web"].published_ports[0].published_port not in (0, taken[0])


@pytest.mark.parametrize("applied", [True, False])
async def test_an_entry_of_unknown_outcome_is_neither_lost_nor_doubled(applied: bool) -> None:
    bench = Bench()
    propose = bench.log.propose
    failed: list[str] = []

    async def unsure(command: bytes, *, timeout: float) -> Committed:
        if not failed and any(action.create.HasField("task") for action in Command.FromString(command).actions):
            failed.append("once")
            if applied:
                await propose(command, timeout=timeout)
            raise OutcomeUnknown("the deadline passed")
        return await propose(command, timeout=timeout)

    bench.log.propose = unsure  # type: ignore[method-assign]
    async with bench.running():
        await bench.create("web", 3)
        snapshot = await bench.until(assigned(3))
        await bench.create("other", 1)
        snapshot = await bench.until(assigned(4))
        assert len(snapshot.tasks) == 4 and failed


async def test_a_wake_up_comes_without_an_event() -> None:
    bench = Bench()
    async with bench.running():
        await bench.create("web", 1, delay=0.05)
        snapshot = await bench.until(assigned(1))
        (task,) = snapshot.tasks
        await bench.transactions.commit([SetTaskStatus(task.id, TaskStatus(state=TASK_STATE_FAILED))])
        snapshot = await bench.until(assigned(1))
        assert len(snapshot.tasks) == 2


async def test_the_loop_ends_when_this_manager_does_not_lead() -> None:
    bench = Bench()
    await bench.transactions.commit(
        [Create(Cluster(id="c")), Create(Network(id="d", spec=NetworkSpec(name="default")))]
    )
    bench.log.lose_leadership()
    async with asyncio.timeout(10):
        await bench.loop.run()
    assert bench.store._watches == set()


async def test_a_resync_looks_at_everything() -> None:
    bench = Bench()
    async with bench.running():
        await bench.create("web", 2)
        await bench.until(assigned(2))
        captured = list(bench.store.capture()())
        await bench.create("other", 1)
        await bench.until(assigned(3))
        bench.store.restore(bench.log.index, captured)
        await bench.create("third", 1)
        await bench.until(assigned(3))


async def test_a_busy_log_does_not_end_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "PAUSE", 0.0)
    bench = Bench()
    propose = bench.log.propose
    refused: list[SwarmError] = [Unavailable("too busy, nothing was written"), ResourceExhausted("the disk is full")]

    async def refuse(command: bytes, *, timeout: float) -> Committed:
        if refused and any(action.create.HasField("task") for action in Command.FromString(command).actions):
            raise refused.pop()
        return await propose(command, timeout=timeout)

    bench.log.propose = refuse  # type: ignore[method-assign]
    async with bench.running():
        await bench.create("web", 3)
        await bench.until(assigned(3))
        assert not refused
