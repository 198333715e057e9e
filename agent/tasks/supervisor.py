"""All tasks of this node: one worker each, kept in step with the assignments, taken up again after a restart.

What is on the host belongs to a task, or it is a leftover of one and is removed. That is only judged once assignments are
known – from the disk, or from a manager where the disk had none: an agent that lost its files must not end containers that
the managers still count on.
"""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable

from swarm.errors import DeadlineExceeded, SwarmError
from swarm.retry import Backoff
from swarm.v1 import types_pb2 as types

from agent.runtime.interface import ContainerPhase
from agent.session.mirror import Mirror
from agent.tasks.events import Found
from agent.tasks.host import TaskHost
from agent.tasks.machine import is_stop
from agent.tasks.records import TaskRecord
from agent.tasks.worker import TaskWorker

log = logging.getLogger(__name__)

FOUND = {
    ContainerPhase.CREATED: Found.CREATED,
    ContainerPhase.RUNNING: Found.RUNNING,
    ContainerPhase.EXITED: Found.ENDED,
}
SWEEP_RETRIES = Backoff(first=1.0, maximum=60.0)


class TaskSupervisor:
    """`prepare_recovery` once, `run` as long as the agent lives, `apply` with each set of assignments."""

    def __init__(self, host: TaskHost, rng: random.Random) -> None:
        self._host = host
        self._rng = rng
        self._workers: dict[str, TaskWorker] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._recovered: dict[str, TaskRecord] | None = {}
        self._found: dict[str, Found] = {}
        self._sweep: asyncio.Task[None] | None = None
        self._emptied = asyncio.Event()
        self._emptied.set()

    # -------------------------------------------------------------------------------------------------- recovery

    async def prepare_recovery(self) -> None:
        """Reads what an earlier agent process wrote and finds its containers; judges nothing yet."""
        self._recovered = await asyncio.to_thread(self._host.records.load)
        for state in await self._host.runtime.containers():
            self._found[state.id] = FOUND[state.phase]
        if self._recovered:
            log.info("taking up %d tasks, %d containers", len(self._recovered), len(self._found))

    def apply(self, mirror: Mirror) -> None:
        """Brings the workers in step with the mirror's tasks."""
        first, self._recovered = self._recovered, None
        for task_id, record in (first or {}).items():
            self._add(task_id, record, mirror)
        for task_id, task in mirror.tasks.items():
            worker = self._workers.get(task_id)
            if worker is None:
                self._add(task_id, None, mirror)
            elif worker.task != task:
                worker.assign(task, mirror.spec_of(task), mirror.index)
        for task_id, worker in self._workers.items():
            if task_id not in mirror.tasks:
                worker.unassign()
        if first is not None:
            self._resend(mirror)
            self._sweep = asyncio.create_task(self._sweep_until_clean())

    def _add(self, task_id: str, record: TaskRecord | None, mirror: Mirror) -> None:
        worker = TaskWorker(task_id, self._host, random.Random(self._rng.random()), record)
        task = mirror.tasks.get(task_id)
        if task is None and record is None:
            return
        self._workers[task_id] = worker
        self._emptied.clear()
        if task is not None:
            worker.assign(task, mirror.spec_of(task), mirror.index)
            if record is None and task.status.state >= types.TASK_STATE_ACCEPTED:
                # Its record is gone; the managers remember how far it came, and it never goes back.
                worker.record = TaskRecord(task_id, task.status)
        worker.begin(self._found.get(task_id, Found.NOTHING))
        if task is None:
            worker.unassign()
        running = asyncio.create_task(self._run(worker))
        self._running[task_id] = running

    async def _run(self, worker: TaskWorker) -> None:
        try:
            await worker.run()
        except Exception:
            log.exception("task %s: its worker failed; the task is taken up at the agent's next start", worker.task_id)
        finally:
            if worker.gone.is_set():
                self._workers.pop(worker.task_id, None)
                self._running.pop(worker.task_id, None)
                if not self._workers:
                    self._emptied.set()

    def _resend(self, mirror: Mirror) -> None:
        """Statuses that an earlier agent process may have written down without the managers hearing of them."""
        for task_id, worker in self._workers.items():
            task = mirror.tasks.get(task_id)
            if task is not None and worker.status.state > task.status.state:
                self._host.sink.status(task_id, worker.status, urgent=True)

    async def _sweep_until_clean(self) -> None:
        for wait in SWEEP_RETRIES.delays(self._rng):
            if await self._remove_leftovers():
                return
            await self._host.sleep(wait)

    async def _remove_leftovers(self) -> bool:
        """Removes what belongs to no task that may have it; whether nothing is left."""
        host = self._host
        sources: list[tuple[str, Callable[[], Awaitable[set[str]]], Callable[[str], Awaitable[None]]]] = [
            ("container", self._container_ids, host.runtime.delete),
            ("network namespace", host.data_plane.attached, host.data_plane.detach),
            ("root filesystem", host.images.mounted, host.images.unmount),
        ]
        clean = True
        for what, find, remove in sources:
            try:
                found = await find()
            except (SwarmError, OSError) as error:
                log.warning("leftover %ss cannot be looked for: %s", what, error)
                clean = False
                continue
            for task_id in sorted(found):
                worker = self._workers.get(task_id)
                if worker is not None and not worker.machine.finished:
                    continue
                log.info("removing the leftover %s of task %s", what, task_id)
                try:
                    await remove(task_id)
                except (SwarmError, OSError) as error:
                    log.warning("the leftover %s of task %s stays for now: %s", what, task_id, error)
                    clean = False
        try:
            await asyncio.to_thread(self._remove_leftover_files)
        except OSError as error:
            log.warning("leftover files cannot be looked for: %s", error)
            clean = False
        return clean

    async def _container_ids(self) -> set[str]:
        return {state.id for state in await self._host.runtime.containers()}

    def _remove_leftover_files(self) -> None:
        directory = self._host.directories.state / "containers"
        if directory.is_dir():
            for path in directory.iterdir():
                if path.name not in self._workers:
                    shutil.rmtree(path, ignore_errors=True)

    # ------------------------------------------------------------------------------------------------ the agent's end

    async def close(self) -> None:
        """The agent process ends; containers stay as they are."""
        jobs = [*self._running.values(), *([self._sweep] if self._sweep is not None else [])]
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)

    async def remove_all(self, timeout: float) -> None:
        """The node leaves: stops and removes every task. Raises DeadlineExceeded where some are left after `timeout`."""
        for task_id, record in (self._recovered or {}).items():
            self._add(task_id, record, Mirror())
        self._recovered = None
        for worker in list(self._workers.values()):
            worker.unassign()
        try:
            async with asyncio.timeout(timeout):
                await self._emptied.wait()
        except TimeoutError as error:
            names = ", ".join(sorted(self._workers)[:5])
            raise DeadlineExceeded(
                f"{len(self._workers)} tasks have not ended within {timeout:g} s, among them {names}"
            ) from error
        await self._remove_leftovers()

    # ------------------------------------------------------------------------------------------------------- views

    def __len__(self) -> int:
        """Tasks that are not finished."""
        return sum(not worker.machine.finished for worker in self._workers.values())

    @property
    def stopping(self) -> int:
        """Tasks that the managers want stopped and that have not ended."""
        return sum(
            is_stop(worker.task.desired_state) and not worker.machine.finished for worker in self._workers.values()
        )

    def worker(self, task_id: str) -> TaskWorker | None:
        return self._workers.get(task_id)

    def task_ids(self) -> set[str]:
        return set(self._workers)

    def using_image(self, digest: str) -> int:
        """How many unfinished tasks are of the image with this digest."""
        return sum(
            worker.status.container.image_digest == digest and not worker.machine.finished
            for worker in self._workers.values()
        )

    def by_state(self) -> Counter[str]:
        """How many tasks are in each observed state, by its name in lower case."""
        return Counter(
            types.TaskState.Name(worker.machine.state).removeprefix("TASK_STATE_").lower()
            for worker in self._workers.values()
            if worker.machine.state
        )
