"""How far a service has come, by the current task of each slot."""

from __future__ import annotations

import pytest
from swarm.channels import MAX_MESSAGE_BYTES
from swarm.clock import timestamp
from swarm.v1 import types_pb2

from orchestrator.api.progress import STABLE_SECONDS, progress, settles_in, summarize
from orchestrator.store import Create, Snapshot
from tests.unit.api.support import web

RUNNING, SHUTDOWN = types_pb2.TASK_STATE_RUNNING, types_pb2.TASK_STATE_SHUTDOWN


def service(replicas: int = 2) -> types_pb2.Service:
    return types_pb2.Service(id="s", spec=web(replicas=replicas), revision_id="r2")


def task(
    id_: str,
    slot: int,
    state: types_pb2.TaskState.ValueType = RUNNING,
    *,
    desired: types_pb2.TaskState.ValueType = RUNNING,
    revision: str = "r2",
    health: types_pb2.HealthState.ValueType = types_pb2.HEALTH_STATE_UNSPECIFIED,
    node: str = "",
) -> types_pb2.Task:
    return types_pb2.Task(
        id=id_,
        service_id="s",
        slot=slot,
        node_id=node,
        revision_id=revision,
        desired_state=desired,
        status=types_pb2.TaskStatus(state=state, health=health),
    )


def snapshot(subject: types_pb2.Service, *objects: types_pb2.Task | types_pb2.Node) -> Snapshot:
    return Snapshot().with_changes([Create(subject), *(Create(obj) for obj in objects)])


NOW = 1000.0


def has_converged(state: Snapshot, subject: types_pb2.Service) -> bool:
    return progress(state, subject, NOW).converged


def test_all_slots_running_is_converged() -> None:
    state = snapshot(service(), task("a", 1), task("b", 2))
    assert has_converged(state, service())
    summary = summarize(state, service())
    assert (summary.desired, summary.running, summary.healthy) == (2, 2, 2)


def test_what_a_watcher_is_shown_fits_into_a_message() -> None:
    """`service create` of a large service whose tasks all failed with long errors ended with "Sent message larger than max",
    and so did every later look at its progress."""
    failed = []
    for slot in range(1, 1501):
        one = task(f"t{slot}", slot, types_pb2.TASK_STATE_FAILED)
        one.status.error = one.status.container.last_output = "x" * 1500
        failed.append(one)
    shown = progress(snapshot(service(1500), *failed, task("last", 1501)), service(1500), NOW)
    assert 1000 < len(shown.tasks) < 1500
    assert shown.ByteSize() < MAX_MESSAGE_BYTES


@pytest.mark.parametrize(
    "tasks",
    [
        [task("a", 1)],
        [task("a", 1), task("b", 2, types_pb2.TASK_STATE_STARTING)],
        [task("a", 1), task("b", 2, revision="r1")],
        [task("a", 1), task("b", 2, health=types_pb2.HEALTH_STATE_STARTING)],
        [task("a", 1), task("b", 2, desired=SHUTDOWN)],
        [task("a", 1), task("b", 2), task("c", 3)],  # one too many
        [task("a", 1), task("b", 2, types_pb2.TASK_STATE_FAILED)],
    ],
)
def test_anything_less_is_not(tasks: list[types_pb2.Task]) -> None:
    assert not has_converged(snapshot(service(), *tasks), service())


def test_a_task_counts_once_it_has_run_for_a_moment() -> None:
    fresh = task("b", 2)
    fresh.status.recorded_at.CopyFrom(timestamp(NOW - 0.25))
    state = snapshot(service(), task("a", 1), fresh)
    assert settles_in(state, service(), NOW) == STABLE_SECONDS - 0.25
    assert not has_converged(state, service())
    assert settles_in(state, service(), NOW + STABLE_SECONDS) == 0
    assert settles_in(state, service(), NOW - 3600) == STABLE_SECONDS, "a new leader's clock may be behind"
    assert settles_in(snapshot(service(), fresh), service(), NOW) is None, "time alone does not bring the other task"


def test_an_update_under_way_is_not_converged() -> None:
    subject = service()
    subject.update_status.state = types_pb2.UPDATE_STATE_UPDATING
    assert not has_converged(snapshot(subject, task("a", 1), task("b", 2)), subject)


def test_no_replicas_are_there_as_soon_as_none_is_wanted() -> None:
    assert has_converged(snapshot(service(0), task("a", 1, desired=SHUTDOWN)), service(0))


def test_a_slot_is_shown_by_its_newest_wanted_task_and_by_its_last_failure() -> None:
    state = snapshot(
        service(),
        task("old", 1, desired=SHUTDOWN),
        task("new", 1, types_pb2.TASK_STATE_PREPARING),
        task("dead", 2, types_pb2.TASK_STATE_REJECTED, desired=SHUTDOWN),
        task("gone", 3, types_pb2.TASK_STATE_SHUTDOWN, desired=SHUTDOWN),
    )
    assert [entry.id for entry in progress(state, service(), NOW).tasks] == ["new", "dead"]


def node(id_: str, **fields: object) -> types_pb2.Node:
    made = types_pb2.Node(id=id_, status=types_pb2.NodeStatus(state=types_pb2.NODE_STATE_READY))
    for key, value in fields.items():
        setattr(made.status if key == "state" else made.spec, key, value)
    return made


def test_a_global_service_wants_a_task_on_each_node_that_qualifies() -> None:
    subject = service()
    getattr(subject.spec.mode, "global").SetInParent()
    subject.spec.task.placement.constraints.append("node.id != n9")
    nodes = [
        node("n1"),
        node("n2"),
        node("n3", availability=types_pb2.AVAILABILITY_DRAIN),
        node("n4", state=types_pb2.NODE_STATE_DOWN),
        node("n9"),
    ]
    state = snapshot(subject, *nodes, task("a", 0, node="n1"))
    assert summarize(state, subject).desired == 2
    assert not has_converged(state, subject)
    state = snapshot(subject, *nodes, task("a", 0, node="n1"), task("b", 0, node="n2"), task("c", 0, node="n4"))
    assert has_converged(state, subject)
    assert not has_converged(snapshot(subject, *nodes), subject)


def test_tasks_of_a_lost_node_are_not_counted_as_running() -> None:
    subject = service()
    getattr(subject.spec.mode, "global").SetInParent()
    tasks = [task("a", 0, node="n1"), task("b", 0, node="n2")]
    summary = summarize(snapshot(subject, node("n1"), node("n2", state=types_pb2.NODE_STATE_DOWN), *tasks), subject)
    assert (summary.desired, summary.running, summary.healthy) == (1, 1, 1)
    both = summarize(snapshot(subject, node("n1"), node("n2"), *tasks), subject)
    assert (both.desired, both.running, both.healthy) == (2, 2, 2)


def test_a_task_of_another_revision_with_the_same_words_is_current() -> None:
    """An update that was taken back by the next one: nothing is replaced, so nothing else can be waited for."""
    same, other = types_pb2.ServiceSpec(task=web().task), types_pb2.ServiceSpec(task=web(image="other").task)
    revisions = [
        Create(types_pb2.ServiceRevision(id="r0", service_id="s", number=1, spec=same)),
        Create(types_pb2.ServiceRevision(id="r1", service_id="s", number=2, spec=other)),
        Create(types_pb2.ServiceRevision(id="r2", service_id="s", number=3, spec=same)),
    ]
    subject = service(replicas=1)
    for revision, expected in (("r0", True), ("r1", False), ("r2", True)):
        state = snapshot(subject, task("a", 1, revision=revision)).with_changes(revisions)
        assert has_converged(state, subject) is expected, revision
