"""The mirrors of nodes: what each node holds, and that differences always lead to the same as a complete mirror."""

from __future__ import annotations

import random

from swarm.v1 import dispatcher_pb2 as dispatcher
from swarm.v1 import types_pb2 as types

from orchestrator.dispatcher import wire
from orchestrator.dispatcher.assignments import Mirrors
from orchestrator.store import Create, Kind, Remove, SetDesiredState, SetTaskStatus, Update, copy_of
from tests.unit.dispatcher.worlds import (
    BACK,
    FRONT,
    INGRESS,
    ReferenceMirror,
    World,
    network,
    node,
    revision,
    service,
    task,
)

TASK, REVISION, NETWORK = (
    dispatcher.ASSIGNED_KIND_TASK,
    dispatcher.ASSIGNED_KIND_REVISION,
    dispatcher.ASSIGNED_KIND_NETWORK,
)
ENDPOINT, SERVICE, PEER = (
    dispatcher.ASSIGNED_KIND_ENDPOINT,
    dispatcher.ASSIGNED_KIND_SERVICE,
    dispatcher.ASSIGNED_KIND_PEER,
)


def complete(mirrors: Mirrors, node_id: str) -> ReferenceMirror:
    mirror = ReferenceMirror()
    mirror.take(wire.messages(mirrors.complete(node_id), epoch=1, index=mirrors.index, complete=True))
    return mirror


async def test_a_node_holds_its_tasks_their_networks_and_all_that_is_on_them() -> None:
    world = World()
    await world.found()
    snapshot = await world.commit(
        Create(revision("r1", "web")),
        Create(service("web", BACK)),
        Create(task("t1", "n1", BACK)),
        Create(task("t2", "n2", BACK, address=6)),
        Create(task("t3", "n2", FRONT, address=7)),
    )
    mirrors = Mirrors(snapshot)

    first = complete(mirrors, "n1")
    assert first.names(TASK) == {"t1"}
    assert first.names(REVISION) == {"r1"}
    assert first.names(NETWORK) == {INGRESS, BACK}
    assert first.names(ENDPOINT) == {f"{BACK}/t1", f"{BACK}/t2"}
    assert first.names(SERVICE) == {f"{BACK}/web"}
    assert first.names(PEER) == {"n2", "n3"}

    idle = complete(mirrors, "n3")
    assert idle.names(TASK) == set()
    assert idle.names(NETWORK) == {INGRESS}
    assert idle.names(ENDPOINT) == set()


async def test_a_node_does_not_hear_of_a_global_task_before_it_is_assigned() -> None:
    """A global service's task that found no room (too little memory, a taken host port) or no address said so in `service
    ps`, and was started all the same: its agent took it up at once, without addresses where it had none yet."""
    world = World()
    await world.found()
    waiting = task("t1", "n1", BACK, state=types.TASK_STATE_PENDING)
    snapshot = await world.commit(Create(revision("r1", "web")), Create(service("web", BACK)))
    mirrors = Mirrors(snapshot)
    mirror = complete(mirrors, "n1")
    snapshot = await world.commit(Create(waiting))
    diff = mirrors.apply(snapshot, [(Kind.TASK, "t1")])
    assert diff is not None
    assert not diff.of("n1") and not complete(mirrors, "n1").names(TASK) and not complete(mirrors, "n1").names(REVISION)

    placed = copy_of(snapshot.tasks["t1"])
    placed.status.state = types.TASK_STATE_ASSIGNED
    diff = mirrors.apply(await world.commit(Update(placed)), [(Kind.TASK, "t1")])
    assert diff is not None
    mirror.take(wire.messages(list(diff.of("n1").values()), epoch=1, index=mirrors.index, complete=False))
    assert mirror.names(TASK) == {"t1"}
    assert mirror.objects == complete(mirrors, "n1").objects


async def test_an_endpoint_serves_while_its_task_runs_healthy_and_is_wanted() -> None:
    world = World()
    await world.found()
    mirrors = Mirrors(await world.commit(Create(task("t1", "n1", BACK, state=types.TASK_STATE_ASSIGNED))))

    def serving() -> bool:
        mirror = complete(mirrors, "n1")
        return mirror.objects[wire.endpoint_key(BACK, "t1")].endpoint.serving

    async def step(change: object) -> None:
        mirrors.apply(await world.commit(change), [(Kind.TASK, "t1"), (Kind.NODE, "n1")])  # type: ignore[arg-type]

    assert not serving()
    starting = types.TaskStatus(state=types.TASK_STATE_RUNNING, health=types.HEALTH_STATE_STARTING)
    await step(SetTaskStatus("t1", starting))
    assert not serving()
    await step(SetTaskStatus("t1", types.TaskStatus(state=types.TASK_STATE_RUNNING, health=types.HEALTH_STATE_HEALTHY)))
    assert serving()
    down = copy_of(world.store.snapshot().nodes["n1"])
    down.status.state = types.NODE_STATE_DOWN
    await step(Update(down))
    assert not serving()
    up = copy_of(world.store.snapshot().nodes["n1"])
    up.status.state = types.NODE_STATE_READY
    await step(Update(up))
    assert serving()
    await step(SetDesiredState("t1", types.TASK_STATE_SHUTDOWN))
    assert not serving()
    assert mirrors.is_stopping("n1")
    await step(SetTaskStatus("t1", types.TaskStatus(state=types.TASK_STATE_SHUTDOWN)))
    assert complete(mirrors, "n1").names(ENDPOINT) == set()
    assert complete(mirrors, "n1").names(NETWORK) == {INGRESS}
    assert not mirrors.is_stopping("n1")


async def test_endpoints_that_begin_to_serve_may_wait_for_others_of_their_service() -> None:
    world = World()
    await world.found()
    mirrors = Mirrors(world.store.snapshot())
    running = types.TaskStatus(state=types.TASK_STATE_RUNNING)

    async def may_wait(task_id: str, change: object) -> bool:
        diff = mirrors.apply(await world.commit(change), [(Kind.TASK, task_id)])  # type: ignore[arg-type]
        assert diff is not None
        assert diff.of("n1")
        return diff.may_wait(diff.of("n1"))

    for number, task_id in enumerate(("t1", "t2")):
        new = Create(task(task_id, "n1", BACK, address=5 + number, state=types.TASK_STATE_ASSIGNED))
        assert not await may_wait(task_id, new), "neighbours need it"
    assert await may_wait("t1", SetTaskStatus("t1", running)), "another one is about to serve"
    assert not await may_wait("t2", SetTaskStatus("t2", running)), "the last one takes the others along"
    assert not await may_wait("t1", SetDesiredState("t1", types.TASK_STATE_SHUTDOWN))
    assert not await may_wait("t1", SetTaskStatus("t1", types.TaskStatus(state=types.TASK_STATE_SHUTDOWN)))


async def test_an_agent_hears_nothing_of_the_statuses_that_it_reported() -> None:
    world = World()
    await world.found()
    mirrors = Mirrors(await world.commit(Create(task("t1", "n1", BACK, state=types.TASK_STATE_ASSIGNED))))
    status = types.TaskStatus(state=types.TASK_STATE_PREPARING, message="pulling image")
    diff = mirrors.apply(await world.commit(SetTaskStatus("t1", status)), [(Kind.TASK, "t1")])
    assert diff is not None
    assert diff.concerned() == set()


async def test_a_change_on_a_network_concerns_only_the_nodes_on_it() -> None:
    world = World()
    await world.found(5)
    mirrors = Mirrors(await world.commit(Create(task("t1", "n1", BACK)), Create(task("t2", "n2", BACK, address=6))))
    snapshot = await world.commit(SetDesiredState("t1", types.TASK_STATE_SHUTDOWN))
    diff = mirrors.apply(snapshot, [(Kind.TASK, "t1")])
    assert diff is not None
    assert diff.concerned() == {"n1", "n2"}
    assert diff.programming() == {"n1", "n2"}
    assert list(diff.of("n2")) == [wire.endpoint_key(BACK, "t1")]
    assert set(diff.of("n1")) == {wire.endpoint_key(BACK, "t1"), wire.task_key("t1")}
    assert diff.of("n3") == {}


async def test_a_change_on_the_ingress_network_concerns_every_node() -> None:
    world = World()
    await world.found()
    mirrors = Mirrors(world.store.snapshot())
    diff = mirrors.apply(await world.commit(Create(task("t1", "n1", INGRESS))), [(Kind.TASK, "t1")])
    assert diff is not None
    assert diff.concerned() is None
    assert diff.programming() is None
    assert wire.endpoint_key(INGRESS, "t1") in diff.of("n3")


async def test_a_new_node_is_a_peer_of_all_others_and_not_of_itself() -> None:
    world = World()
    await world.found()
    mirrors = Mirrors(world.store.snapshot())
    diff = mirrors.apply(await world.commit(Create(node(4))), [(Kind.NODE, "n4")])
    assert diff is not None
    assert list(diff.of("n1")) == [wire.peer_key("n4")]
    assert diff.of("n4") == {}
    assert diff.programming() == set()  # nobody's endpoint table changes


async def test_a_service_that_is_being_removed_has_no_name_any_more() -> None:
    world = World()
    await world.found()
    mirrors = Mirrors(await world.commit(Create(service("web", BACK)), Create(task("t1", "n1", BACK))))
    assert complete(mirrors, "n1").names(SERVICE) == {f"{BACK}/web"}
    removing = copy_of(world.store.snapshot().services["web"])
    removing.removing = True
    mirrors.apply(await world.commit(Update(removing)), [(Kind.SERVICE, "web")])
    assert complete(mirrors, "n1").names(SERVICE) == set()


async def test_lost_events_and_a_new_ingress_network_make_all_mirrors_anew() -> None:
    world = World()
    await world.commit(Create(types.Cluster(id="c1", epoch=1)), Create(node(1)))
    mirrors = Mirrors(world.store.snapshot())
    assert mirrors.apply(world.store.snapshot(), None) is None
    assert mirrors.apply(await world.commit(Create(network(INGRESS, ingress=True))), [(Kind.NETWORK, INGRESS)]) is None
    assert complete(mirrors, "n1").names(NETWORK) == {INGRESS}


async def test_differences_lead_to_the_same_mirror_as_a_complete_one() -> None:
    """Random histories, random batches: every node's mirror stays what a fresh one would be."""
    for seed in range(12):
        await _random_history(random.Random(seed))


async def _random_history(rng: random.Random) -> None:
    world = World()
    await world.found(4)
    await world.commit(Create(revision("r1", "web")), Create(revision("r2", "web")))
    mirrors = Mirrors(world.store.snapshot())
    nodes = ["n1", "n2", "n3", "n4"]
    held = {node_id: complete(mirrors, node_id) for node_id in nodes}
    _, watch = world.store.watch()
    for step in range(120):
        await _random_change(world, rng, step)
        if rng.random() < 0.5:
            continue  # more changes in one batch
        events = watch.take()
        if events is None:
            continue
        assert events.changes is not None
        diff = mirrors.apply(events.snapshot, [(change.kind, change.id) for change in events.changes])
        assert diff is not None
        concerned = diff.concerned()
        for node_id in nodes:
            changes = diff.of(node_id)
            assert not changes or concerned is None or node_id in concerned
            held[node_id].take(wire.messages(changes.values(), epoch=1, index=diff.index, complete=False))
        fresh = Mirrors(events.snapshot)
        for node_id in nodes:
            wanted = _without_reported(complete(fresh, node_id))
            assert _without_reported(complete(mirrors, node_id)) == wanted
            assert _without_reported(held[node_id]) == wanted


async def _random_change(world: World, rng: random.Random, step: int) -> None:
    snapshot = world.store.snapshot()
    tasks = list(snapshot.tasks)
    services = list(snapshot.services)
    match rng.randrange(7):
        case 0 | 1:
            networks = rng.sample([INGRESS, BACK, FRONT], rng.randint(0, 2))
            made = task(f"t{step}", rng.choice(["", "n1", "n2", "n3", "n4"]), address=step + 3)
            made.revision_id = rng.choice(["r1", "r2"])
            made.status.state = types.TASK_STATE_ASSIGNED if made.node_id else types.TASK_STATE_PENDING
            for network_id in networks:
                made.attachments.add(network_id=network_id, address=f"10.0.0.{step + 3}/24")
            await world.commit(Create(made))
        case 2 if tasks:
            chosen = rng.choice(tasks)
            state = rng.choice([types.TASK_STATE_STARTING, types.TASK_STATE_RUNNING, types.TASK_STATE_FAILED])
            if chosen.node_id:
                await world.commit(SetTaskStatus(chosen.id, types.TaskStatus(state=state)))
        case 3 if tasks:
            await world.commit(SetDesiredState(rng.choice(tasks).id, types.TASK_STATE_SHUTDOWN))
        case 4 if tasks:
            await world.commit(Remove(Kind.TASK, rng.choice(tasks).id))
        case 5:
            await world.commit(Create(service(f"s{step}", *rng.sample([INGRESS, BACK, FRONT], rng.randint(1, 3)))))
        case 6 if services:
            chosen_service = rng.choice(services)
            if rng.random() < 0.5:
                await world.commit(Remove(Kind.SERVICE, chosen_service.id))
            else:
                changed = copy_of(chosen_service)
                changed.virtual_ips[0].address = f"10.9.0.{step}"
                await world.commit(Update(changed))
        case _:
            changed_node = copy_of(rng.choice(list(snapshot.nodes)))
            changed_node.status.state = rng.choice([types.NODE_STATE_READY, types.NODE_STATE_DOWN])
            changed_node.description.address = f"192.0.2.{rng.randint(1, 200)}"
            await world.commit(Update(changed_node))


def _without_reported(mirror: ReferenceMirror) -> dict[wire.Key, dispatcher.AssignedObject]:
    """The objects, without what an agent is not told again: its own statuses, and versions."""
    result = {}
    for key, found in mirror.objects.items():
        bare = dispatcher.AssignedObject()
        bare.CopyFrom(found)
        if bare.WhichOneof("object") == "task":
            bare.task.ClearField("status")
            bare.task.ClearField("meta")
        result[key] = bare
    return result
