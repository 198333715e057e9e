"""Statuses between agents and the store: coalesced, forward only, of the reporter's own tasks."""

from __future__ import annotations

from typing import Any

import pytest
from swarm.channels import MAX_MESSAGE_BYTES
from swarm.errors import InvalidArgument, ResourceExhausted
from swarm.v1 import dispatcher_pb2 as dispatcher
from swarm.v1 import types_pb2 as types

from orchestrator.dispatcher import statuses
from orchestrator.dispatcher.reports import MAX_STATUS_BYTES, MAX_STATUS_TEXT, check_hello
from orchestrator.dispatcher.statuses import StatusQueue, status_changes
from orchestrator.store import Create, SetTaskStatus
from tests.unit.dispatcher.worlds import World, task


def update(task_id: str, state: types.TaskState.ValueType, message: str = "") -> dispatcher.TaskStatusUpdate:
    return dispatcher.TaskStatusUpdate(task_id=task_id, status=types.TaskStatus(state=state, message=message))


def states_of(queue: StatusQueue) -> dict[str, int]:
    return {task_id: status.state for task_id, (_, status) in queue.take().statuses.items()}


def test_the_newest_state_of_each_task_is_kept() -> None:
    queue = StatusQueue()
    queue.offer("s", 1, "n1", [update("t1", types.TASK_STATE_PREPARING), update("t2", types.TASK_STATE_READY)])
    queue.offer("s", 2, "n1", [update("t1", types.TASK_STATE_RUNNING)])
    queue.offer("s", 3, "n1", [update("t1", types.TASK_STATE_PREPARING)])  # late
    batch = queue.take()
    assert batch.sequences == {"s": 3}
    assert batch.statuses["t1"][1].state == types.TASK_STATE_RUNNING
    assert not queue


def test_what_was_not_committed_waits_again_behind_what_is_newer() -> None:
    queue = StatusQueue()
    queue.offer("s", 1, "n1", [update("t1", types.TASK_STATE_PREPARING), update("t2", types.TASK_STATE_READY)])
    batch = queue.take()
    queue.offer("s", 2, "n1", [update("t1", types.TASK_STATE_RUNNING)])
    queue.give_back(batch)
    again = queue.take()
    assert again.sequences == {"s": 2}
    assert {id_: status.state for id_, (_, status) in again.statuses.items()} == {
        "t1": types.TASK_STATE_RUNNING,
        "t2": types.TASK_STATE_READY,
    }


def test_a_large_queue_is_taken_in_parts_and_acknowledged_with_the_last() -> None:
    queue = StatusQueue()
    count = statuses.MAXIMUM_BATCH + 10
    queue.offer("s", 7, "n1", [update(f"t{i}", types.TASK_STATE_RUNNING) for i in range(count)])
    first, second = queue.take(), queue.take()
    assert (len(first.statuses), first.sequences) == (statuses.MAXIMUM_BATCH, {})
    assert (len(second.statuses), second.sequences) == (10, {"s": 7})


def test_long_statuses_travel_in_batches_that_fit_into_a_message() -> None:
    queue = StatusQueue()
    count = 1000
    long = "x" * (MAX_STATUS_BYTES - 100)
    queue.offer("s", 1, "n1", [update(f"t{i}", types.TASK_STATE_RUNNING, long) for i in range(count)])
    taken = 0
    while queue:
        batch = queue.take()
        taken += len(batch.statuses)
        assert 0 < sum(part.ByteSize() for part in batch.by_node()) < MAX_MESSAGE_BYTES
    assert (taken, batch.sequences) == (count, {"s": 1})


def test_texts_that_are_too_long_are_cut_and_what_is_still_too_large_is_refused() -> None:
    queue = StatusQueue()
    long = types.TaskStatus(state=types.TASK_STATE_FAILED, message="é" * 100_000, error="b" * 100_000)
    long.container.last_output = "c" * 100_000
    long.container.exit_code = 3
    queue.offer("s", 1, "n1", [dispatcher.TaskStatusUpdate(task_id="t1", status=long)])
    [(_, kept)] = queue.take().statuses.values()
    assert (
        kept.ByteSize() <= MAX_STATUS_BYTES and kept.state == types.TASK_STATE_FAILED and kept.container.exit_code == 3
    )
    for text in (kept.message, kept.error, kept.container.last_output):
        assert len(text) == MAX_STATUS_TEXT and text.endswith("(cut)")
    assert len(long.message) == 100_000, "what was reported is not changed in place"
    long.container.container_id = "d" * 100_000
    with pytest.raises(InvalidArgument, match="larger than"):
        queue.offer("s", 2, "n1", [dispatcher.TaskStatusUpdate(task_id="t1", status=long)])


def hello(boot_id: str = "b", **description: Any) -> dispatcher.SessionHello:
    return dispatcher.SessionHello(boot_id=boot_id, description=types.NodeDescription(**description))


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (hello(boot_id=""), "names the agent's boot"),
        (hello(boot_id="b" * 1000), "names the agent's boot"),
        (hello(kernel="k" * 100_000), "description is"),
        (hello(hostname="a\x1b[2J"), "printable"),
        (hello(hostname="h" * 300), "printable"),
        (hello(address="10.0.0.1 }; flush ruleset"), "no IP address"),
    ],
)
def test_a_hello_that_makes_no_sense_is_refused(said: dispatcher.SessionHello, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        check_hello(said)


def test_what_honest_agents_say_is_taken() -> None:
    check_hello(hello(hostname="h1", address="10.0.0.1"))
    check_hello(hello(hostname="h1", address="fd00::1"))
    check_hello(hello())


def test_a_full_queue_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statuses, "MAXIMUM_PENDING", 1)
    queue = StatusQueue()
    queue.offer("s", 1, "n1", [update("t1", types.TASK_STATE_RUNNING)])
    with pytest.raises(ResourceExhausted):
        queue.offer("s", 2, "n1", [update("t2", types.TASK_STATE_RUNNING)])


async def test_only_news_of_the_reporters_own_tasks_is_written() -> None:
    world = World()
    await world.found()
    snapshot = await world.commit(
        Create(task("mine", "n1", state=types.TASK_STATE_PREPARING)),
        Create(task("known", "n1", state=types.TASK_STATE_RUNNING)),
        Create(task("ahead", "n1", state=types.TASK_STATE_RUNNING)),
        Create(task("ended", "n1", state=types.TASK_STATE_FAILED)),
        Create(task("theirs", "n2", state=types.TASK_STATE_PREPARING)),
        Create(task("orphan", "n1", state=types.TASK_STATE_ORPHANED)),
    )
    queue = StatusQueue()
    queue.offer(
        "s",
        1,
        "n1",
        [
            update("mine", types.TASK_STATE_RUNNING),
            update("known", types.TASK_STATE_RUNNING),
            update("ahead", types.TASK_STATE_STARTING),
            update("ended", types.TASK_STATE_SHUTDOWN),
            update("theirs", types.TASK_STATE_RUNNING),
            update("orphan", types.TASK_STATE_SHUTDOWN),
            update("gone", types.TASK_STATE_RUNNING),
        ],
    )
    changes = status_changes(snapshot, queue.take())
    assert [change.task_id for change in changes] == ["mine", "orphan"]
    assert all(isinstance(change, SetTaskStatus) for change in changes)


@pytest.mark.parametrize(
    "state", [types.TASK_STATE_ASSIGNED, types.TASK_STATE_REMOVE, types.TASK_STATE_ORPHANED, 95, 999]
)
async def test_an_agent_cannot_write_states_that_belong_to_managers(state: types.TaskState.ValueType) -> None:
    """A task whose broken or hostile agent said 999 of it had ended for good and never counted as stopped: it kept its
    addresses, whatever was said of it afterwards, until its node was removed."""
    world = World()
    await world.found()
    snapshot = await world.commit(Create(task("t1", "n1", state=types.TASK_STATE_PENDING)))
    queue = StatusQueue()
    queue.offer("s", 1, "n1", [update("t1", state)])
    assert status_changes(snapshot, queue.take()) == []


async def test_a_new_message_in_the_same_state_is_news() -> None:
    world = World()
    await world.found()
    snapshot = await world.commit(Create(task("t1", "n1", state=types.TASK_STATE_PREPARING)))
    queue = StatusQueue()
    queue.offer("s", 1, "n1", [update("t1", types.TASK_STATE_PREPARING, "pulling image")])
    assert len(status_changes(snapshot, queue.take())) == 1
