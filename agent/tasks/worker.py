"""The shell around one task's machine: does what it answers, and tells it what came of it.

One loop takes events in order and carries out their commands; what lasts (preparing, starting, waiting for the end, checks,
draining, stopping) runs as a job of its own beside it and ends in an event. Cleaning up ends all jobs first. Cancelling the
worker – the agent process ends – leaves the container as it is.
"""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial

from swarm.cancellation import raise_if_cancelled
from swarm.errors import NotFound, SwarmError, is_disk_full
from swarm.retry import Backoff
from swarm.v1 import types_pb2 as types

from agent.disk import MAKE_ROOM
from agent.tasks import events, health, preparation, settings
from agent.tasks.events import Command, Event
from agent.tasks.host import TaskHost
from agent.tasks.machine import TaskMachine, is_final, is_stop
from agent.tasks.records import TaskRecord, next_status

log = logging.getLogger(__name__)

WITHDRAWAL_TIMEOUT = 2.0  # seconds that a stop waits for all nodes to have withdrawn the task
KILL_TIMEOUT = 10.0  # seconds after SIGKILL before it is sent again
DRAIN_POLLS = Backoff(first=0.05, maximum=0.5)
RETRIES = Backoff(first=0.2, maximum=10.0)


class TaskWorker:
    """One task on this node, from its assignment until nothing is left of it."""

    def __init__(self, task_id: str, host: TaskHost, rng: random.Random, record: TaskRecord | None = None) -> None:
        self.task_id = task_id
        self.task = types.Task(id=task_id)
        self.record = record if record is not None else TaskRecord(task_id, types.TaskStatus())
        self.machine = TaskMachine()
        self._spec: types.ServiceSpec | None = None
        self._assigned = True
        self._stop_index = 0  # the index at which the managers decided that it shall stop
        self._host = host
        self._rng = rng
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._jobs: set[asyncio.Task[None]] = set()
        self._assigned_at = host.clock.monotonic()
        self.ended = asyncio.Event()  # nothing more will come of its container
        self.gone = asyncio.Event()  # nothing is left of it

    # ------------------------------------------------------------------------------------------------- what to do

    def assign(self, task: types.Task, spec: types.ServiceSpec | None, index: int) -> None:
        """What the managers say of the task now; `index` orders it."""
        desired_before = self.task.desired_state
        if is_stop(task.desired_state) and not is_stop(desired_before):
            self._stop_index = min(task.meta.version or index, index)
        self.task, self._spec = task, spec if spec is not None else self._spec
        if desired_before != task.desired_state and desired_before:
            self.tell(events.DesiredChanged(task.desired_state))

    def unassign(self) -> None:
        """The managers no longer know the task, or the node leaves: it is stopped and forgotten."""
        if self._assigned:
            self._assigned = False
            self.tell(events.Unassigned())

    def begin(self, found: events.Found) -> None:
        """The first event: a new task, or one that an earlier agent process wrote down."""
        if not self.record.status.state:
            self.tell(events.Assigned(self.task.desired_state))
            return
        desired = self.task.desired_state or types.TASK_STATE_REMOVE
        self.tell(events.Recovered(self.record.status.state, desired, found, self.record.health is not None))

    def tell(self, event: Event) -> None:
        self._events.put_nowait(event)

    @property
    def status(self) -> types.TaskStatus:
        return self.record.status

    async def run(self) -> None:
        """Until the task is forgotten."""
        try:
            while not self.gone.is_set():
                event = await self._events.get()
                for command in folded(self.machine.handle(event)):
                    await self._execute(command)
                if self.machine.finished:
                    self.ended.set()
        finally:
            await self._end_jobs()

    # ---------------------------------------------------------------------------------------------------- commands

    async def _execute(self, command: Command | tuple[events.Report, ...]) -> None:
        match command:
            case tuple():
                await self._report(command)
            case events.Prepare():
                self._spawn(self._prepare, events.PrepareFailed)
            case events.Start():
                self._spawn(self._start, events.StartFailed)
            case events.WatchExit():
                self._spawn(self._watch_exit, _lost)
            case events.WatchHealth():
                self._spawn(partial(self._watch_health, command.known_healthy), events.BecameUnhealthy)
            case events.Drain():
                self._spawn(self._drain, lambda _: events.Drained())
            case events.Stop():
                self._spawn(self._stop, _lost)
            case events.CleanUp():
                await self._end_jobs()
                self._spawn(self._clean_up)
            case events.ReleaseRootfs():
                await self._release_rootfs()
            case events.Forget():
                await self._forget()

    async def _report(self, reports: tuple[events.Report, ...]) -> None:
        """Writes the last of them down, with what each of them brought, and tells it."""
        before = status = self.record.status
        for report in reports:
            status = next_status(status, report, self._host.clock.wall(), self.task_id)
        if status.HasField("running_since") and not before.HasField("running_since"):
            self._host.on_started(self._host.clock.monotonic() - self._assigned_at)
        self.record = TaskRecord(self.task_id, status, self.record.stop_signal, self.record.health)
        try:
            if is_final(status.state):
                await asyncio.to_thread(self._host.records.write, self.record)  # waits for the disk
            elif status.state != before.state or status.health != before.health:
                self._host.records.write(self.record)
        except SwarmError as error:
            # The managers must still learn of it; after a restart of the agent the container tells the rest.
            log.error("task %s: %s", self.task_id, error)
        self._host.sink.status(self.task_id, status, urgent=any(report.urgent for report in reports))

    async def _prepare(self) -> None:
        if self._spec is None:
            self.tell(events.PrepareFailed("the managers did not say what the task is made of"))
            return
        try:
            prepared = await preparation.prepare(
                self.task, self._spec, self._host, lambda *told: self.tell(events.Progress(*told))
            )
        except SwarmError as error:
            self.tell(events.PrepareFailed(str(error)))
            return
        self.record = TaskRecord(self.task_id, self.record.status, prepared.stop_signal, prepared.health)
        self.tell(events.Prepared(prepared.image.digest, prepared.health is not None))

    async def _start(self) -> None:
        try:
            async with self._host.starts:
                state = await self._host.runtime.start(self.task_id)
        except SwarmError as error:
            self.tell(events.StartFailed(str(error)))
            return
        self.tell(events.Started(state.pid))

    async def _watch_exit(self) -> None:
        for wait in RETRIES.delays(self._rng):
            try:
                state = await self._host.runtime.wait(self.task_id)
                break
            except NotFound as error:
                self.tell(events.Exited(-1, str(error)))
                return
            except (SwarmError, OSError) as error:
                raise_if_cancelled()
                log.warning("task %s: waiting for its end failed and is tried again: %s", self.task_id, error)
                await self._host.sleep(wait)
        last_line = await self._last_line() if state.exit_code else ""
        exit_code = state.exit_code if state.exit_code is not None else -1
        self.tell(events.Exited(exit_code, last_line, state.out_of_memory, state.reason))

    async def _last_line(self) -> str:
        try:
            return await self._host.last_line(self._host.directories.log(self.task_id))
        except OSError as error:  # the exit code is worth telling without it
            log.warning("task %s: its last output cannot be read: %s", self.task_id, error)
            return ""

    async def _watch_health(self, known_healthy: bool) -> None:
        check = self.record.health
        assert check is not None

        async def execute(arguments: tuple[str, ...], timeout: float) -> tuple[int, bytes]:
            result = await self._host.runtime.exec(self.task_id, arguments, timeout=timeout)
            return result.exit_code, result.output

        def changed(healthy: bool, output: str) -> None:
            self.tell(events.BecameHealthy() if healthy else events.BecameUnhealthy(output))

        await health.watch(
            check,
            lambda: health.probe_container(execute, check),
            self._host.clock,
            changed,
            known_healthy=known_healthy,
            sleep=self._host.sleep,
        )

    async def _drain(self) -> None:
        """Nobody is sent here any more once all nodes have withdrawn the task; then what is under way may end."""
        if self.task.attachments:
            withdrawn = await self._host.watermark.reached(self._stop_index, WITHDRAWAL_TIMEOUT)
            if not withdrawn:
                log.warning("task %s is stopped although not all nodes confirmed its withdrawal", self.task_id)
            await self._drain_connections()
        self.tell(events.Drained())

    async def _drain_connections(self) -> None:
        deadline = self._host.clock.monotonic() + self._grace_period
        for wait in DRAIN_POLLS.delays(self._rng):
            try:
                if await self._host.data_plane.connections(self.task_id) == 0:
                    return
            except SwarmError as error:
                log.warning("task %s is stopped without waiting for its connections: %s", self.task_id, error)
                return
            left = deadline - self._host.clock.monotonic()
            if left <= 0:
                return
            await self._host.sleep(min(wait, left))

    async def _stop(self) -> None:
        await self._signal(self.record.stop_signal)
        await self._host.sleep(self._grace_period)
        while True:  # ended by the clean-up that follows the container's end
            await self._signal(signal.SIGKILL)
            await self._host.sleep(KILL_TIMEOUT)
            log.warning("task %s has not ended %g s after SIGKILL", self.task_id, KILL_TIMEOUT)

    async def _signal(self, number: int) -> None:
        try:
            await self._host.runtime.signal(self.task_id, number)
        except SwarmError as error:
            log.warning("task %s: signal %d: %s", self.task_id, number, error)

    @property
    def _grace_period(self) -> float:
        return (
            settings.grace_period(self._spec.task.container)
            if self._spec is not None
            else settings.DEFAULT_GRACE_PERIOD
        )

    # --------------------------------------------------------------------------------------------------- the end

    async def _clean_up(self) -> None:
        """Tried until it succeeds: whoever hears that the task has ended may use its addresses again."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._insist("the container", lambda: self._host.runtime.delete(self.task_id)))
            group.create_task(self._insist("the network", lambda: self._host.data_plane.detach(self.task_id)))
        self.tell(events.CleanedUp())

    async def _insist(self, what: str, operation: Callable[[], Awaitable[None]]) -> None:
        for wait in RETRIES.delays(self._rng):
            try:
                await operation()
            except Exception as error:  # noqa: BLE001 – even a defect must not leave a task that never ends
                raise_if_cancelled()
                log.warning("task %s: %s cannot be removed and is tried again: %r", self.task_id, what, error)
                await self._host.sleep(wait)
            else:
                return

    async def _release_rootfs(self) -> None:
        try:
            await self._host.images.unmount(self.task_id)
        except (SwarmError, OSError) as error:
            log.warning("task %s: the root filesystem stays until the agent's next start: %s", self.task_id, error)
        try:
            await preparation.release_files(self.task_id, self._host)
        except (SwarmError, OSError) as error:
            log.warning("task %s: some of its files stay: %s", self.task_id, error)

    async def _forget(self) -> None:
        await asyncio.to_thread(shutil.rmtree, self._host.directories.container(self.task_id), True)
        await asyncio.to_thread(self._host.records.remove, self.task_id)
        self._host.sink.forgotten(self.task_id)
        self.gone.set()

    # ------------------------------------------------------------------------------------------------------ jobs

    def _spawn(self, job: Callable[[], Awaitable[None]], failed: Callable[[str], Event] | None = None) -> None:
        """`failed` makes the job's event from the sentence that says of a defect; None where nobody waits for one."""
        running = asyncio.create_task(self._fenced(job, failed))
        self._jobs.add(running)
        running.add_done_callback(self._jobs.discard)

    async def _fenced(self, job: Callable[[], Awaitable[None]], failed: Callable[[str], Event] | None) -> None:
        """A defect in one job must not take the node's other tasks along: it fails this task, with its traceback logged.

        The job's own event says so: the phase does not tell which of its jobs failed, the draining or the wait for the end.
        """
        try:
            await job()
        except Exception as error:
            log.exception("task %s: a step failed unexpectedly", self.task_id)
            sentence = f"the node daemon failed unexpectedly ({type(error).__name__}: {error}); its log says more"
            if is_disk_full(error):
                sentence = f"the disk of this node is full; {MAKE_ROOM}"
            if failed is not None:
                self.tell(failed(sentence))

    async def _end_jobs(self) -> None:
        jobs = [job for job in self._jobs if not job.done()]
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)


def _lost(sentence: str) -> Event:
    """Nobody waits for the container's end any more, or stops it: it counts as ended, and the clean-up ends what still runs."""
    return events.Exited(-1, sentence)


def folded(commands: Iterable[Command]) -> Iterator[Command | tuple[events.Report, ...]]:
    """Reports that follow one another become one: nobody would see the earlier ones."""
    reports: list[events.Report] = []
    for command in commands:
        if isinstance(command, events.Report):
            reports.append(command)
            continue
        if reports:
            yield tuple(reports)
            reports.clear()
        yield command
    if reports:
        yield tuple(reports)
