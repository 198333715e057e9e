"""Waiting for a service ends where what does not run of it never will: by the restart policy, in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pytest
from swarm.clock import timestamp
from swarm.errors import Unavailable
from swarm.v1 import control_pb2 as control
from swarm.v1 import types_pb2 as types

from orchestrator.cli import endings
from orchestrator.cli import progress as waiting
from orchestrator.cli.progress_display import task_lines
from orchestrator.cli.tracker import Tracker
from tests.unit.cli.conftest import Result, Script
from tests.unit.cli.test_services import progress, service, summary, task

Run = Callable[..., Result]
NONE, ON_FAILURE = types.RESTART_CONDITION_NONE, types.RESTART_CONDITION_ON_FAILURE


def ended(slot: int, state: int = types.TASK_STATE_FAILED, number: int = 0, **fields: Any) -> types.Task:
    """The `number`-th task of a slot that ended; those after it replaced it."""
    made = task(slot, state, **fields)
    made.id = f"ended{slot}-{number}"
    made.status.recorded_at.CopyFrom(timestamp(1000.0 + number))
    if state == types.TASK_STATE_FAILED:
        made.status.error = "exit code 3"
    return made


def given_up(before: types.Task) -> types.Task:
    before.desired_state = types.TASK_STATE_SHUTDOWN
    return before


@pytest.fixture
def create(script: Script, swarmctl: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `service create` for a service with a restart policy, which then shows these tasks and no others for ever."""
    monkeypatch.setattr(waiting, "STABLE_SECONDS", 0.01)

    def run(
        policy: types.RestartPolicy,
        tasks: Sequence[types.Task],
        *,
        desired: int,
        everywhere: bool = False,
        flags: Sequence[str] = ("--wait-timeout", "2s"),
        **fields: Any,
    ) -> Result:
        shown: list[types.Task] = list({one.slot or one.node_id: one for one in tasks}.values())
        if everywhere:  # the managers do not show what ended of a global service
            shown = [one for one in shown if one.status.state == types.TASK_STATE_RUNNING]
        made = service(replicas=desired)
        seen = progress(0, False, shown, desired=desired, **fields)
        for one in (made, seen.summary.service):
            one.spec.task.restart.CopyFrom(policy)
            if everywhere:
                getattr(one.spec.mode, "global").SetInParent()
        script.answers["CreateService"] = control.CreateServiceResponse(service=made)
        script.answers["ListTasks"] = lambda _: control.ListTasksResponse(tasks=tasks)
        script.answers["WatchService"] = lambda _: [seen, Unavailable("the leader is gone")]
        return swarmctl("service", "create", *flags, "web")

    return run


def test_a_task_that_failed_and_is_never_restarted_ends_the_wait(create: Callable[..., Result]) -> None:
    result = create(types.RestartPolicy(condition=NONE), [ended(1)], desired=1)
    assert result.code == 7
    assert result.err.splitlines()[-1] == (
        "Error: service web did not converge: task web.1 failed (exit code 3) and is not restarted: --restart-condition none"
    )


@pytest.mark.parametrize("condition", [NONE, ON_FAILURE])
def test_tasks_that_did_what_was_asked_are_success(create: Callable[..., Result], condition: Any) -> None:
    tasks = [ended(1, types.TASK_STATE_COMPLETE), ended(2, types.TASK_STATE_COMPLETE), task(3)]
    result = create(types.RestartPolicy(condition=condition), tasks, desired=3)
    assert (result.code, result.err) == (0, "")
    assert result.lines[-1] == "verify: Service web converged: 2 tasks ran to the end, 1 task running"


def test_attempts_that_are_used_up_end_the_wait(create: Callable[..., Result]) -> None:
    policy = types.RestartPolicy(max_attempts=2)
    tasks = [given_up(ended(1, number=1)), given_up(ended(1, number=2)), ended(1, number=3)]
    result = create(policy, tasks, desired=1)
    assert result.code == 7
    assert "task web.1 failed (exit code 3) and is not restarted: --restart-max-attempts 2 used up" in result.err
    assert "did not converge within" in create(policy, tasks[1:], desired=1, flags=("--wait-timeout", "300ms")).err


def test_attempts_outside_of_the_window_do_not_count() -> None:
    slot = [ended(1, number=1), ended(1, number=50), ended(1, number=100)]
    policy = types.RestartPolicy(max_attempts=2)
    assert endings.why_not_restarted(slot[-1], slot, policy)
    policy.window.seconds = 60
    assert not endings.why_not_restarted(slot[-1], slot, policy)


def test_a_task_that_will_be_restarted_is_waited_for(create: Callable[..., Result]) -> None:
    short = ("--wait-timeout", "300ms")
    for policy in (types.RestartPolicy(), types.RestartPolicy(condition=ON_FAILURE)):
        assert "did not converge within" in create(policy, [ended(1)], desired=1, flags=short).err
    # One is on its way, or its slot has not been given a task yet.
    pending = task(2, types.TASK_STATE_PENDING)
    none = types.RestartPolicy(condition=NONE)
    assert "did not converge within" in create(none, [ended(1), pending], desired=2, flags=short).err
    assert "did not converge within" in create(none, [ended(1)], desired=2, flags=short).err


def test_what_the_last_revision_came_to_does_not_end_the_wait_for_this_one(create: Callable[..., Result]) -> None:
    old = ended(1)
    old.revision_id = "r0"
    policy = types.RestartPolicy(condition=NONE)
    assert "did not converge within" in create(policy, [old], desired=1, flags=("--wait-timeout", "300ms")).err
    updating = types.UpdateStatus(state=types.UPDATE_STATE_UPDATING)
    short = ("--wait-timeout", "300ms")
    assert "converge within" in create(policy, [ended(1)], desired=1, flags=short, update_status=updating).err


def test_tasks_of_a_global_service_that_ended_are_looked_up(create: Callable[..., Result]) -> None:
    tasks = [ended(0), ended(0, types.TASK_STATE_COMPLETE), task(0)]
    for number, one in enumerate(tasks, 1):
        one.node_id = f"n{number}"
    result = create(types.RestartPolicy(condition=NONE), tasks, desired=3, everywhere=True)
    assert result.code == 7
    assert "task web.n1 failed (exit code 3)" in result.err
    done = create(types.RestartPolicy(condition=NONE), tasks[1:], desired=2, everywhere=True)
    assert done.lines[-1] == "verify: Service web converged: 1 task ran to the end, 1 task running"


def test_several_that_failed_are_counted() -> None:
    read = summary(running=0, desired=3)
    read.service.spec.task.restart.condition = NONE
    rejected = ended(1, types.TASK_STATE_REJECTED)
    rejected.status.error = "no such image"
    found = endings.standstill(read, [rejected, ended(2), ended(3)])
    assert found is not None
    assert found.failure() == (
        "task web.1 was rejected (no such image) and is not restarted: --restart-condition none (and 2 other tasks likewise)"
    )


def test_scaling_a_service_whose_update_is_paused_ends(script: Script, swarmctl: Run, monkeypatch: Any) -> None:
    monkeypatch.setattr(waiting, "STABLE_SECONDS", 0.01)
    paused = types.UpdateStatus(state=types.UPDATE_STATE_PAUSED)
    tasks = [task(1), task(2)]
    tasks[0].revision_id = "r0"  # which the paused update has left alone
    script.answers["UpdateService"] = control.UpdateServiceResponse(service=service(update_status=paused))
    script.answers["WatchService"] = [progress(2, False, tasks, desired=2, update_status=paused)]
    script.answers["ListTasks"] = lambda _: control.ListTasksResponse(tasks=tasks)
    result = swarmctl("service", "scale", "web=2")
    assert (result.code, result.lines[-1]) == (0, "verify: Service web converged: its update is still paused")


def test_a_rolled_back_update_says_why(script: Script, swarmctl: Run) -> None:
    why = "1 failed, first web.1: exit code 3"
    status = types.UpdateStatus(state=types.UPDATE_STATE_ROLLBACK_COMPLETED, message=f"rolled back: {why}")
    script.answers["GetService"] = control.GetServiceResponse(summary=summary())
    script.answers["UpdateService"] = control.UpdateServiceResponse(service=service(version=8))
    script.answers["WatchService"] = [progress(3, False, version=9, update_status=status)]
    result = swarmctl("service", "update", "--image", "nginx:2", "web")
    complaint = result.err.splitlines()[-1]
    assert (result.code, complaint) == (7, f"Error: the update of service web failed and was rolled back: {why}")


class Away:
    """Managers of which none answers, then one does."""

    def __init__(self, times: int) -> None:
        self.times = times

    def stream(self, *_: Any) -> Iterator[control.ServiceProgress]:
        self.times -= 1
        if self.times >= 0:
            raise Unavailable("no manager is reachable")
        yield progress(3, True, version=9)


def test_managers_that_are_all_away_are_waited_for(monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(waiting, "AWAY_PAUSE", 0.01)
    waiting.wait(cast(Any, Away(3)), service(version=8))
    shown = capsys.readouterr()
    assert shown.err == "no manager is reachable; waiting for one\n"
    assert shown.out.splitlines()[-1] == "verify: Service web converged"


def test_managers_that_stay_away_are_given_up_and_the_service_is_said_to_go_on(monkeypatch: Any) -> None:
    monkeypatch.setattr(waiting, "AWAY_PAUSE", 0.01)
    monkeypatch.setattr(waiting, "AWAY_TIMEOUT", 0.05)
    with pytest.raises(
        Unavailable, match="no manager is reachable; service web is in the swarm and goes on in the back"
    ):
        waiting.wait(cast(Any, Away(10**9)), service(version=8), quiet=True)


def test_bars_fit_the_terminal() -> None:
    tracker = Tracker(service(replicas=2))
    tracker.feed(progress(0, False, [task(1), task(2, types.TASK_STATE_PREPARING)], desired=2))
    for width in (50, 60, 80, 200):
        lines = [text for text, _ in task_lines(tracker, (width, 24))]
        assert all(len(line) <= width for line in lines)
        assert lines[0].endswith("=>]")
    assert len(task_lines(tracker, (80, 5))) == 2  # one task, and that there is another


def test_what_is_shown_last_is_how_it_ended(swarmctl: Run, script: Script, monkeypatch: Any) -> None:
    """The stream is not read while it is made sure that what runs goes on running."""
    monkeypatch.setattr(waiting, "STABLE_SECONDS", 0.01)
    policy = types.RestartPolicy(condition=NONE)
    later = [ended(1), ended(2)]
    answers = [[ended(1), task(2)], later, later]
    read = progress(0, False, [ended(1), task(2)], desired=2)
    read.summary.service.spec.task.restart.CopyFrom(policy)
    script.answers["CreateService"] = control.CreateServiceResponse(service=service(replicas=2))
    script.answers["ListTasks"] = [control.ListTasksResponse(tasks=tasks) for tasks in answers]
    script.answers["WatchService"] = [read]
    result = swarmctl("service", "create", "web")
    assert result.lines[1:] == ["overall progress: 1 out of 2 tasks", "overall progress: 0 out of 2 tasks"]
    assert result.err.splitlines()[:2] == ["web.1: exit code 3", "web.2: exit code 3"]
    assert "(and 1 other task likewise)" in result.err


def test_looking_at_all_tasks_outlasts_managers_that_are_away(monkeypatch: Any) -> None:
    answers: list[Any] = [Unavailable("no quorum"), control.ListTasksResponse(tasks=[task(1)])]

    class Caller:
        def call(self, *_: Any) -> Any:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

    monkeypatch.setattr(waiting, "AWAY_PAUSE", 0.01)
    assert len(waiting._all_tasks(cast(Any, Caller()), service())) == 1
