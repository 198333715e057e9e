"""How far a service has come since a change of it, and how waiting for it ended. Pure: fed with the answers of WatchService."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field

from swarm.clock import seconds_of
from swarm.v1 import control_pb2 as control
from swarm.v1 import types_pb2 as types

from orchestrator.cli import endings, words
from orchestrator.cli.task_words import problem_of, task_label

DEFAULT_MONITOR = 5.0  # seconds that the managers watch an updated task for where the service does not say
_FAILED_UPDATES = {
    types.UPDATE_STATE_PAUSED: "the update of service {name} is paused",
    types.UPDATE_STATE_ROLLBACK_PAUSED: "the rollback of service {name} is paused",
    types.UPDATE_STATE_ROLLBACK_COMPLETED: "the update of service {name} failed and was rolled back",
}


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
        return sum(is_done(task, service) for task in self.latest.tasks), self.latest.summary.desired

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


def is_done(task: types.Task, service: types.Service) -> bool:
    """The task runs as the service says now."""
    return task.revision_id == service.revision_id and endings.is_settled(task)
