"""The scheduler: who goes where, and why somebody goes nowhere."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from swarm.errors import InvalidArgument
from swarm.v1.types_pb2 import (
    AVAILABILITY_DRAIN,
    AVAILABILITY_PAUSE,
    NODE_ROLE_MANAGER,
    NODE_ROLE_WORKER,
    NODE_STATE_DOWN,
    NODE_STATE_READY,
    PUBLISH_MODE_HOST,
    TASK_STATE_ASSIGNED,
    TASK_STATE_FAILED,
    TASK_STATE_PENDING,
    TASK_STATE_READY,
    TASK_STATE_RUNNING,
    Availability,
    Node,
    NodeDescription,
    NodeSpec,
    NodeState,
    NodeStatus,
    PortConfig,
    Resources,
    Service,
    ServiceRevision,
    ServiceSpec,
    Task,
    TaskState,
    TaskStatus,
)

from orchestrator.scheduler import parse_constraint, step
from orchestrator.store import Change, Create, SetTaskStatus, Snapshot, Update, merge_changes

GIB = 1 << 30


def node(
    id_: str,
    *,
    availability: Availability.ValueType = 0,
    state: NodeState.ValueType = NODE_STATE_READY,
    memory: int = 4 * GIB,
    cpus: float = 4,
    manager: bool = False,
    **labels: str,
) -> Node:
    return Node(
        id=id_,
        role=NODE_ROLE_MANAGER if manager else NODE_ROLE_WORKER,
        spec=NodeSpec(availability=availability, labels=labels),
        description=NodeDescription(
            hostname=f"host-{id_}",
            os="linux",
            architecture="amd64",
            resources=Resources(nano_cpus=int(cpus * 1e9), memory_bytes=memory),
            engine_labels={"disk": "ssd"} if id_ == "n1" else {},
        ),
        status=NodeStatus(state=state),
    )


def revision(service: str = "web", number: int = 1, *, memory: int = 0, cpus: float = 0) -> ServiceRevision:
    made = ServiceRevision(id=f"{service}-{number}", service_id=service, number=number, spec=ServiceSpec(name=service))
    made.spec.task.reservations.memory_bytes = memory
    made.spec.task.reservations.nano_cpus = int(cpus * 1e9)
    return made


def task(
    slot: int,
    of: ServiceRevision,
    *,
    on: str = "",
    state: TaskState.ValueType = TASK_STATE_PENDING,
    desired: TaskState.ValueType = TASK_STATE_RUNNING,
    suffix: str = "",
    host_port: int = 0,
    failures: int = 0,
) -> Task:
    made = Task(
        id=f"{of.id}-{slot:05}{suffix}",
        service_id=of.service_id,
        revision_id=of.id,
        slot=slot,
        node_id=on,
        status=TaskStatus(state=state),
        desired_state=desired,
        consecutive_failures=failures,
    )
    made.status.recorded_at.seconds = 1000
    if host_port:
        made.host_ports.append(PortConfig(published_port=host_port, mode=PUBLISH_MODE_HOST))
    return made


def snapshot(*objects: Node | ServiceRevision | Task | Service) -> Snapshot:
    return Snapshot().with_changes([Create(obj) for obj in objects])


def run(snap: Snapshot) -> tuple[Snapshot, list[Change]]:
    changes = list(step(snap, 1001.0).changes)
    return snap.with_changes(changes), merge_changes(changes)


def places(snap: Snapshot) -> dict[int, str]:
    return {found.slot: found.node_id for found in snap.tasks if found.status.state == TASK_STATE_ASSIGNED}


def message(snap: Snapshot) -> str:
    (waiting,) = [found for found in snap.tasks if found.status.state == TASK_STATE_PENDING]
    return waiting.status.message


def test_tasks_are_spread_over_the_nodes() -> None:
    web = revision()
    snap, _ = run(snapshot(web, *(node(f"n{n}") for n in range(1, 5)), *(task(slot, web) for slot in range(1, 11))))
    assert sorted(Counter(places(snap).values()).values()) == [2, 2, 3, 3]


def test_the_services_own_tasks_count_before_those_of_others() -> None:
    web, other = revision(), revision("other")
    crowd = [task(slot, other, on="n1", state=TASK_STATE_RUNNING) for slot in range(1, 6)]
    mine = task(1, web, on="n2", state=TASK_STATE_RUNNING)
    snap, _ = run(snapshot(web, other, node("n1"), node("n2"), mine, *crowd, task(2, web), task(3, web)))
    assert places(snap) == {2: "n1", 3: "n2"}


def test_ended_tasks_hold_nothing() -> None:
    web = revision(memory=3 * GIB)
    ended = task(1, web, on="n1", state=TASK_STATE_FAILED)
    snap, _ = run(snapshot(web, node("n1"), ended, task(2, web)))
    assert places(snap) == {2: "n1"}


def test_what_does_not_fit_waits_and_says_why() -> None:
    web = revision(memory=GIB)
    nodes = [
        node("n1", availability=AVAILABILITY_DRAIN),
        node("n2", availability=AVAILABILITY_DRAIN),
        node("n3", memory=512 << 20),
    ]
    snap, changes = run(snapshot(web, *nodes, task(1, web)))
    assert message(snap) == (
        "no suitable node: 2 nodes are drained, 1 node has too little memory (512 MiB free of 1 GiB wanted)"
    )
    assert isinstance(changes[0], SetTaskStatus)
    assert run(snap)[1] == [], "the same message is not written twice"


@pytest.mark.parametrize(
    ("nodes", "sentence"),
    [
        ([], "the swarm has no nodes"),
        ([node("n1", state=NODE_STATE_DOWN), node("n2", state=NODE_STATE_DOWN)], "2 nodes are not ready"),
        ([node("n1", availability=AVAILABILITY_PAUSE)], "1 node is paused"),
        ([node("n1", cpus=0.5)], "1 node has too little CPU (0.5 free of 1 wanted)"),
        ([node("n1", zone="b")], "1 node does not meet the constraint (node.labels.zone == a)"),
    ],
)
def test_each_filter_explains_itself(nodes: list[Node], sentence: str) -> None:
    web = revision(cpus=1)
    web.spec.task.placement.constraints.append("node.labels.zone == a")
    for found in nodes:
        if not found.spec.labels:
            found.spec.labels["zone"] = "a"
    snap, _ = run(snapshot(web, *nodes, task(1, web)))
    assert message(snap) == f"no suitable node: {sentence}"


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        ("node.id == n1", {"n1"}),
        ("node.id != n1", {"n2", "n3"}),
        ("node.hostname==HOST-N2", {"n2"}),
        ("node.role == manager", {"n3"}),
        ("node.role != manager", {"n1", "n2"}),
        ("node.labels.zone == a", {"n2"}),
        ("node.labels.zone != a", {"n1", "n3"}),
        ("engine.labels.disk == ssd", {"n1"}),
        ("node.platform.arch == arm64", set()),
        ("node.platform.os == linux", {"n1", "n2", "n3"}),
    ],
)
def test_constraints(constraint: str, expected: set[str]) -> None:
    web = revision()
    web.spec.task.placement.constraints.append(constraint)
    nodes = [node("n1"), node("n2", zone="a"), node("n3", manager=True)]
    snap, _ = run(snapshot(web, *nodes, *(task(slot, web) for slot in range(1, 7))))
    assert set(places(snap).values()) == expected


@pytest.mark.parametrize("text", ["", "zone", "node.zone == a", "node.labels. == a", "node.id = a", "node.id == "])
def test_malformed_constraints_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_constraint(text)


def test_a_constraint_with_many_spaces_is_understood_at_once() -> None:
    """Reading it took time with the square of the spaces: the leader stood still, and another manager took over."""
    began = time.process_time()
    assert parse_constraint(f"  node.labels.zone  ==  a{' ' * 50_000}b ").value == f"a{' ' * 50_000}b"
    assert time.process_time() - began < 1


def test_preferences_spread_over_labels_before_nodes() -> None:
    web = revision()
    web.spec.task.placement.spread.append("node.labels.zone")
    nodes = [node("n1", zone="a"), *(node(f"n{number}", zone="b") for number in range(2, 6))]
    snap, _ = run(snapshot(web, *nodes, *(task(slot, web) for slot in range(1, 9))))
    assert Counter(places(snap).values()) == {"n1": 4, "n2": 1, "n3": 1, "n4": 1, "n5": 1}


def test_a_full_branch_gives_way_to_the_others() -> None:
    web = revision(memory=3 * GIB)
    web.spec.task.placement.spread.append("node.labels.zone")
    nodes = [node("n1", zone="a"), node("n2", zone="b"), node("n3", zone="b")]
    snap, _ = run(snapshot(web, *nodes, *(task(slot, web) for slot in range(1, 5))))
    assert set(places(snap).values()) == {"n1", "n2", "n3"} and len(places(snap)) == 3


def test_host_ports_are_used_once_a_node() -> None:
    web = revision()
    tasks = [task(slot, web, host_port=80) for slot in range(1, 4)]
    snap, _ = run(snapshot(web, node("n1"), node("n2"), *tasks))
    assert sorted(places(snap).values()) == ["n1", "n2"]
    assert "2 nodes use the host port already" in message(snap)


def test_replicas_per_node_are_limited() -> None:
    web = revision()
    web.spec.task.placement.max_replicas_per_node = 2
    snap, _ = run(snapshot(web, node("n1"), node("n2"), *(task(slot, web) for slot in range(1, 6))))
    assert Counter(places(snap).values()) == {"n1": 2, "n2": 2}
    assert message(snap) == "no suitable node: 2 nodes have the maximum of replicas (2)"


def test_a_successor_may_take_the_room_of_the_task_that_it_replaces() -> None:
    old, new = revision(memory=3 * GIB), revision(number=2, memory=3 * GIB)
    nodes = [node("n1"), node("n2")]
    running = [task(slot, old, on=f"n{slot}", state=TASK_STATE_RUNNING) for slot in (1, 2)]
    successor = task(2, new, desired=TASK_STATE_READY)
    stranger = task(3, new)
    snap, _ = run(snapshot(old, new, *nodes, *running, successor, stranger))
    assert places(snap) == {2: "n2"}, "the one that starts only when the other has stopped; not the stranger"


def test_new_tasks_of_an_update_spread_whatever_the_old_ones_do() -> None:
    old, new = revision(), revision(number=2)
    running = [task(slot, old, on=f"n{slot % 2 + 1}", state=TASK_STATE_RUNNING) for slot in range(1, 5)]
    done = [task(1, new, on="n1", state=TASK_STATE_RUNNING, suffix="b")]
    snap, _ = run(snapshot(old, new, node("n1"), node("n2"), *running, *done, task(2, new)))
    assert places(snap) == {2: "n2"}


def test_a_node_where_the_revision_keeps_failing_comes_last() -> None:
    web = revision()
    failed = [task(1, web, on="n1", state=TASK_STATE_FAILED, suffix=f"-{number}") for number in range(3)]
    busy = [task(slot, web, on="n2", state=TASK_STATE_RUNNING) for slot in range(2, 6)]
    snap, _ = run(snapshot(web, node("n1"), node("n2"), *failed, *busy, task(1, web, failures=3)))
    assert places(snap) == {1: "n2"}


def test_global_tasks_stay_on_the_node_that_they_were_made_for() -> None:
    web = revision(memory=3 * GIB)
    nodes = [node("n1"), node("n2", memory=GIB)]
    snap, changes = run(snapshot(web, *nodes, task(0, web, on="n1"), task(0, web, on="n2", suffix="b")))
    assert {change.object.node_id for change in changes if isinstance(change, Update)} == {"n1"}
    assert "too little memory" in message(snap)


def test_thousands_of_tasks_on_a_thousand_nodes() -> None:
    web = revision(memory=1 << 20)
    nodes = [node(f"n{number:04}") for number in range(1000)]
    snap = snapshot(web, *nodes, *(task(slot, web) for slot in range(1, 3001)))
    after, changes = run(snap)
    assert len(changes) == 3000
    assert set(Counter(places(after).values()).values()) == {3}
