"""Statuses on their way to a manager."""

from __future__ import annotations

from swarm.v1 import types_pb2 as types

from agent.session.outbox import MAX_BATCH, MAX_FLIGHTS, PATIENCE, Outbox

PREPARING, RUNNING = types.TASK_STATE_PREPARING, types.TASK_STATE_RUNNING


def status(state: types.TaskState.ValueType) -> types.TaskStatus:
    return types.TaskStatus(state=state)


def test_what_somebody_waits_for_goes_at_once_and_takes_the_rest_along() -> None:
    outbox = Outbox()
    outbox.put("a", status(PREPARING), 0.0, urgent=False)
    assert outbox.take(0.0) is None
    outbox.put("b", status(RUNNING), 0.0, urgent=True)
    batch = outbox.take(0.0)
    assert batch is not None
    assert {update.task_id for update in batch.updates} == {"a", "b"}


def test_what_nobody_waits_for_may_be_overtaken() -> None:
    outbox = Outbox()
    outbox.put("a", status(PREPARING), 0.0, urgent=False)
    outbox.put("a", status(RUNNING), 0.1, urgent=True)
    batch = outbox.take(0.1)
    assert batch is not None
    assert [update.status.state for update in batch.updates] == [RUNNING]


def test_it_does_not_wait_for_ever() -> None:
    outbox = Outbox()
    outbox.put("a", status(PREPARING), 0.0, urgent=False)
    outbox.put("a", status(types.TASK_STATE_READY), 0.15, urgent=False)
    assert outbox.due_at() == PATIENCE
    assert outbox.take(PATIENCE) is not None


def test_a_few_batches_are_under_way_and_the_next_collects() -> None:
    outbox = Outbox()
    sent = []
    for name in ("a", "b", "c"):
        outbox.put(name, status(RUNNING), 0.0, urgent=True)
        batch = outbox.take(0.0)
        assert batch is not None
        sent.append(batch.sequence)
    assert len(sent) == MAX_FLIGHTS
    outbox.put("d", status(RUNNING), 0.0, urgent=True)
    outbox.put("e", status(RUNNING), 0.0, urgent=True)
    assert outbox.due_at() is None and outbox.take(0.0) is None
    outbox.acknowledged(sent[1])  # and with it the one before
    assert len(outbox) == 3
    last = outbox.take(0.0)
    assert last is not None and last.sequence > sent[2]
    assert [update.task_id for update in last.updates] == ["d", "e"]


def test_of_two_statuses_under_way_the_newer_goes_again() -> None:
    outbox = Outbox()
    for state in (PREPARING, RUNNING):
        outbox.put("a", status(state), 0.0, urgent=True)
        assert outbox.take(0.0) is not None
    outbox.session_lost(1.0)
    batch = outbox.take(1.0)
    assert batch is not None
    assert [update.status.state for update in batch.updates] == [RUNNING]


def test_an_acknowledgement_of_an_earlier_session_means_nothing() -> None:
    outbox = Outbox()
    outbox.put("a", status(RUNNING), 0.0, urgent=True)
    first = outbox.take(0.0)
    assert first is not None
    outbox.session_lost(1.0)
    second = outbox.take(1.0)
    assert second is not None
    outbox.acknowledged(first.sequence)
    assert len(outbox) == 1
    outbox.acknowledged(second.sequence)
    assert len(outbox) == 0


def test_what_was_not_acknowledged_goes_again_unless_something_newer_waits() -> None:
    outbox = Outbox()
    outbox.put("a", status(PREPARING), 0.0, urgent=True)
    outbox.put("b", status(PREPARING), 0.0, urgent=True)
    assert outbox.take(0.0) is not None
    outbox.put("a", status(RUNNING), 0.0, urgent=True)
    outbox.session_lost(1.0)
    batch = outbox.take(1.0)
    assert batch is not None
    assert {update.task_id: update.status.state for update in batch.updates} == {"a": RUNNING, "b": PREPARING}


def test_a_forgotten_task_is_not_sent() -> None:
    outbox = Outbox()
    outbox.put("a", status(RUNNING), 0.0, urgent=True)
    outbox.drop("a")
    assert outbox.take(0.0) is None


def test_batches_are_bounded() -> None:
    outbox = Outbox()
    for number in range(MAX_BATCH + 1):
        outbox.put(f"t{number}", status(RUNNING), 0.0, urgent=True)
    first = outbox.take(0.0)
    assert first is not None and len(first.updates) == MAX_BATCH
    outbox.acknowledged(first.sequence)
    second = outbox.take(0.0)
    assert second is not None and len(second.updates) == 1
