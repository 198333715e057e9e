"""The store: transactions are all or nothing, rules hold where entries are applied, watches lose nothing."""

from __future__ import annotations

import asyncio
import threading

import pytest
from swarm.clock import ManualClock, timestamp
from swarm.errors import AlreadyExists, Conflict, InternalError, ResourceExhausted, Unavailable
from swarm.v1.store_pb2 import Command
from swarm.v1.types_pb2 import (
    TASK_STATE_ASSIGNED,
    TASK_STATE_FAILED,
    TASK_STATE_ORPHANED,
    TASK_STATE_PENDING,
    TASK_STATE_RUNNING,
    TASK_STATE_SHUTDOWN,
    Service,
    Task,
    TaskStatus,
)

from orchestrator.store import (
    Create,
    Kind,
    Remove,
    SetDesiredState,
    SetTaskStatus,
    Snapshot,
    Store,
    Transactions,
    Update,
    copy_of,
    merge_changes,
    split_changes,
)
from orchestrator.store import store as store_module
from tests.support.consensus import LocalConsensus
from tests.unit.store.build import network, node, service, task


class Bench:
    def __init__(self) -> None:
        self.store = Store()
        self.log = LocalConsensus(self.store)
        self.clock = ManualClock()
        self.transactions = Transactions(self.log, self.store, proposer="m1", clock=self.clock)
        self.commit = self.transactions.commit

    def stored(self, kind: Kind, id_: str):
        found = self.store.snapshot().get(kind, id_)
        assert found is not None
        return found


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_a_created_object_carries_index_and_the_proposers_time(bench: Bench) -> None:
    result = await bench.commit([Create(service("web"))])
    (stored,) = result.objects
    assert result.index == 1
    assert (stored.meta.version, stored.meta.created_index) == (1, 1)
    assert stored.meta.created_at == timestamp(bench.clock.wall()) == stored.meta.updated_at


async def test_an_update_keeps_its_creation_and_raises_its_version(bench: Bench) -> None:
    await bench.commit([Create(service("web"))])
    changed = copy_of(bench.stored(Kind.SERVICE, "web"))
    changed.removing = True
    bench.clock.advance(5)
    (stored,) = (await bench.commit([Update(changed)])).objects
    assert (stored.meta.version, stored.meta.created_index) == (2, 1)
    assert stored.meta.updated_at.seconds - stored.meta.created_at.seconds == 5


async def test_an_update_of_an_old_version_fails_and_takes_its_transaction_with_it(bench: Bench) -> None:
    await bench.commit([Create(service("web"))])
    first = bench.stored(Kind.SERVICE, "web")
    await bench.commit([Update(copy_of(first))])
    with pytest.raises(Conflict, match="changed in the meantime"):
        await bench.commit([Create(service("other")), Update(copy_of(first))])
    assert bench.store.snapshot().services.get("other") is None
    assert bench.store.snapshot().index == 3


async def test_what_the_proposer_keeps_is_not_what_is_stored(bench: Bench) -> None:
    mine = service("web")
    await bench.commit([Create(mine)])
    mine.spec.name = "changed"
    assert bench.stored(Kind.SERVICE, "web").spec.name == "web"


async def test_a_repeated_request_writes_once_and_returns_the_first_objects(bench: Bench) -> None:
    first = await bench.commit([Create(service("web"))], request_id="r1")
    second = await bench.commit([Create(service("another-id", "web"))], request_id="r1")
    assert second.replayed and not first.replayed
    assert second.index == first.index
    assert [obj.id for obj in second.objects] == ["web"]
    assert len(bench.store.snapshot().services) == 1


async def test_a_failed_request_may_be_repeated(bench: Bench) -> None:
    await bench.commit([Create(service("a", "web"))])
    with pytest.raises(AlreadyExists):
        await bench.commit([Create(service("b", "web"))], request_id="r1")
    await bench.commit([Remove(Kind.SERVICE, "a")])
    assert not (await bench.commit([Create(service("b", "web"))], request_id="r1")).replayed


async def test_requests_are_forgotten_by_index(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "REQUEST_WINDOW", 3)
    await bench.commit([Create(service("a"))], request_id="r1")
    for _ in range(3):
        assert (await bench.commit([], request_id="r1")).replayed
    assert not (await bench.commit([], request_id="r1")).replayed


async def test_requests_are_forgotten_by_count(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_REQUESTS", 2)
    for name in "abc":
        await bench.commit([Create(service(name))], request_id=name)
    assert not (await bench.commit([], request_id="a")).replayed


@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        (service("a", "web"), service("b", "web"), 'service "web" exists already'),
        (
            service("a", "proxy", 80),
            service("b", "web", 80),
            'service "web": port 80/tcp is already published by service "proxy"; choose another port',
        ),
        (network("a", "front"), network("b", "front"), 'network "front" exists already'),
        (node("a", "n1"), node("b", "n1"), 'node "n1" exists already'),
        (service("a", "web"), service("a", "other"), "service a exists already"),
    ],
)
async def test_names_and_ports_are_unique(bench: Bench, first, second, sentence: str) -> None:
    await bench.commit([Create(first)])
    with pytest.raises(AlreadyExists, match=sentence.replace("(", r"\(")):
        await bench.commit([Create(second)])


async def test_numbers_vnis_and_addresses_are_unique(bench: Bench) -> None:
    await bench.commit(
        [Create(node("a", number=1)), Create(network("a", vni=4096)), Create(task("t1", address="10.0.0.2/24"))]
    )
    for clash in (node("b", number=1), network("b", vni=4096), task("t2", address="10.0.0.2/24")):
        with pytest.raises(Conflict):
            await bench.commit([Create(clash)])


async def test_subnets_do_not_overlap(bench: Bench) -> None:
    """One was chosen for a network while another one was made with it: both had it for good."""
    chosen, asked_for = network("a"), network("b")
    chosen.subnet, asked_for.spec.subnet = "10.0.32.0/20", "10.0.40.0/24"
    await bench.commit([Create(chosen), Create(network("c"))])
    with pytest.raises(Conflict, match=r'10.0.40.0/24 overlaps with 10.0.32.0/20 of network "a"'):
        await bench.commit([Create(asked_for)])
    late = copy_of(bench.store.snapshot().networks["c"])
    late.subnet = "10.0.32.0/20"
    with pytest.raises(Conflict, match="overlaps"):
        await bench.commit([Update(late)])
    late.subnet = "10.0.48.0/20"
    await bench.commit([Update(late)])


async def test_hosts_may_share_a_host_name(bench: Bench) -> None:
    twins = [node("a"), node("b")]
    for twin in twins:
        twin.description.hostname = "debian"
    await bench.commit([Create(twin) for twin in twins])
    assert {found.id for found in bench.store.snapshot().nodes.named("debian")} == {"a", "b"}


async def test_a_service_that_is_being_removed_has_given_up_its_name_and_ports(bench: Bench) -> None:
    await bench.commit([Create(service("old", "web", 80))])
    leaving = copy_of(bench.stored(Kind.SERVICE, "old"))
    leaving.removing = True
    await bench.commit([Update(leaving)])
    services = bench.store.snapshot().services
    assert services.by_name("web").id == "old"
    await bench.commit([Create(service("new", "web", 80))])
    assert bench.store.snapshot().services.by_name("web").id == "new"
    await bench.commit([Remove(Kind.SERVICE, "old")])
    assert bench.store.snapshot().services.by_name("web").id == "new"


async def test_a_status_never_goes_back_and_never_conflicts(bench: Bench) -> None:
    await bench.commit([Create(task("t", state=TASK_STATE_ASSIGNED))])
    read = bench.stored(Kind.TASK, "t")
    await bench.commit([SetTaskStatus("t", TaskStatus(state=TASK_STATE_RUNNING))])
    await bench.commit([SetDesiredState("t", TASK_STATE_SHUTDOWN)])
    await bench.commit([SetTaskStatus("t", TaskStatus(state=TASK_STATE_PENDING)), SetTaskStatus("gone", TaskStatus())])
    now = bench.stored(Kind.TASK, "t")
    assert (now.status.state, now.desired_state) == (TASK_STATE_RUNNING, TASK_STATE_SHUTDOWN)
    assert read.status.state == TASK_STATE_ASSIGNED, "what a reader holds does not change"
    with pytest.raises(Conflict):
        await bench.commit([Update(copy_of(read))])


async def test_desired_state_only_moves_forward(bench: Bench) -> None:
    await bench.commit([Create(task("t", desired=TASK_STATE_SHUTDOWN))])
    await bench.commit([SetDesiredState("t", TASK_STATE_RUNNING)])
    assert bench.stored(Kind.TASK, "t").desired_state == TASK_STATE_SHUTDOWN


async def test_an_ended_task_stays_as_it_ended(bench: Bench) -> None:
    await bench.commit([Create(task("t", state=TASK_STATE_FAILED))])
    await bench.commit([SetTaskStatus("t", TaskStatus(state=TASK_STATE_FAILED, error="late news"))])
    assert bench.stored(Kind.TASK, "t").status.error == ""


async def test_recorded_at_is_the_proposers_time_of_the_last_move(bench: Bench) -> None:
    await bench.commit([Create(task("t", state=TASK_STATE_ASSIGNED))])
    bench.clock.advance(10)
    await bench.commit([SetTaskStatus("t", TaskStatus(state=TASK_STATE_RUNNING))])
    moved = timestamp(bench.clock.wall())
    bench.clock.advance(10)
    await bench.commit([SetTaskStatus("t", TaskStatus(state=TASK_STATE_RUNNING, message="still"))])
    assert bench.stored(Kind.TASK, "t").status.recorded_at == moved


async def test_an_orphans_agent_that_came_back_confirms_that_it_stopped(bench: Bench) -> None:
    await bench.commit([Create(task("t", node_id="n", state=TASK_STATE_RUNNING))])
    await bench.commit([SetTaskStatus("t", TaskStatus(state=TASK_STATE_ORPHANED))])
    await bench.commit([SetTaskStatus("t", TaskStatus(state=TASK_STATE_SHUTDOWN))])
    status = bench.stored(Kind.TASK, "t").status
    assert (status.state, status.stopped) == (TASK_STATE_ORPHANED, True)


async def test_indexes_follow_the_tasks(bench: Bench) -> None:
    await bench.commit([Create(task("t1", slot=1, address="10.0.0.2/24")), Create(task("t2", slot=1))])
    assigned = copy_of(bench.stored(Kind.TASK, "t1"))
    assigned.node_id = "n1"
    await bench.commit([Update(assigned)])
    tasks = bench.store.snapshot().tasks
    assert [found.id for found in tasks.in_slot("web", 1)] == ["t1", "t2"]
    assert [found.id for found in tasks.on_node("n1")] == ["t1"]
    assert dict(tasks.addresses("net").items()) == {"10.0.0.2": "t1"}
    await bench.commit([Remove(Kind.TASK, "t1"), Remove(Kind.TASK, "t2")])
    tasks = bench.store.snapshot().tasks
    assert not list(tasks.service_ids()) and not list(tasks.on_node("n1")) and not len(tasks.addresses("net"))


async def test_a_snapshot_is_restored_from_any_chunks(bench: Bench) -> None:
    many = [Create(task(f"t{number}", slot=number, address=f"10.0.1.{number}/16")) for number in range(1, 200)]
    await bench.commit([Create(service("web")), Create(node("n")), Create(network("net")), *many], request_id="r1")
    stream = b"".join(bench.store.capture()())
    other = Store()
    other.restore(bench.log.index, [stream[at : at + 7] for at in range(0, len(stream), 7)])
    assert b"".join(other.capture()()) == stream
    repeated = Command(schema=1, request_id="r1").SerializeToString()
    assert other.apply(2, repeated) == bench.store.apply(2, repeated)
    for damaged in (stream[:-1], stream[:100], b"", stream[:3] + b"\xff" + stream[4:]):
        with pytest.raises(InternalError):
            other.restore(9, [damaged])
    assert len(other.snapshot().tasks) == 199


async def test_a_capture_is_of_its_moment(bench: Bench) -> None:
    await bench.commit([Create(service("a"))])
    captured = bench.store.capture()
    await bench.commit([Create(service("b"))])
    other = Store()
    other.restore(1, captured())
    assert set(other.snapshot().services.ids()) == {"a"}


async def test_an_entry_of_a_newer_schema_stops_the_member(bench: Bench) -> None:
    with pytest.raises(InternalError, match="update it"):
        bench.store.apply(1, Command(schema=99).SerializeToString())


async def test_an_entry_has_a_size(bench: Bench) -> None:
    huge = service("web")
    huge.spec.labels["blob"] = "x" * 2_000_000
    with pytest.raises(ResourceExhausted):
        await bench.commit([Create(huge)])


async def test_a_watch_begins_where_its_snapshot_ends(bench: Bench) -> None:
    await bench.commit([Create(service("a"))])
    snapshot, watch = bench.store.watch()
    await bench.commit([Create(service("b"))])
    events = await watch.next()
    assert set(snapshot.services.ids()) == {"a"}
    assert events.changes is not None and [change.id for change in events.changes] == ["b"]
    assert events.snapshot.index == 2


async def test_a_watch_merges_what_its_reader_missed(bench: Bench) -> None:
    await bench.commit([Create(task("t", state=TASK_STATE_ASSIGNED))])
    _, watch = bench.store.watch()
    await bench.commit([SetTaskStatus("t", TaskStatus(state=TASK_STATE_RUNNING))])
    await bench.commit([SetTaskStatus("t", TaskStatus(state=TASK_STATE_FAILED)), Create(service("x"))])
    await bench.commit([Remove(Kind.SERVICE, "x")])
    (change,) = (await watch.next()).changes or ()
    assert isinstance(change.old, Task) and isinstance(change.new, Task)
    assert (change.old.status.state, change.new.status.state) == (TASK_STATE_ASSIGNED, TASK_STATE_FAILED)
    assert watch.take() is None


async def test_a_watch_that_falls_behind_gets_a_resync(bench: Bench) -> None:
    _, watch = bench.store.watch(limit=3)
    await bench.commit([Create(service(f"s{number}")) for number in range(5)])
    await bench.commit([Create(service("last"))])
    events = await watch.next()
    assert events.changes is None and len(events.snapshot.services) == 6
    await bench.commit([Create(service("after"))])
    assert len((await watch.next()).changes or ()) == 1


async def test_a_watch_wakes_for_entries_of_another_thread(bench: Bench) -> None:
    _, watch = bench.store.watch()

    def apply() -> None:
        for index in range(1, 101):
            command = Command(schema=1)
            command.actions.add().create.service.CopyFrom(Service(id=f"s{index}", spec=service(f"s{index}").spec))
            bench.store.apply(index, command.SerializeToString())

    thread = threading.Thread(target=apply)
    thread.start()
    seen: set[str] = set()
    async with asyncio.timeout(10):
        while len(seen) < 100:
            seen.update(change.id for change in (await watch.next()).changes or ())
    thread.join()


async def test_a_closed_watch_ends(bench: Bench) -> None:
    _, watch = bench.store.watch()
    waiting = asyncio.ensure_future(watch.next())
    await asyncio.sleep(0)
    watch.close()
    with pytest.raises(Unavailable):
        await waiting
    await bench.commit([Create(service("a"))])
    assert [events async for events in watch] == []


async def test_a_restore_is_a_resync(bench: Bench) -> None:
    await bench.commit([Create(service("a"))])
    other = Store()
    _, watch = other.watch()
    other.restore(1, bench.store.capture()())
    assert (await watch.next()).changes is None


def test_provisional_changes_merge_into_one_creation() -> None:
    snapshot = Snapshot()
    decisions = [Create(task("t"))]
    snapshot = snapshot.with_changes(decisions)
    allocated = copy_of(snapshot.tasks["t"])
    allocated.status.state = TASK_STATE_PENDING
    step = [Update(allocated)]
    snapshot = snapshot.with_changes(step)
    (change,) = merge_changes([*decisions, *step, SetDesiredState("t", TASK_STATE_SHUTDOWN)])
    assert isinstance(change, Create) and isinstance(change.object, Task)
    assert change.object.status.state == TASK_STATE_PENDING
    assert change.object.desired_state == TASK_STATE_SHUTDOWN
    assert allocated.desired_state == TASK_STATE_RUNNING, "merging changes copies"


def test_merging_keeps_the_order_and_the_halves_of_a_task() -> None:
    status = TaskStatus(state=TASK_STATE_RUNNING)
    merged = merge_changes(
        [
            SetDesiredState("a", TASK_STATE_SHUTDOWN),
            Create(service("x")),
            SetTaskStatus("a", status),
            Remove(Kind.SERVICE, "x"),
            Create(service("y")),
        ]
    )
    assert [type(change).__name__ for change in merged] == ["SetDesiredState", "SetTaskStatus", "Create"]


def test_large_decisions_are_split_in_order() -> None:
    changes = [Create(service(f"s{number:03}")) for number in range(100)]
    groups = list(split_changes(changes, 300))
    assert len(groups) > 5
    assert [change for group in groups for change in group] == changes


async def test_a_snapshot_is_the_same_bytes_in_the_order_of_ids() -> None:
    """On every member alike, whichever order its tables have."""
    ids = [f"{number * 7919 % 1000:03x}" for number in range(1000)]
    streams = []
    for order in (ids, ids[::-1]):
        bench = Bench()
        await bench.commit([Create(node(id_)) for id_ in order])
        streams.append(b"".join(bench.store.capture()()))
    places = [streams[0].index(f"\n\x03{id_}".encode()) for id_ in sorted(ids)]
    assert places == sorted(places)
    assert streams[0] == streams[1]
