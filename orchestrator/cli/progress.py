"""Waiting until a service runs as it should, or will not do so any more, and showing the way there.

`Tracker` is pure: fed with the answers of WatchService, it says what there is to show and how the wait ended. `wait` is
the shell around it: it follows the stream (over the loss of a manager), draws with rich in a terminal and prints plain
lines in a pipe. The stream shows the current task of each slot; where that is not enough to judge by (`endings`), the
shell asks for all tasks. Ctrl-C stops waiting, not the service.
"""

from __future__ import annotations

import contextlib
import enum
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any

from swarm.clock import seconds_of
from swarm.errors import DeadlineExceeded, NotFound, Unavailable
from swarm.v1 import control_pb2 as control
from swarm.v1 import types_pb2 as types

from orchestrator.cli import endings, output, words
from orchestrator.cli.caller import Caller
from orchestrator.cli.invocation import PAGE_SIZE, pages
from orchestrator.cli.task_words import problem_of, task_label

if TYPE_CHECKING:
    from swarm.v1.control_pb2_grpc import ControlStub

DEFAULT_MONITOR = 5.0  # seconds that the managers watch an updated task for where the service does not say
APPEAR_TIMEOUT = 5.0  # seconds until every manager must know a service that one of them has just created
STABLE_SECONDS = 1.0  # that tasks run, while others have ended for good, before they count as ones that stay
AWAY_TIMEOUT = 60.0  # seconds that no manager may answer while a service is waited for
AWAY_PAUSE = 0.5
_FAILED_UPDATES = {
    types.UPDATE_STATE_PAUSED: "the update of service {name} is paused",
    types.UPDATE_STATE_ROLLBACK_PAUSED: "the rollback of service {name} is paused",
    types.UPDATE_STATE_ROLLBACK_COMPLETED: "the update of service {name} failed and was rolled back",
}


class NotConverged(DeadlineExceeded):
    """The service does not run as it should, and waiting longer will not help or was not wanted."""


class Outcome(enum.Enum):
    WAITING = "waiting"
    CONVERGED = "converged"
    FAILED = "failed"


@dataclass
class Tracker:
    """What has been seen of a service since a change of it.

    `changed` is the service as the change left it: answers older than that (of a manager that is behind) are ignored, and
    so is what was said of earlier updates.
    """

    changed: types.Service
    rolling_back: bool = False
    latest: control.ServiceProgress | None = None
    outcome: Outcome = Outcome.WAITING
    verdict: str = ""
    _told: set[tuple[str, str]] = field(default_factory=set)

    def feed(self, progress: control.ServiceProgress) -> list[str]:
        """Takes an answer in; returns the errors of tasks that have not been told yet."""
        service = progress.summary.service
        if service.meta.version < self.changed.meta.version:
            return []
        self.latest = progress
        failure = self._failure(service)
        if failure:
            self.outcome, self.verdict = Outcome.FAILED, failure
        elif progress.converged:
            self._converge()
        return self._news(progress.tasks)

    def _failure(self, service: types.Service) -> str:
        status, before = service.update_status, self.changed.update_status
        if (status.state, status.started_at.ToNanoseconds()) == (before.state, before.started_at.ToNanoseconds()):
            return ""
        sentence = _FAILED_UPDATES.get(status.state, "")
        if not sentence or (self.rolling_back and status.state == types.UPDATE_STATE_ROLLBACK_COMPLETED):
            return ""
        what, _, reason = status.message.partition(": ")  # `update paused: 1 failed, first web.1: exit code 3`
        return ": ".join(filter(None, (sentence.format(name=service.spec.name), reason or what)))

    def settle(self, found: endings.Standstill) -> list[str]:
        """Ends the wait: nothing of the service will change by itself any more. Returns what `feed` does."""
        if self.latest is not None:
            self.latest = control.ServiceProgress(summary=self.latest.summary, tasks=found.tasks)
        news = self._news(found.tasks)
        if found.failed:
            self.outcome = Outcome.FAILED
            self.verdict = f"service {self.changed.spec.name} did not converge: {found.failure()}"
        else:
            self._converge(found.remark() or "its update is still paused")
        return news

    def _converge(self, remark: str = "") -> None:
        verb = "rolled back" if self.rolling_back else "converged"
        self.outcome = Outcome.CONVERGED
        self.verdict = f"verify: Service {self.changed.spec.name} {verb}{f': {remark}' if remark else ''}"

    def _news(self, tasks: Iterable[types.Task]) -> list[str]:
        found = []
        for task in tasks:
            problem = problem_of(task)
            key = (task_label(task), problem)
            if problem and key not in self._told:
                self._told.add(key)
                found.append(f"{key[0]}: {problem}")
        return found

    @property
    def counts(self) -> tuple[int, int]:
        """Tasks that run as the newest revision wants, and how many there shall be."""
        if self.latest is None:
            return 0, 0
        service = self.latest.summary.service
        return sum(_done(task, service) for task in self.latest.tasks), self.latest.summary.desired

    def summary(self) -> str:
        done, desired = self.counts
        return f"overall progress: {done} out of {words.plural(desired, 'task')}"

    def remark(self) -> str:
        """What is still waited for where every task runs; empty where some do not, or nothing is waited for."""
        done, desired = self.counts
        if self.latest is None or self.outcome is not Outcome.WAITING or done != desired:
            return ""
        service = self.latest.summary.service
        policies = {
            types.UPDATE_STATE_UPDATING: service.spec.update,
            types.UPDATE_STATE_ROLLBACK_STARTED: service.spec.rollback,
        }
        policy = policies.get(service.update_status.state)
        if policy is None:
            return ""  # a second, in which programs end that end right after their start
        watched = seconds_of(policy.monitor) if policy.HasField("monitor") else DEFAULT_MONITOR
        return f"verify: watching the new tasks for failure, each for {words.duration(watched)}" if watched else ""


def _done(task: types.Task, service: types.Service) -> bool:
    return task.revision_id == service.revision_id and endings.is_settled(task)


def wait(
    managers: Caller[ControlStub],
    service: types.Service,
    *,
    rolling_back: bool = False,
    quiet: bool = False,
    timeout: float | None = None,
) -> None:
    """Waits until `service`, as a change left it, has converged.

    Raises NotConverged where the update was paused or rolled back, tasks failed for good, or `timeout` seconds have passed.
    Returns with a note on Ctrl-C.
    """
    tracker = Tracker(service, rolling_back)
    display: _Display = _Quiet() if quiet else _Live() if output.is_terminal() else _Lines()
    started = time.monotonic()
    try:
        with display, _alarm(timeout):
            for progress in _answers(managers, service, started, display.problem):
                for problem in tracker.feed(progress):
                    display.problem(problem)
                display.show(tracker)
                ending = _ending(managers, tracker)
                if ending is not None:
                    for problem in tracker.settle(ending):
                        display.problem(problem)
                    display.show(tracker)
                if tracker.outcome is not Outcome.WAITING:
                    break
    except KeyboardInterrupt:
        output.note(
            f"Stopped waiting; service {service.spec.name} goes on in the background "
            f"(`swarmctl service ps {service.spec.name}` shows it)"
        )
        raise
    except TimeoutError:
        done, desired = tracker.counts
        raise NotConverged(
            f"service {service.spec.name} did not converge within {words.duration(timeout or 0)}: "
            f"{done} of {words.plural(desired, 'task')} running; it goes on in the background"
        ) from None
    if tracker.outcome is Outcome.FAILED:
        raise NotConverged(tracker.verdict)
    if tracker.outcome is Outcome.WAITING:
        raise NotFound(f"service {service.spec.name} was removed while it was waited for")
    if not quiet:
        output.line(tracker.verdict)


def _ending(managers: Caller[ControlStub], tracker: Tracker) -> endings.Standstill | None:
    """What the service came to, where the tasks that do not run never will."""
    latest = tracker.latest
    if latest is None or tracker.outcome is not Outcome.WAITING or not endings.may_stand_still(latest):
        return None
    found = endings.standstill(latest.summary, _all_tasks(managers, latest.summary.service))
    if found is not None and found.running:  # those may be about to end as the others did
        threading.Event().wait(STABLE_SECONDS)
        found = endings.standstill(latest.summary, _all_tasks(managers, latest.summary.service))
    return found


def _all_tasks(managers: Caller[ControlStub], service: types.Service) -> list[types.Task]:
    """The tasks of a service, with those that ended and are remembered. As patient as `_answers`: what the stream has shown
    it may not show again."""
    wanted = [control.Filter(key="service", value=service.id)]
    began = time.monotonic()
    while True:
        try:
            return [
                task
                for page in pages(
                    lambda token: managers.call(
                        lambda stub: stub.ListTasks,
                        control.ListTasksRequest(filters=wanted, page_size=PAGE_SIZE, page_token=token),
                    )
                )
                for task in page.tasks
            ]
        except Unavailable as error:
            _give_up_in_time(error, service, began)


def _give_up_in_time(error: Unavailable, service: types.Service, since: float) -> None:
    """Waits a little; raises once no manager has answered for AWAY_TIMEOUT."""
    if time.monotonic() - since > AWAY_TIMEOUT:
        raise Unavailable(
            f"{error}; service {service.spec.name} is in the swarm and goes on in the background"
        ) from error
    threading.Event().wait(AWAY_PAUSE)


def _answers(
    managers: Caller[ControlStub], service: types.Service, started: float, tell: Callable[[str], None]
) -> Iterator[control.ServiceProgress]:
    """The stream. A manager that does not know a new service yet is asked again, and so are managers that are all away: the
    service is there, and goes on without us. Raises Unavailable once none has answered for AWAY_TIMEOUT."""
    away_since = 0.0
    while True:
        try:
            for progress in managers.stream(
                lambda stub: stub.WatchService, lambda: control.WatchServiceRequest(reference=service.id)
            ):
                away_since = 0.0
                yield progress
            return
        except NotFound:
            if time.monotonic() - started > APPEAR_TIMEOUT:
                raise
            threading.Event().wait(0.1)
        except Unavailable as error:
            if not away_since:
                away_since = time.monotonic()
                tell(f"{error}; waiting for one")
            _give_up_in_time(error, service, away_since)


@contextlib.contextmanager
def _alarm(seconds: float | None) -> Iterator[None]:
    """Raises TimeoutError in the block after `seconds`: the stream may be silent for that long."""

    def ring(_: int, __: FrameType | None) -> None:
        raise TimeoutError

    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _Display:
    """How progress is shown. Used as a context."""

    def __enter__(self) -> _Display:
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the last state on the screen."""

    def show(self, tracker: Tracker) -> None:
        raise NotImplementedError

    def problem(self, text: str) -> None:
        raise NotImplementedError


class _Quiet(_Display):
    def show(self, tracker: Tracker) -> None:
        """Shows nothing."""

    def problem(self, text: str) -> None:
        """Tells nothing."""


class _Lines(_Display):
    """For a pipe: a line for each change."""

    def __init__(self) -> None:
        self._last: tuple[str, ...] = ()

    def show(self, tracker: Tracker) -> None:
        if tracker.latest is None:
            return
        for text in filter(None, (tracker.summary(), tracker.remark())):
            if text not in self._last:
                output.line(text)
        sys.stdout.flush()
        self._last = (tracker.summary(), tracker.remark())

    def problem(self, text: str) -> None:
        output.note(text)


class _Live(_Display):
    """For a terminal: one line a task with a bar, redrawn in place."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=sys.stdout, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=False)

    def __enter__(self) -> _Display:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, tracker: Tracker) -> None:
        if tracker.latest is not None:
            self._live.update(self._drawing(tracker), refresh=True)

    def problem(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(text, style="red"))

    def _drawing(self, tracker: Tracker) -> Any:
        from rich.text import Text

        lines = [Text(tracker.summary(), style="bold")]
        lines.extend(Text(text, style=style) for text, style in task_lines(tracker, self._console.size))
        lines.extend([Text(tracker.remark())] if tracker.remark() else [])
        return Text("\n").join(lines)


_STEPS = (
    types.TASK_STATE_NEW,
    types.TASK_STATE_PENDING,
    types.TASK_STATE_ASSIGNED,
    types.TASK_STATE_ACCEPTED,
    types.TASK_STATE_PREPARING,
    types.TASK_STATE_READY,
    types.TASK_STATE_STARTING,
    types.TASK_STATE_RUNNING,
)
_BAR = 40  # columns, where there are as many
_BESIDE = 13 + 6  # the state's word, and what stands around it and the bar


def task_lines(tracker: Tracker, size: tuple[int, int]) -> list[tuple[str, str]]:
    """A line and its style for each task, the unfinished first where not all fit. `size`: columns and lines of the terminal."""
    width, most = size[0], size[1] - 4
    if tracker.latest is None:
        return []
    service = tracker.latest.summary.service
    tasks = sorted(tracker.latest.tasks, key=lambda task: (task.slot, task.node_id))
    hidden = 0
    if len(tasks) > most:
        unfinished = [task for task in tasks if not _done(task, service)]
        hidden = len(tasks) - most
        tasks = (unfinished or tasks)[: max(1, most)]
    lines = []
    length = max(10, min(_BAR, width - _BESIDE - max((len(task_label(task)) for task in tasks), default=0)))
    for task in tasks:
        done = _done(task, service)
        state = task.status.state
        word = words.enum_word(types.TaskState.DESCRIPTOR, state)
        if task.revision_id != service.revision_id:
            word, reached = "to be updated", 0
        else:
            reached = _STEPS.index(state) + 1 if state in _STEPS else 0
        bar = ("=" * (length * reached // len(_STEPS)) + ">").ljust(length + 1)
        problem = problem_of(task)
        lines.append(
            (
                f"{task_label(task)}: {word:<13} [{bar}] {words.shorten(problem, 60)}".rstrip(),
                "green" if done else "red" if problem else "yellow",
            )
        )
    if hidden:
        lines.append((f"… and {words.plural(hidden, 'more task')}", ""))
    return lines
