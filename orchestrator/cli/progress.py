"""Waiting until a service runs as it should, or will not do so any more, and showing the way there.

This is the shell around `tracker`, which judges, and `progress_display`, which shows. It follows the stream of the service's
current tasks (over the loss of managers), and asks for all tasks where those are not enough to judge by (`endings`). Ctrl-C
stops waiting, not the service.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

from swarm.errors import DeadlineExceeded, NotFound, Unavailable
from swarm.v1 import control_pb2 as control
from swarm.v1 import types_pb2 as types

from orchestrator.cli import endings, output, words
from orchestrator.cli.caller import Caller
from orchestrator.cli.invocation import PAGE_SIZE, pages
from orchestrator.cli.progress_display import display
from orchestrator.cli.tracker import Outcome, Tracker

if TYPE_CHECKING:
    from swarm.v1.control_pb2_grpc import ControlStub

APPEAR_TIMEOUT = 5.0  # seconds until every manager must know a service that one of them has just created
STABLE_SECONDS = 1.0  # that tasks run, while others have ended for good, before they count as ones that stay
AWAY_TIMEOUT = 60.0  # seconds that no manager may answer while a service is waited for
AWAY_PAUSE = 0.5


class NotConverged(DeadlineExceeded):
    """The service does not run as it should, and waiting longer will not help or was not wanted."""


class _TimeIsUp(Exception):
    """No TimeoutError: that is an OSError, which a failed connection would be taken for where the time ends in one."""


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
    shown = display(quiet)
    started = time.monotonic()
    try:
        with shown, _alarm(timeout):
            for progress in _answers(managers, service, started, shown.problem):
                for problem in tracker.feed(progress):
                    shown.problem(problem)
                shown.show(tracker)
                ending = _ending(managers, tracker)
                if ending is not None:
                    for problem in tracker.settle(ending):
                        shown.problem(problem)
                    shown.show(tracker)
                if tracker.outcome is not Outcome.WAITING:
                    break
    except KeyboardInterrupt:
        output.note(
            f"Stopped waiting; service {service.spec.name} goes on in the background "
            f"(`swarmctl service ps {service.spec.name}` shows it)"
        )
        raise
    except _TimeIsUp:
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
    """Raises _TimeIsUp in the block after `seconds`: the stream may be silent for that long."""

    def ring(_: int, __: FrameType | None) -> None:
        raise _TimeIsUp

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
