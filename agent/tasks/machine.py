"""The life of one task on its node, as a table: (phase, event) → handler → commands.

Theory of operation. The machine does no I/O, reads no clock and never waits. A shell (`worker`) tells it what happened and
does what it answers; results come back as further events. The observed state that managers see moves only forward and is
written down before it is told to anybody: both are one command, `Report`. What the task ends as (its *outcome*) is decided
once, by whichever comes first – the process ends, a check fails, or a stop is wanted – and later events cannot change it.

Two orders matter. A task that ended by itself is reported first and cleaned up afterwards, so that names and virtual IPs
stop leading to it. A task that was told to stop is reported last, when its container and its addresses are free: whoever
waits for SHUTDOWN may use them again.

A pair that is not in the table and not in `_IGNORED` is a defect, and raises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from swarm.v1 import types_pb2 as types

from agent.tasks.events import (
    Assigned,
    BecameHealthy,
    BecameUnhealthy,
    CleanedUp,
    CleanUp,
    Command,
    DesiredChanged,
    Drain,
    Drained,
    Event,
    Exited,
    Forget,
    Found,
    Phase,
    Prepare,
    Prepared,
    PrepareFailed,
    Progress,
    Recovered,
    ReleaseRootfs,
    Report,
    Start,
    Started,
    StartFailed,
    Stop,
    Unassigned,
    WatchExit,
    WatchHealth,
)

MAX_ERROR_LENGTH = 1000  # of a sentence in a status: it is replicated by Raft and shown in one line


def is_stop(desired: types.TaskState.ValueType) -> bool:
    """Whether a desired state asks for the task's end."""
    return desired >= types.TASK_STATE_SHUTDOWN


def is_final(state: types.TaskState.ValueType) -> bool:
    """Whether an observed state never changes again."""
    return state >= types.TASK_STATE_COMPLETE


@dataclass(frozen=True)
class _Outcome:
    report: Report
    reported: bool = False


class TaskMachine:
    """One task. `handle` is the only way in; the attributes are for reading."""

    def __init__(self) -> None:
        self.phase = Phase.NEW
        self.desired: types.TaskState.ValueType = types.TASK_STATE_UNSPECIFIED
        self.state: types.TaskState.ValueType = types.TASK_STATE_UNSPECIFIED
        self._assigned = True
        self._has_health = False
        self._outcome: _Outcome | None = None

    @property
    def finished(self) -> bool:
        return self.phase in (Phase.DONE, Phase.FORGOTTEN)

    @property
    def holds_container(self) -> bool:
        """Whether a container, a network namespace or a root filesystem of this task may exist on purpose."""
        return self.phase not in (Phase.NEW, Phase.DONE, Phase.FORGOTTEN)

    def handle(self, event: Event) -> list[Command]:
        """What to do now. Raises AssertionError where an event cannot happen in the present phase."""
        handler = _TABLE.get((self.phase, type(event)))
        if handler is None:
            if (self.phase, type(event)) in _IGNORED:
                return []
            raise AssertionError(f"a task that is {self.phase.value} cannot hear {event}")
        commands = handler(self, event)
        for command in commands:
            if isinstance(command, Report):
                assert command.state >= self.state, f"observed state would go back: {self.state} to {command}"
                self.state = command.state
        self._validate()
        return commands

    def _validate(self) -> None:
        if self.phase in (Phase.STOPPING, Phase.CLEANING):
            assert self._outcome is not None, f"a task that is {self.phase.value} has an outcome"
        if self.phase is Phase.DONE:
            assert is_final(self.state), "a task that is done was reported as finished"
        if self.phase is Phase.RUNNING:
            assert self.state == types.TASK_STATE_RUNNING

    # ------------------------------------------------------------------------------------------------- beginnings

    def _on_assigned(self, event: Assigned) -> list[Command]:
        self.desired = event.desired
        if is_stop(event.desired):
            self.phase = Phase.DONE
            return [Report(types.TASK_STATE_SHUTDOWN, "never started", urgent=True)]
        self.phase = Phase.PREPARING
        return [Report(types.TASK_STATE_ACCEPTED), Report(types.TASK_STATE_PREPARING, "preparing"), Prepare()]

    def _on_recovered(self, event: Recovered) -> list[Command]:
        self.desired, self.state, self._has_health = event.desired, event.state, event.has_health
        if is_final(event.state):
            self.phase = Phase.DONE
            return []
        # What runs was started, also where a full disk kept that from the record; of what ended, only the record tells. Where
        # it was started it is waited for like one that runs: its end arrives at once.
        ended = event.found is Found.ENDED and event.state >= types.TASK_STATE_STARTING
        if event.found is Found.RUNNING or ended:
            return self._resume_running(event)
        return self._resume_unstarted(event)

    def _resume_unstarted(self, event: Recovered) -> list[Command]:
        # A container is created while its network is still being made: only the record tells that all was ready.
        if event.found is Found.CREATED and event.state >= types.TASK_STATE_READY and not is_stop(event.desired):
            if event.state >= types.TASK_STATE_STARTING:
                return self._start()
            return self._on_prepared(Prepared("", event.has_health))
        if event.state >= types.TASK_STATE_STARTING:
            report = Report(
                types.TASK_STATE_FAILED,
                "failed",
                "the container was lost while the node daemon was not running; did the host restart?",
                urgent=True,
            )
            return self._ended(report)
        if is_stop(event.desired):
            return self._abandon()
        self.phase = Phase.PREPARING
        return [Report(max(event.state, types.TASK_STATE_PREPARING), "preparing"), Prepare()]

    def _resume_running(self, event: Recovered) -> list[Command]:
        commands: list[Command]
        if event.state >= types.TASK_STATE_RUNNING:
            self.phase = Phase.RUNNING
            commands = [WatchExit()]
            if event.has_health:
                commands.append(WatchHealth(known_healthy=True))
        else:
            commands = self._on_started(Started(0))
        if is_stop(event.desired):
            commands += self._on_desired_while_up(DesiredChanged(event.desired))
        return commands

    # ---------------------------------------------------------------------------------------------- getting ready

    def _on_progress(self, event: Progress) -> list[Command]:
        return [Report(max(self.state, types.TASK_STATE_PREPARING), event.message, _short(event.trouble))]

    def _on_prepared(self, event: Prepared) -> list[Command]:
        self._has_health = event.has_health
        self.phase = Phase.READY
        waits = self.desired == types.TASK_STATE_READY
        ready = Report(types.TASK_STATE_READY, "ready", image_digest=event.image_digest, urgent=waits)
        return [ready] if waits else [ready, *self._start()]

    def _on_prepare_failed(self, event: PrepareFailed) -> list[Command]:
        return self._reject(event.error)

    def _on_start_failed(self, event: StartFailed) -> list[Command]:
        return self._reject(event.error)

    def _reject(self, error: str) -> list[Command]:
        self._outcome = _Outcome(Report(types.TASK_STATE_REJECTED, "rejected", _short(error), urgent=True))
        self.phase = Phase.CLEANING
        return [CleanUp()]

    def _start(self) -> list[Command]:
        self.phase = Phase.STARTING
        return [Report(types.TASK_STATE_STARTING, "starting"), Start()]

    def _on_started(self, event: Started) -> list[Command]:
        if is_stop(self.desired) and self.phase is Phase.STARTING:
            return [WatchExit(), *self._stop_now()]
        if self._has_health:
            self.phase = Phase.PROBING
            probing = Report(
                types.TASK_STATE_STARTING,
                "waiting for the health check",
                health=types.HEALTH_STATE_STARTING,
                pid=event.pid,
            )
            return [probing, WatchExit(), WatchHealth()]
        self.phase = Phase.RUNNING
        return [Report(types.TASK_STATE_RUNNING, "running", pid=event.pid, urgent=True), WatchExit()]

    # --------------------------------------------------------------------------------------------------- running

    def _on_healthy(self, event: BecameHealthy) -> list[Command]:
        self.phase = Phase.RUNNING
        return [Report(types.TASK_STATE_RUNNING, "running", health=types.HEALTH_STATE_HEALTHY, urgent=True)]

    def _on_unhealthy(self, event: BecameUnhealthy) -> list[Command]:
        error = _short(f"unhealthy: {event.output}" if event.output else "unhealthy")
        self._outcome = _Outcome(
            Report(types.TASK_STATE_FAILED, "failed", error, health=types.HEALTH_STATE_UNHEALTHY, urgent=True)
        )
        # Still RUNNING, but not to be sent to any more: says so at once, the end follows.
        withdrawn = Report(
            self.state, "unhealthy, stopping", health=types.HEALTH_STATE_UNHEALTHY, urgent=self.phase is Phase.RUNNING
        )
        self.phase = Phase.STOPPING
        return [withdrawn, Stop()]

    def _on_unhealthy_while_draining(self, event: BecameUnhealthy) -> list[Command]:
        return self._stop_now()

    def _on_exited(self, event: Exited) -> list[Command]:
        if event.exit_code == 0:
            return self._ended(Report(types.TASK_STATE_COMPLETE, "finished", exit_code=0, urgent=True))
        reason = f"exit code {event.exit_code}"
        if event.out_of_memory or event.reason:
            reason += f" ({event.reason or 'out of memory'})"
        if event.last_output:
            reason += f": {event.last_output}"
        return self._ended(
            Report(
                types.TASK_STATE_FAILED,
                "failed",
                _short(reason),
                exit_code=event.exit_code,
                last_output=_short(event.last_output),
                urgent=True,
            )
        )

    def _ended(self, report: Report) -> list[Command]:
        self._outcome = _Outcome(report, reported=True)
        self.phase = Phase.CLEANING
        return [report, CleanUp()]

    # ------------------------------------------------------------------------------------------------------ ending

    def _on_desired(self, event: DesiredChanged) -> list[Command]:
        """Phases in which nothing that a desired state could change is left: only remember it."""
        self.desired = event.desired
        return []

    def _on_desired_before_start(self, event: DesiredChanged) -> list[Command]:
        self.desired = event.desired
        if is_stop(event.desired):
            return self._abandon()
        if self.phase is Phase.READY and event.desired == types.TASK_STATE_RUNNING:
            return self._start()
        return []

    def _on_desired_while_up(self, event: DesiredChanged) -> list[Command]:
        self.desired = event.desired
        if not is_stop(event.desired):
            return []
        if self.phase is Phase.PROBING:  # nobody was ever sent to it
            return self._stop_now()
        self.phase = Phase.DRAINING
        return [Drain()]

    def _on_drained(self, event: Drained) -> list[Command]:
        return self._stop_now()

    def _stop_now(self) -> list[Command]:
        self._outcome = _Outcome(Report(types.TASK_STATE_SHUTDOWN, "stopped", urgent=True))
        self.phase = Phase.STOPPING
        return [Stop()]

    def _abandon(self) -> list[Command]:
        self._outcome = _Outcome(Report(types.TASK_STATE_SHUTDOWN, "stopped before it started", urgent=True))
        self.phase = Phase.CLEANING
        return [CleanUp()]

    def _on_exited_while_stopping(self, event: Exited) -> list[Command]:
        if self._outcome is None:  # drained by itself: the process ended before its stop signal
            self._stop_now()
        assert self._outcome is not None
        report = self._outcome.report
        ended = Report(
            report.state,
            report.message,
            report.error,
            report.health,
            event.exit_code,
            _short(event.last_output) if report.error else "",
            urgent=True,
        )
        if report.state == types.TASK_STATE_SHUTDOWN:
            self._outcome = _Outcome(ended)
            self.phase = Phase.CLEANING
            return [CleanUp()]
        return self._ended(ended)

    def _on_unassigned(self, event: Unassigned) -> list[Command]:
        self._assigned = False
        self.desired = types.TASK_STATE_REMOVE
        match self.phase:
            case Phase.NEW | Phase.DONE:
                self.phase = Phase.FORGOTTEN
                return [Forget()]
            case Phase.PREPARING | Phase.READY:
                return self._abandon()
            case Phase.PROBING | Phase.RUNNING | Phase.DRAINING:
                return self._stop_now()
            case _:  # STARTING stops once it has started; the rest is on its way
                return []

    def _on_cleaned_up(self, event: CleanedUp) -> list[Command]:
        assert self._outcome is not None
        commands: list[Command] = [] if self._outcome.reported else [self._outcome.report]
        commands.append(ReleaseRootfs())
        self.phase = Phase.DONE
        if not self._assigned:
            self.phase = Phase.FORGOTTEN
            commands.append(Forget())
        return commands


def _short(text: str) -> str:
    return text if len(text) <= MAX_ERROR_LENGTH else text[: MAX_ERROR_LENGTH - 1] + "…"


_M = TaskMachine
_TABLE: dict[tuple[Phase, type], Callable[..., list[Command]]] = {
    (Phase.NEW, Assigned): _M._on_assigned,
    (Phase.NEW, Recovered): _M._on_recovered,
    (Phase.PREPARING, Progress): _M._on_progress,
    (Phase.PREPARING, Prepared): _M._on_prepared,
    (Phase.PREPARING, PrepareFailed): _M._on_prepare_failed,
    (Phase.PREPARING, DesiredChanged): _M._on_desired_before_start,
    (Phase.READY, DesiredChanged): _M._on_desired_before_start,
    (Phase.STARTING, DesiredChanged): _M._on_desired,
    (Phase.STARTING, Started): _M._on_started,
    (Phase.STARTING, StartFailed): _M._on_start_failed,
    (Phase.PROBING, DesiredChanged): _M._on_desired_while_up,
    (Phase.PROBING, BecameHealthy): _M._on_healthy,
    (Phase.PROBING, BecameUnhealthy): _M._on_unhealthy,
    (Phase.PROBING, Exited): _M._on_exited,
    (Phase.RUNNING, DesiredChanged): _M._on_desired_while_up,
    (Phase.RUNNING, BecameUnhealthy): _M._on_unhealthy,
    (Phase.RUNNING, Exited): _M._on_exited,
    (Phase.DRAINING, DesiredChanged): _M._on_desired,
    (Phase.DRAINING, Drained): _M._on_drained,
    (Phase.DRAINING, BecameUnhealthy): _M._on_unhealthy_while_draining,
    (Phase.DRAINING, Exited): _M._on_exited_while_stopping,
    (Phase.STOPPING, DesiredChanged): _M._on_desired,
    (Phase.STOPPING, Exited): _M._on_exited_while_stopping,
    (Phase.CLEANING, DesiredChanged): _M._on_desired,
    (Phase.CLEANING, CleanedUp): _M._on_cleaned_up,
    (Phase.DONE, DesiredChanged): _M._on_desired,
    **{(phase, Unassigned): _M._on_unassigned for phase in Phase},
}

# Late results of work that was overtaken: true, and of no consequence.
_IGNORED: frozenset[tuple[Phase, type]] = frozenset(
    {
        (Phase.RUNNING, BecameHealthy),
        (Phase.DRAINING, BecameHealthy),
        (Phase.STOPPING, BecameHealthy),
        (Phase.STOPPING, BecameUnhealthy),
        (Phase.STOPPING, Drained),
        *(
            (phase, kind)
            for phase in (Phase.CLEANING, Phase.DONE, Phase.FORGOTTEN)
            for kind in (
                Progress,
                Prepared,
                PrepareFailed,
                Started,
                StartFailed,
                Exited,
                BecameHealthy,
                BecameUnhealthy,
                Drained,
            )
        ),
        (Phase.FORGOTTEN, DesiredChanged),
    }
)
