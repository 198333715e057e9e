"""When a task that ended is replaced: the policy, the backoff, the attempts."""

from __future__ import annotations

import pytest
from swarm.clock import duration
from swarm.v1.types_pb2 import (
    NODE_STATE_DOWN,
    NODE_STATE_READY,
    RESTART_CONDITION_NONE,
    RESTART_CONDITION_ON_FAILURE,
    TASK_STATE_COMPLETE,
    TASK_STATE_FAILED,
    TASK_STATE_ORPHANED,
    TASK_STATE_REJECTED,
    TASK_STATE_SHUTDOWN,
    Node,
    NodeStatus,
    RestartPolicy,
    Task,
    TaskState,
    TaskStatus,
)

from orchestrator.controllers.losses import ReplacementBudget
from orchestrator.controllers.restarts import backoff, failures_up_to, restart_at
from orchestrator.store import Create, Snapshot

END = 1_000


def ended(
    id_: str = "t",
    *,
    state: TaskState.ValueType = TASK_STATE_FAILED,
    at: int = END,
    ran: int | None = None,
    failures: int = 0,
    revision: str = "r",
) -> Task:
    task = Task(id=id_, revision_id=revision, status=TaskStatus(state=state), consecutive_failures=failures)
    task.status.recorded_at.seconds = at
    task.status.at.seconds = at + 500  # the agent's clock is off, and does not matter
    if ran is not None:
        task.status.running_since.seconds = at + 500 - ran
    return task


@pytest.mark.parametrize(
    ("failures", "seconds"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 4), (7, 32), (8, 60), (9, 60), (10_000, 60)]
)
def test_the_backoff_doubles_to_a_minute(failures: int, seconds: float) -> None:
    assert backoff(failures) == seconds


def test_a_task_that_ran_for_long_starts_the_backoff_anew() -> None:
    assert failures_up_to(ended(failures=6, ran=61)) == 0
    assert failures_up_to(ended(failures=6, ran=59)) == 7
    assert failures_up_to(ended(failures=6)) == 7, "it never ran"


@pytest.mark.parametrize("state", [TASK_STATE_FAILED, TASK_STATE_REJECTED, TASK_STATE_COMPLETE])
def test_whatever_ends_is_restarted_by_default(state: TaskState.ValueType) -> None:
    assert restart_at(ended(state=state), [], RestartPolicy()) == END
    assert restart_at(ended(state=state, failures=3), [], RestartPolicy()) == END + 4


def test_a_given_delay_replaces_the_backoff() -> None:
    policy = RestartPolicy(delay=duration(7))
    assert restart_at(ended(failures=9), [], policy) == END + 7


def test_conditions() -> None:
    assert restart_at(ended(), [], RestartPolicy(condition=RESTART_CONDITION_NONE)) is None
    on_failure = RestartPolicy(condition=RESTART_CONDITION_ON_FAILURE)
    assert restart_at(ended(state=TASK_STATE_COMPLETE), [], on_failure) is None
    assert restart_at(ended(state=TASK_STATE_REJECTED), [], on_failure) == END


@pytest.mark.parametrize("state", [TASK_STATE_SHUTDOWN, TASK_STATE_ORPHANED])
def test_what_did_not_fail_is_replaced_at_once(state: TaskState.ValueType) -> None:
    assert restart_at(ended(state=state), [], RestartPolicy(condition=RESTART_CONDITION_NONE)) == 0


def test_attempts_are_counted_by_revision_and_within_the_window() -> None:
    history = [ended(f"t{number}", at=END - 10 * number) for number in range(1, 5)]
    assert restart_at(ended(), history, RestartPolicy(max_attempts=4)) is None
    assert restart_at(ended(), history, RestartPolicy(max_attempts=5)) == END
    assert restart_at(ended(), history, RestartPolicy(max_attempts=3, window=duration(25))) == END
    assert restart_at(ended(), history, RestartPolicy(max_attempts=2, window=duration(25))) is None
    others = [ended(f"t{number}", revision="other") for number in range(4)]
    assert restart_at(ended(), others, RestartPolicy(max_attempts=1)) == END


def _nodes(up: int, down: int) -> Snapshot:
    nodes = [Node(id=f"u{n}", status=NodeStatus(state=NODE_STATE_READY)) for n in range(up)]
    nodes += [Node(id=f"d{n}", status=NodeStatus(state=NODE_STATE_DOWN)) for n in range(down)]
    return Snapshot().with_changes([Create(node) for node in nodes])


@pytest.mark.parametrize(
    ("up", "down", "paced"), [(2, 1, False), (9, 2, False), (3, 2, True), (1, 1, False), (4, 2, True)]
)
def test_only_a_mass_loss_is_paced(up: int, down: int, paced: bool) -> None:
    budget = ReplacementBudget()
    budget.observe(_nodes(up, down), 100.0)
    granted = sum(budget.take() for _ in range(1000))
    assert granted == (20 if paced else 1000)
    if paced:
        assert 100.0 < budget.next_at() <= 100.1
        budget.observe(_nodes(up, down), 100.5)
        assert sum(budget.take() for _ in range(1000)) == 10
