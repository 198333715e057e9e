"""A node through a day of faults: agents that are killed at any step, containers that crash, images that are missing.

Whatever happened, once the faults end: what was assigned runs, what was taken away is gone from the host and its record with
it, and no task was ever reported backwards, not even by two agent processes in a row. A seed replays a run.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from swarm.errors import NotFound, Unavailable
from swarm.v1 import types_pb2 as types

from agent.runtime.interface import ContainerPhase
from agent.session.mirror import Mirror
from agent.tasks.machine import is_final, is_stop
from agent.tasks.supervisor import TaskSupervisor
from tests.unit.agent.fakes import FakeHost, assignments, make_revision, make_task

STEPS = 120
SEEDS = range(40)


class Day:
    """The managers, the host and the faults of one run."""

    def __init__(self, seed: int, path: Path) -> None:
        self.rng = random.Random(seed)
        self.host = FakeHost(path)
        self.mirror = Mirror()
        self.index = 0
        self.count = 0
        self.agent: TaskSupervisor | None = None

    async def start_agent(self) -> None:
        self.threads = ThreadPoolExecutor()
        asyncio.get_running_loop().set_default_executor(self.threads)
        self.agent = self.host.supervisor()
        await self.agent.prepare_recovery()
        if self.index:
            self.agent.apply(self.mirror)

    async def kill_agent(self) -> None:
        if self.agent is not None:
            await self.agent.close()
            self.agent = None
            # A killed process has no threads that go on writing.
            self.threads.shutdown(wait=True)

    def assign(self, *objects: object) -> None:
        """As a manager: also while no agent process runs, which then learns it at its next start."""
        self.index += 1
        message = assignments(self.index, make_revision(), *objects)
        gone = [task_id for task_id in self.mirror.tasks if self.rng.random() < 0.1 and self.is_over(task_id)]
        for task_id in gone:
            message.removals.add(kind=1, key=task_id)
        self.mirror.receive(message)
        # The store's copy of the observed state, as the managers heard it.
        for task_id, status in self.host.sink.reported:
            if task_id in self.mirror.tasks:
                copy = types.Task()
                copy.CopyFrom(self.mirror.tasks[task_id])
                copy.status.CopyFrom(status)
                self.mirror.tasks[task_id] = copy
        if self.agent is not None:
            self.agent.apply(self.mirror)

    def is_over(self, task_id: str) -> bool:
        return any(each == task_id and is_final(status.state) for each, status in self.host.sink.reported)

    async def step(self) -> None:
        rng, host = self.rng, self.host
        match rng.randrange(9):
            case 0 | 1:
                self.count += 1
                desired = rng.choice([types.TASK_STATE_READY, types.TASK_STATE_RUNNING])
                self.assign(make_task(f"t{self.count}", desired))
            case 2 | 3 if self.mirror.tasks:
                task = self.mirror.tasks[rng.choice(sorted(self.mirror.tasks))]
                if not is_stop(task.desired_state):
                    changed = types.Task()
                    changed.CopyFrom(task)
                    changed.desired_state = rng.choice(
                        [types.TASK_STATE_RUNNING, types.TASK_STATE_SHUTDOWN, types.TASK_STATE_REMOVE]
                    )
                    self.assign(changed)
            case 4 if host.runtime.held:
                container_id = rng.choice(sorted(host.runtime.held))
                if host.runtime.held[container_id].phase is ContainerPhase.RUNNING:
                    host.runtime.end(container_id, rng.choice([0, 1, 137]))
            case 5:
                await self.kill_agent()
                if rng.random() < 0.1:  # a power failure: everything in memory is gone, bundles mostly stay
                    for container_id in sorted(host.runtime.held):
                        if rng.random() < 0.3:
                            del host.runtime.held[container_id]
                        elif host.runtime.held[container_id].phase is not ContainerPhase.EXITED:
                            host.runtime.end(container_id, 137)
                    host.data_plane.namespaces.clear()
                await self.start_agent()
            case 6:
                host.images.error = rng.choice([None, None, NotFound("there is no image web")])
            case 7:
                host.runtime.delete_errors = [Unavailable("busy")] * rng.randrange(3)
            case _:
                pass
        for _ in range(rng.randrange(40)):
            await asyncio.sleep(0)

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        """Waits for it, without a clock: files are written in threads, so some turns of the loop wait for those."""
        for turn in range(20_000):
            await asyncio.sleep(0.0005 if turn % 50 == 0 else 0)
            if holds():
                return
        raise AssertionError(f"it never happened that {what}")

    def settled(self) -> bool:
        assert self.agent is not None
        for task_id, task in self.mirror.tasks.items():
            worker = self.agent.worker(task_id)
            if worker is None:
                return False
            resting = worker.machine.finished or (
                not is_stop(task.desired_state) and worker.machine.state == task.desired_state
            )
            if not resting:
                return False
        return self.agent.task_ids() == set(self.mirror.tasks)


def check_reports(host: FakeHost) -> None:
    seen: dict[str, types.TaskStatus] = {}
    for task_id, status in host.sink.reported:
        before = seen.get(task_id)
        assert before is None or before.state <= status.state, f"{task_id} went back from {before} to {status}"
        assert before is None or not is_final(before.state) or before.state == status.state
        seen[task_id] = status


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_node_comes_to_rest_as_assigned(seed: int, tmp_path: Path) -> None:
    day = Day(seed, tmp_path)
    await day.start_agent()
    day.assign()
    for _ in range(STEPS):
        await day.step()
        check_reports(day.host)
    day.host.images.error = None
    day.host.runtime.delete_errors = []
    await day.until(day.settled, "the node came to rest after the faults")
    assert day.agent is not None
    alive = {
        task_id for task_id in day.mirror.tasks if (worker := day.agent.worker(task_id)) and not worker.machine.finished
    }
    await day.until(lambda: set(day.host.runtime.held) == alive, "the leftovers are removed")
    # Everything is taken away.
    day.index += 1
    day.mirror.receive(assignments(day.index, complete=True))
    day.agent.apply(day.mirror)
    await day.until(day.settled, "everything was taken away")
    await day.until(lambda: not day.host.runtime.held and not day.host.data_plane.namespaces, "the host was empty")
    await day.kill_agent()
    assert list((tmp_path / "tasks").iterdir()) == []
    check_reports(day.host)
