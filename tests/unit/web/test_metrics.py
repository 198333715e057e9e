"""What a manager tells Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from swarm.v1 import types_pb2 as types

from orchestrator.store import Create, SetTaskStatus
from orchestrator.web.latency import SchedulingLatency
from orchestrator.web.metrics import ManagerCollector, page
from tests.unit.dispatcher.worlds import BACK, World, service, task


async def test_counts_of_services_tasks_and_nodes() -> None:
    world = World()
    await world.found(2)
    web = service("web", BACK)
    web.spec.mode.replicated.replicas = 3
    unhealthy = task("t2", "n2", BACK, address=6)
    unhealthy.status.health = types.HEALTH_STATE_UNHEALTHY
    await world.commit(
        Create(web),
        Create(task("t1", "n1", BACK)),
        Create(unhealthy),
        Create(task("t3", "n2", BACK, address=7, state=types.TASK_STATE_FAILED)),
    )
    registry = CollectorRegistry()
    registry.register(ManagerCollector(world.store, world.log, "m1", lambda: 2, SchedulingLatency()))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    assert value("swarm_services") == 1
    assert value("swarm_service_tasks_desired", service="web") == 3
    assert value("swarm_service_tasks_running", service="web") == 2
    assert value("swarm_service_tasks_healthy", service="web") == 1
    assert value("swarm_tasks", state="running") == 2
    assert value("swarm_tasks", state="failed") == 1
    assert value("swarm_nodes", state="ready", role="worker") == 2
    assert value("swarm_nodes", state="down", role="worker") == 0
    assert value("swarm_raft_is_leader") == 1
    assert value("swarm_raft_members") == 1
    assert value("swarm_raft_member_reachable", node_id="m1") == 1
    assert value("swarm_dispatcher_sessions") == 2
    text = page(ManagerCollector(world.store, world.log, "m1", lambda: 2, SchedulingLatency()))
    assert b"# HELP swarm_raft_term" in text
    assert b"process_resident_memory_bytes" in text


async def test_a_service_and_its_predecessor_of_the_same_name_are_one_line() -> None:
    """While the tasks of a removed service ended, the one that was created anew under its name was there twice on the page:
    Prometheus took the first line only, which mostly said that nothing was desired or running."""
    world = World()
    await world.found(1)
    new = service("new", BACK)
    new.spec.name = "web"
    new.spec.mode.replicated.replicas = 3
    await world.commit(Create(service("web", BACK, removing=True)), Create(new), Create(task("t1", "n1", BACK)))
    lines = page(ManagerCollector(world.store, world.log, "m1", lambda: 1, SchedulingLatency())).decode().splitlines()
    assert [line for line in lines if line.startswith("swarm_service_tasks_desired{")] == [
        'swarm_service_tasks_desired{service="web"} 3.0'
    ]
    assert 'swarm_service_tasks_running{service="web"} 1.0' in lines


async def test_latency_of_each_step_is_counted_once() -> None:
    world = World()
    await world.found(1)
    registry = CollectorRegistry()
    latency = SchedulingLatency()
    registry.register(ManagerCollector(world.store, world.log, "m1", lambda: 0, latency))
    _, watch = world.store.watch()

    async def step(*changes: Create | SetTaskStatus) -> None:
        world.clock.advance(0.2)
        await world.commit(*changes)
        events = watch.take()
        assert events is not None
        assert events.changes is not None
        latency.observe(events.changes)

    await step(Create(task("t1", "n1", state=types.TASK_STATE_ASSIGNED)))
    await step(SetTaskStatus("t1", types.TaskStatus(state=types.TASK_STATE_PREPARING)))
    await step(SetTaskStatus("t1", types.TaskStatus(state=types.TASK_STATE_RUNNING)))
    await step(SetTaskStatus("t1", types.TaskStatus(state=types.TASK_STATE_RUNNING, message="still")))
    await step(Create(task("t2", "n1", state=types.TASK_STATE_REJECTED)))

    def sample(suffix: str, step_: str) -> float | None:
        return registry.get_sample_value(f"swarm_task_scheduling_seconds_{suffix}", {"step": step_})

    assert sample("count", "assigned") == 1
    assert sample("count", "running") == 1
    assert abs((sample("sum", "running") or 0) - 0.4) < 1e-6


async def test_tasks_that_the_log_tells_of_once_more_are_not_counted_again() -> None:
    """Each restart of a manager added the tasks of its journal to the histogram, all with the time until they ran: the graph of
    how fast tasks are assigned showed a burst of slow ones that never was."""
    world = World()
    await world.found(1)
    _, watch = world.store.watch()
    await world.commit(Create(task("t1", "n1", state=types.TASK_STATE_ASSIGNED)))
    world.clock.advance(10)
    started = world.clock.wall()
    await world.commit(SetTaskStatus("t1", types.TaskStatus(state=types.TASK_STATE_RUNNING)))
    await world.commit(Create(task("t2", "n1", state=types.TASK_STATE_ASSIGNED)))
    events = watch.take()
    assert events is not None
    assert events.changes is not None
    latency = SchedulingLatency(since=started)
    latency.observe(events.changes)
    assert [latency.steps[step].buckets()[-1][1] for step in ("assigned", "running")] == [1, 0]
