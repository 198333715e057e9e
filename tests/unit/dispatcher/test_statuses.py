"""Statuses between agents and the store: coalesced, forward only, of the reporter's own tasks."""

from __future__ import annotations

import pytest
from swarm.errors import ResourceExhausted
from swarm.v1 import dispatcher_pb2 as dispatcher
from swarm.v1 import types_pb2 as types

from orchestrator.dispatcher import statuses
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


async def test_an_agent_cannot_write_states_that_belong_to_managers() -> None:
    world = World()
    await world.found()
    snapshot = await world.commit(Create(task("t1", "n1", state=types.TASK_STATE_PENDING)))
    queue = StatusQueue()
    queue.offer("s", 1, "n1", [update("t1", types.TASK_STATE_ASSIGNED)])
    assert status_changes(snapshot, queue.take()) == []


async def test_a_new_message_in_the_same_state_is_news() -> None:
    world = World()
    await world.found()
    snapshot = await world.commit(Create(task("t1", "n1", state=types.TASK_STATE_PREPARING)))
    queue = StatusQueue()
    queue.offer("s", 1, "n1", [update("t1", types.TASK_STATE_PREPARING, "pulling image")])
    assert len(status_changes(snapshot, queue.take())) == 1
