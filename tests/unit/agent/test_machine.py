"""A task's life, as scripts: event in, commands out."""

from __future__ import annotations

import pytest
from swarm.v1 import types_pb2 as types

from agent.tasks import events as e
from agent.tasks.machine import TaskMachine

RUNNING, SHUTDOWN, READY = types.TASK_STATE_RUNNING, types.TASK_STATE_SHUTDOWN, types.TASK_STATE_READY


def play(machine: TaskMachine, *happenings: e.Event) -> list[e.Command]:
    """The commands of the last event."""
    commands: list[e.Command] = []
    for event in happenings:
        commands = machine.handle(event)
    return commands


def kinds(commands: list[e.Command]) -> list[str]:
    """REPORTED STATES in capitals, the other commands by name."""
    return [
        types.TaskState.Name(each.state).removeprefix("TASK_STATE_")
        if isinstance(each, e.Report)
        else type(each).__name__
        for each in commands
    ]


def running(*, health: bool = False) -> TaskMachine:
    machine = TaskMachine()
    play(machine, e.Assigned(RUNNING), e.Prepared("sha256:d", health), e.Started(7))
    if health:
        play(machine, e.BecameHealthy())
    return machine


def test_a_task_without_health_check_runs_as_soon_as_it_started() -> None:
    machine = TaskMachine()
    assert kinds(play(machine, e.Assigned(RUNNING))) == ["ACCEPTED", "PREPARING", "Prepare"]
    assert kinds(play(machine, e.Prepared("sha256:d", False))) == ["READY", "STARTING", "Start"]
    assert kinds(play(machine, e.Started(7))) == ["RUNNING", "WatchExit"]


def test_a_task_with_health_check_runs_only_when_healthy() -> None:
    machine = TaskMachine()
    play(machine, e.Assigned(RUNNING), e.Prepared("", True))
    assert kinds(play(machine, e.Started(7))) == ["STARTING", "WatchExit", "WatchHealth"]
    (report,) = play(machine, e.BecameHealthy())
    assert isinstance(report, e.Report)
    assert (report.state, report.health) == (RUNNING, types.HEALTH_STATE_HEALTHY)


def test_a_task_that_is_only_to_be_ready_waits_for_the_word() -> None:
    machine = TaskMachine()
    (report,) = play(machine, e.Assigned(READY), e.Prepared("", False))
    assert isinstance(report, e.Report) and report.urgent
    assert kinds(play(machine, e.DesiredChanged(RUNNING))) == ["STARTING", "Start"]


def test_a_failure_is_reported_before_the_clean_up_with_code_and_last_line() -> None:
    commands = play(running(), e.Exited(3, "cannot bind"))
    assert kinds(commands) == ["FAILED", "CleanUp"]
    report = commands[0]
    assert isinstance(report, e.Report)
    assert (report.error, report.exit_code, report.urgent) == ("exit code 3: cannot bind", 3, True)


def test_an_end_by_itself_with_exit_code_0_is_complete() -> None:
    machine = running()
    assert kinds(play(machine, e.Exited(0))) == ["COMPLETE", "CleanUp"]
    assert kinds(play(machine, e.CleanedUp())) == ["ReleaseRootfs"]
    assert machine.finished


def test_a_wanted_stop_drains_stops_cleans_and_only_then_reports() -> None:
    machine = running()
    assert kinds(play(machine, e.DesiredChanged(SHUTDOWN))) == ["Drain"]
    assert kinds(play(machine, e.Drained())) == ["Stop"]
    assert kinds(play(machine, e.Exited(143))) == ["CleanUp"]
    assert kinds(play(machine, e.CleanedUp())) == ["SHUTDOWN", "ReleaseRootfs"]


def test_a_process_that_ends_while_it_drains_was_shut_down() -> None:
    machine = running()
    assert kinds(play(machine, e.DesiredChanged(SHUTDOWN), e.Exited(1))) == ["CleanUp"]
    assert kinds(play(machine, e.CleanedUp())) == ["SHUTDOWN", "ReleaseRootfs"]


def test_a_task_that_nobody_was_sent_to_is_not_drained() -> None:
    machine = TaskMachine()
    play(machine, e.Assigned(RUNNING), e.Prepared("", True), e.Started(7))
    assert kinds(play(machine, e.DesiredChanged(SHUTDOWN))) == ["Stop"]


def test_an_unhealthy_task_is_withdrawn_stopped_and_failed() -> None:
    machine = running(health=True)
    commands = play(machine, e.BecameUnhealthy("500"))
    assert kinds(commands) == ["RUNNING", "Stop"]
    assert isinstance(commands[0], e.Report) and commands[0].health == types.HEALTH_STATE_UNHEALTHY
    commands = play(machine, e.Exited(143))
    assert kinds(commands) == ["FAILED", "CleanUp"]
    assert isinstance(commands[0], e.Report) and commands[0].error == "unhealthy: 500"


def test_a_stop_during_the_start_waits_for_the_start() -> None:
    machine = TaskMachine()
    play(machine, e.Assigned(RUNNING), e.Prepared("", False))
    assert play(machine, e.DesiredChanged(SHUTDOWN)) == []
    assert kinds(play(machine, e.Started(7))) == ["WatchExit", "Stop"]


def test_a_stop_during_the_preparation_abandons_it() -> None:
    machine = TaskMachine()
    play(machine, e.Assigned(RUNNING))
    assert kinds(play(machine, e.DesiredChanged(SHUTDOWN))) == ["CleanUp"]
    assert play(machine, e.Prepared("", False)) == []  # it had just finished
    assert kinds(play(machine, e.CleanedUp())) == ["SHUTDOWN", "ReleaseRootfs"]


@pytest.mark.parametrize("failure", [e.PrepareFailed("no such image"), e.StartFailed("no such command")])
def test_what_cannot_be_prepared_or_started_is_rejected_with_the_sentence(failure: e.Event) -> None:
    machine = TaskMachine()
    play(machine, e.Assigned(RUNNING))
    if isinstance(failure, e.StartFailed):
        play(machine, e.Prepared("", False))
    assert kinds(play(machine, failure)) == ["CleanUp"]
    commands = play(machine, e.CleanedUp())
    assert kinds(commands) == ["REJECTED", "ReleaseRootfs"]
    assert isinstance(commands[0], e.Report) and commands[0].error.startswith("no such")


def test_a_task_assigned_to_be_stopped_never_starts() -> None:
    assert kinds(play(TaskMachine(), e.Assigned(SHUTDOWN))) == ["SHUTDOWN"]


def test_a_finished_task_is_kept_until_it_is_unassigned() -> None:
    machine = running()
    play(machine, e.Exited(0), e.CleanedUp())
    assert kinds(play(machine, e.Unassigned())) == ["Forget"]
    assert machine.phase is e.Phase.FORGOTTEN


def test_a_running_task_that_is_unassigned_stops_and_is_forgotten() -> None:
    machine = running()
    assert kinds(play(machine, e.Unassigned())) == ["Stop"]
    play(machine, e.Exited(143))
    assert kinds(play(machine, e.CleanedUp())) == ["SHUTDOWN", "ReleaseRootfs", "Forget"]


def test_errors_are_cut_to_what_a_status_may_hold() -> None:
    commands = play(running(), e.Exited(1, "x" * 100_000))
    assert isinstance(commands[0], e.Report) and len(commands[0].error) <= 1000


@pytest.mark.parametrize(
    ("state", "desired", "found", "health", "expected"),
    [
        (RUNNING, RUNNING, e.Found.RUNNING, False, ["WatchExit"]),
        (RUNNING, RUNNING, e.Found.RUNNING, True, ["WatchExit", "WatchHealth"]),
        (RUNNING, RUNNING, e.Found.NOTHING, False, ["FAILED", "CleanUp"]),
        (RUNNING, SHUTDOWN, e.Found.RUNNING, False, ["WatchExit", "Drain"]),
        (types.TASK_STATE_STARTING, RUNNING, e.Found.RUNNING, False, ["RUNNING", "WatchExit"]),
        (types.TASK_STATE_STARTING, RUNNING, e.Found.RUNNING, True, ["STARTING", "WatchExit", "WatchHealth"]),
        (types.TASK_STATE_STARTING, RUNNING, e.Found.CREATED, False, ["STARTING", "Start"]),
        (types.TASK_STATE_PREPARING, RUNNING, e.Found.NOTHING, False, ["PREPARING", "Prepare"]),
        (types.TASK_STATE_PREPARING, RUNNING, e.Found.CREATED, False, ["PREPARING", "Prepare"]),
        (READY, RUNNING, e.Found.CREATED, False, ["READY", "STARTING", "Start"]),
        (READY, READY, e.Found.CREATED, False, ["READY"]),
        (READY, RUNNING, e.Found.NOTHING, False, ["READY", "Prepare"]),
        # It never ran: the host restarted. It was reported RUNNING and then FAILED with exit code 137.
        (types.TASK_STATE_PREPARING, RUNNING, e.Found.ENDED, False, ["PREPARING", "Prepare"]),
        (READY, READY, e.Found.ENDED, False, ["READY", "Prepare"]),
        (types.TASK_STATE_PREPARING, SHUTDOWN, e.Found.ENDED, False, ["CleanUp"]),
        (types.TASK_STATE_STARTING, RUNNING, e.Found.ENDED, False, ["RUNNING", "WatchExit"]),
        (RUNNING, RUNNING, e.Found.ENDED, False, ["WatchExit"]),
        # It runs although the record could not be written.
        (READY, RUNNING, e.Found.RUNNING, False, ["RUNNING", "WatchExit"]),
        (types.TASK_STATE_PREPARING, SHUTDOWN, e.Found.NOTHING, False, ["CleanUp"]),
        (types.TASK_STATE_PREPARING, SHUTDOWN, e.Found.CREATED, False, ["CleanUp"]),
        (types.TASK_STATE_FAILED, RUNNING, e.Found.NOTHING, False, []),
    ],
)
def test_recovery(
    state: types.TaskState.ValueType,
    desired: types.TaskState.ValueType,
    found: e.Found,
    health: bool,
    expected: list[str],
) -> None:
    assert kinds(play(TaskMachine(), e.Recovered(state, desired, found, health))) == expected


def test_progress_after_a_recovery_does_not_move_the_state_back() -> None:
    machine = TaskMachine()
    play(machine, e.Recovered(READY, RUNNING, e.Found.NOTHING, False))
    assert kinds(play(machine, e.Progress("pulling"))) == ["READY"]


def test_what_cannot_happen_is_a_defect() -> None:
    with pytest.raises(AssertionError):
        play(TaskMachine(), e.Started(1))


def test_what_keeps_an_image_from_coming_is_reported_as_the_tasks_error_and_goes_when_it_came() -> None:
    machine = TaskMachine()
    play(machine, e.Assigned(RUNNING))
    (waiting,) = play(machine, e.Progress("preparing image web", "the registry has not answered yet"))
    assert isinstance(waiting, e.Report)
    assert (waiting.state, waiting.error) == (types.TASK_STATE_PREPARING, "the registry has not answered yet")
    (going_on,) = play(machine, e.Progress("preparing image web"))
    assert isinstance(going_on, e.Report) and going_on.error == ""
