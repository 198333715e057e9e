"""What a manager tells Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.parser import text_string_to_metric_families
from swarm.exposition import Family, Histogram, gauge, of_this_process, page
from swarm.v1 import types_pb2 as types

from orchestrator.store import Create, SetTaskStatus
from orchestrator.web.metrics import ManagerCollector, SchedulingLatency
from tests.unit.dispatcher.worlds import BACK, World, service, task


def samples(families: Iterable[Family]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """What Prometheus' own parser makes of our page."""
    text = page(families).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


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
    found = samples(ManagerCollector(world.store, world.log, "m1", lambda: 2).collect())

    def value(name: str, **labels: str) -> float | None:
        return found.get((name, frozenset(labels.items())))

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


async def test_latency_of_each_step_is_counted_once() -> None:
    world = World()
    await world.found(1)
    latency = SchedulingLatency()
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
        labels = frozenset({("step", step_)})
        return samples(latency.collect()).get((f"swarm_task_scheduling_seconds_{suffix}", labels))

    assert sample("count", "assigned") == 1
    assert sample("count", "running") == 1
    assert abs((sample("sum", "running") or 0) - 0.4) < 1e-6


def test_a_page_is_what_prometheus_reads() -> None:
    lengths = Histogram("lengths_seconds", "How long.", (0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7.0):
        lengths.observe(value)
    odd = Family("odd", 'a "text"\nwith \\', labels=["name"]).add(['quo"te \\ \n'], 2)
    found = samples([gauge("plain", "Plain.", 3), odd, lengths.family(), *of_this_process()])
    assert found["plain", frozenset()] == 3
    assert found["odd", frozenset({("name", 'quo"te \\ \n')})] == 2
    assert [found["lengths_seconds_bucket", frozenset({("le", bound)})] for bound in ("0.1", "1.0", "+Inf")] == [
        2,
        3,
        4,
    ]
    assert found["lengths_seconds_sum", frozenset()] == 7.65
    assert found["process_resident_memory_bytes", frozenset()] > 1 << 20
    assert found["process_start_time_seconds", frozenset()] > 1.5e9
