"""One story each: what a person does or what breaks, and how the cluster answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import pytest
from swarm.clock import duration
from swarm.v1.types_pb2 import (
    AVAILABILITY_ACTIVE,
    AVAILABILITY_DRAIN,
    AVAILABILITY_PAUSE,
    ENDPOINT_MODE_DNSRR,
    FAILURE_ACTION_CONTINUE,
    FAILURE_ACTION_ROLLBACK,
    PUBLISH_MODE_HOST,
    RESTART_CONDITION_NONE,
    RESTART_CONDITION_ON_FAILURE,
    TASK_STATE_ASSIGNED,
    TASK_STATE_COMPLETE,
    TASK_STATE_FAILED,
    TASK_STATE_PENDING,
    TASK_STATE_READY,
    TASK_STATE_RUNNING,
    TASK_STATE_SHUTDOWN,
    UPDATE_ORDER_START_FIRST,
    UPDATE_STATE_COMPLETED,
    UPDATE_STATE_PAUSED,
    UPDATE_STATE_ROLLBACK_COMPLETED,
    UPDATE_STATE_UPDATING,
    Cluster,
    Network,
    NetworkSpec,
    ServiceSpec,
    UpdateStatus,
)

from orchestrator.allocator import ports
from orchestrator.api.networks import remove_network
from orchestrator.store import Create, Kind, Remove, Update, copy_of
from tests.simulation.control_plane.world import World, service_spec


def image(name: str):
    def change(spec: ServiceSpec) -> None:
        spec.task.container.image = name

    return change


def current_images(world: World, service_id: str) -> Counter[str]:
    return Counter(
        world.snapshot.revisions[task.revision_id].spec.task.container.image for task in world.serving(service_id)
    )


def publish(port: int) -> Callable[[ServiceSpec], None]:
    def change(spec: ServiceSpec) -> None:
        spec.ports.add(target_port=80, published_port=port)

    return change


def published(world: World, service_id: str) -> list[int]:
    return [port.published_port for port in world.snapshot.services[service_id].spec.ports]


def status(world: World, service_id: str) -> UpdateStatus:
    return world.snapshot.services[service_id].update_status


def test_a_new_services_tasks_are_assigned_in_one_entry() -> None:
    world = World(1)
    world.run(1)
    before = world.entries
    web = world.create_service("web", service_spec(8, "good", 8080))
    world.run(0.0)
    assert world.entries == before + 2, "the user's entry and the core's"
    tasks = world.tasks(web)
    assert {task.status.state for task in tasks} == {TASK_STATE_ASSIGNED}
    assert Counter(task.node_id for task in tasks) == {"n1": 2, "n2": 2, "n3": 2, "n4": 2}
    assert [task.slot for task in tasks] == list(range(1, 9))
    assert all(len(task.attachments) == 2 for task in tasks), "the default network and the ingress network"
    service = world.snapshot.services[web]
    assert len(service.virtual_ips) == 1 and service.published_ports[0].published_port == 8080
    world.run(10)
    assert len(world.serving(web)) == 8


def test_scaling_down_gives_up_the_fullest_nodes_and_forgets_the_tasks() -> None:
    world = World(2)
    web = world.create_service("web", service_spec(8))
    world.run(10)
    world.scale(web, 4)
    world.run(10)
    assert Counter(task.node_id for task in world.tasks(web)) == {"n1": 1, "n2": 1, "n3": 1, "n4": 1}
    world.scale(web, 0)
    world.run(10)
    assert not world.tasks(web)


def test_scaling_down_takes_tasks_that_do_not_run_first() -> None:
    world = World(3)
    spec = service_spec(4)
    spec.task.reservations.memory_bytes = 3 << 30
    web = world.create_service("web", spec)
    world.run(10)
    world.scale(web, 6)
    world.run(10)
    assert len(world.serving(web)) == 4
    running = {task.id for task in world.serving(web)}
    world.scale(web, 4)
    world.run(10)
    assert {task.id for task in world.tasks(web)} == running


@pytest.mark.parametrize("parallelism", [1, 2, 3])
@pytest.mark.parametrize("start_first", [False, True])
def test_a_healthy_rolling_update_never_falls_below_its_promise(parallelism: int, start_first: bool) -> None:
    world = World(4)
    spec = service_spec(6)
    spec.update.parallelism = parallelism
    spec.update.monitor.CopyFrom(duration(1))
    if start_first:
        spec.update.order = UPDATE_ORDER_START_FIRST
    web = world.create_service("web", spec)
    world.run(10)
    world.update_service(web, image("better"))
    least = 6
    for _ in range(1500):
        world.run(0.01)
        least = min(least, len(world.serving(web)))
        if status(world, web).state == UPDATE_STATE_COMPLETED:
            break
    world.run(20)
    assert status(world, web).state == UPDATE_STATE_COMPLETED
    assert current_images(world, web) == {"better": 6}
    assert least >= (6 if start_first else 6 - parallelism)
    assert Counter(task.node_id for task in world.serving(web)).most_common(1)[0][1] <= 2, "spread evenly again"


def test_an_update_waits_its_delay_between_slots() -> None:
    world = World(5)
    spec = service_spec(3)
    spec.update.delay.CopyFrom(duration(30))
    web = world.create_service("web", spec)
    world.run(10)
    world.update_service(web, image("better"))
    world.run(20)
    assert current_images(world, web) == {"better": 1, "good": 2}
    world.run(33)
    assert current_images(world, web) == {"better": 2, "good": 1}
    world.run(60)
    assert status(world, web).state == UPDATE_STATE_COMPLETED


def test_an_update_that_cannot_be_prepared_costs_no_running_task_and_pauses() -> None:
    world = World(6)
    web = world.create_service("web", service_spec(3))
    world.run(10)
    world.update_service(web, image("bad"))
    for _ in range(300):
        world.run(0.05)
        assert len(world.serving(web)) == 3
    assert status(world, web).state == UPDATE_STATE_PAUSED
    assert "no such image" in status(world, web).message
    world.update_service(web, image("good"))
    world.run(30)
    assert current_images(world, web) == {"good": 3}
    assert all(task.desired_state != TASK_STATE_READY for task in world.tasks(web))


def test_a_failing_update_rolls_back() -> None:
    world = World(7)
    spec = service_spec(4)
    spec.update.failure_action = FAILURE_ACTION_ROLLBACK
    web = world.create_service("web", spec)
    world.run(10)
    world.update_service(web, image("bad"))
    world.run(60)
    assert status(world, web).state == UPDATE_STATE_ROLLBACK_COMPLETED
    assert re.fullmatch(
        r"rolled back: 1 failed, first web\.\d: .*no such image.*",
        status(world, web).message,
    )
    assert current_images(world, web) == {"good": 4}
    assert world.snapshot.services[web].spec.task.container.image == "good", "scaling it later does not bring it back"


def test_a_tolerated_failure_does_not_hold_the_others_up() -> None:
    world = World(8)
    spec = service_spec(4)
    spec.update.failure_action = FAILURE_ACTION_CONTINUE
    web = world.create_service("web", spec)
    world.run(10)
    world.update_service(web, image("bad"))
    world.run(60)
    assert current_images(world, web) == {"good": 4}, "what cannot be prepared replaces nothing"
    world.bad_images.clear()
    world.run(120)
    assert current_images(world, web) == {"bad": 4}
    assert status(world, web).state == UPDATE_STATE_COMPLETED


def test_a_manual_rollback_returns_to_the_revision_before() -> None:
    world = World(9)
    web = world.create_service("web", service_spec(3))
    world.run(10)
    world.update_service(web, image("better"))
    world.run(30)
    world.roll_back(web)
    world.run(30)
    assert status(world, web).state == UPDATE_STATE_ROLLBACK_COMPLETED
    assert current_images(world, web) == {"good": 3}


def test_an_update_goes_on_under_a_new_leader() -> None:
    world = World(10)
    spec = service_spec(6)
    web = world.create_service("web", spec)
    world.run(10)
    world.update_service(web, image("better"))
    while status(world, web).state != UPDATE_STATE_COMPLETED:
        world.run(0.3)
        world.new_leader()
        assert world.now < 1_000_200
    assert current_images(world, web) == {"better": 6}


def test_an_update_fits_where_the_old_task_leaves_room() -> None:
    world = World(11, nodes=2)
    spec = service_spec(2)
    spec.task.reservations.memory_bytes = 3 << 30
    web = world.create_service("web", spec)
    world.run(10)
    world.update_service(web, image("better"))
    world.run(30)
    assert current_images(world, web) == {"better": 2}


def test_publishing_another_port_gives_tasks_an_address_on_the_ingress_network() -> None:
    world = World(12)
    web = world.create_service("web", service_spec(2))
    world.run(10)

    def publish(spec: ServiceSpec) -> None:
        spec.ports.add(target_port=80)
        spec.ports.add(target_port=9000, published_port=9000, mode=PUBLISH_MODE_HOST)

    world.update_service(web, publish)
    world.run(30)
    service = world.snapshot.services[web]
    assert 30_000 <= service.published_ports[0].published_port <= 32_767
    serving = world.serving(web)
    assert len(serving) == 2
    for task in serving:
        assert {attachment.network_id for attachment in task.attachments} == {"net-default", "net-ingress"}
        assert [port.published_port for port in task.host_ports] == [9000]
    assert len({task.node_id for task in serving}) == 2


def test_a_crash_is_restarted_at_once_and_a_crash_loop_backs_off() -> None:
    world = World(13)
    web = world.create_service("web", service_spec(1))
    world.run(10)
    starts = []
    for _ in range(4000):
        for agent in world.agents.values():
            for task_id in sorted(agent.running):
                if task_id not in starts:
                    starts.append(task_id)
                    world.container_ends(agent, task_id)
        world.run(0.1)
    times = [world.snapshot.tasks.get(task_id) for task_id in starts]
    assert 8 <= len(starts) <= 14, "0, 1, 2, 4, 8, 16, 32, 60, 60 … seconds in 400"
    (newest,) = [task for task in world.tasks(web) if task.desired_state == TASK_STATE_RUNNING]
    assert newest.consecutive_failures >= 7
    finished = [task for task in times if task is not None and task.status.state == TASK_STATE_FAILED]
    assert len(finished) <= 4, "the history is bounded: 3, and the current one"


def test_what_is_set_for_the_cluster_counts_at_once() -> None:
    """After `swarm update --task-history-limit 1` the ended tasks of a service stayed until something else happened to it, and
    a network that found no room in the pools got no subnet when there was one more pool."""
    world = World(27)
    web = world.create_service("web", service_spec(1))
    world.run(10)
    for _ in range(3):
        for agent in world.agents.values():
            for task_id in sorted(agent.running):
                world.container_ends(agent, task_id)
        world.run(10)
    assert len(world.tasks(web)) == 4
    cluster = copy_of(world.snapshot.cluster or Cluster())
    cluster.spec.address_pools.append("10.0.0.0/19")
    world.commit("api", [Update(cluster)])
    late = world.create_network("late")
    world.run(1)
    assert not world.snapshot.networks[late].subnet
    cluster = copy_of(world.snapshot.cluster or Cluster())
    cluster.spec.task_history_limit = 1
    cluster.spec.address_pools.append("10.1.0.0/16")
    world.commit("api", [Update(cluster)])
    world.run(1)
    assert len(world.tasks(web)) == 2
    assert world.snapshot.networks[late].subnet == "10.1.0.0/20"


def test_restarts_end_after_the_maximum_of_attempts_whoever_leads() -> None:
    world = World(14)
    spec = service_spec(1)
    spec.task.restart.max_attempts = 4
    spec.task.restart.delay.CopyFrom(duration(0))
    web = world.create_service("web", spec)
    world.run(5)
    for _ in range(60):
        for agent in world.agents.values():
            for task_id in sorted(agent.running):
                world.container_ends(agent, task_id)
        world.run(1)
        world.new_leader()
    tasks = world.tasks(web)
    assert len(tasks) == 5
    assert {task.status.state for task in tasks} == {TASK_STATE_FAILED}


@pytest.mark.parametrize(
    ("condition", "state", "restarted"),
    [
        (RESTART_CONDITION_NONE, TASK_STATE_FAILED, False),
        (RESTART_CONDITION_ON_FAILURE, TASK_STATE_COMPLETE, False),
        (RESTART_CONDITION_ON_FAILURE, TASK_STATE_FAILED, True),
    ],
)
def test_the_restart_condition_decides(condition, state, restarted: bool) -> None:
    world = World(15)
    spec = service_spec(1)
    spec.task.restart.condition = condition
    web = world.create_service("web", spec)
    world.run(10)
    (task,) = world.serving(web)
    world._end(world.agents[task.node_id], task.id, state, "")
    world.run(20)
    assert len(world.serving(web)) == (1 if restarted else 0)


def test_a_lost_hosts_tasks_run_elsewhere_and_the_old_ones_stop_when_it_returns() -> None:
    world = World(16)
    web = world.create_service("web", service_spec(8))
    world.run(10)
    world.cut("n1")
    world.run(10)
    assert len(world.serving(web)) == 8
    assert "n1" not in {task.node_id for task in world.serving(web)}
    left = set(world.agents["n1"].running)
    assert len(left) == 2
    held = {at.address for task_id in left for at in world.snapshot.tasks[task_id].attachments}
    assert held.isdisjoint(at.address for task in world.serving(web) for at in task.attachments)
    world.heal("n1")
    world.run(10)
    assert not world.agents["n1"].running
    world.rules.at_rest(world)


def test_replacements_are_paced_after_a_mass_loss() -> None:
    world = World(17, nodes=6)
    web = world.create_service("web", service_spec(120))
    world.run(20)
    lost = {"n1", "n2", "n3"}
    for node in sorted(lost):
        world.cut(node)
    world.run(3.2)
    waiting = [task for task in world.serving(web) if task.node_id in lost]
    assert 30 <= len(waiting) <= 40, "20 at once, then 20 a second, of 60"
    world.run(30)
    assert len(world.serving(web)) == 120


def test_a_node_that_is_removed_frees_what_its_tasks_held() -> None:
    world = World(18)
    web = world.create_service("web", service_spec(4))
    world.run(10)
    world.cut("n1")
    world.run(5)
    world.agents["n1"].running.clear()
    world.commit("api", [Remove(Kind.NODE, "n1")])
    world.run(5)
    assert all(task.node_id != "n1" for task in world.tasks(web))
    assert len(world.serving(web)) == 4


def test_a_node_that_is_down_for_a_day_orphans_its_tasks() -> None:
    world = World(19)
    web = world.create_service("web", service_spec(4))
    world.run(10)
    world.cut("n1")
    world.run(25 * 3600)
    assert [task.node_id for task in world.tasks(web) if task.status.state == 140] == ["n1"]
    addresses = world.snapshot.tasks.addresses("net-default")
    assert len(addresses) == 5, "the orphan's address is not given away: its container may still run"
    world.heal("n1")
    world.run(10)
    assert len(world.snapshot.tasks.addresses("net-default")) == 4
    world.rules.at_rest(world)


def test_a_drain_moves_everything_without_a_gap_in_preparation() -> None:
    world = World(20)
    web = world.create_service("web", service_spec(8))
    world.run(10)
    world.set_availability("n1", AVAILABILITY_DRAIN)
    world.run(15)
    assert "n1" not in {task.node_id for task in world.serving(web)}
    assert len(world.serving(web)) == 8
    assert not world.agents["n1"].running
    world.set_availability("n1", AVAILABILITY_ACTIVE)
    world.run(5)
    assert len(world.serving(web)) == 8


def test_a_drain_ends_also_where_there_is_no_other_place() -> None:
    world = World(21, nodes=2)
    spec = service_spec(2)
    spec.task.reservations.memory_bytes = 3 << 30
    web = world.create_service("web", spec)
    world.run(10)
    world.set_availability("n1", AVAILABILITY_DRAIN)
    world.run(10)
    assert len(world.serving(web)) == 1
    (waiting,) = [task for task in world.tasks(web) if task.status.state == TASK_STATE_PENDING]
    assert waiting.status.message == (
        "no suitable node: 1 node is drained, 1 node has too little memory (1 GiB free of 3 GiB wanted)"
    )
    world.set_availability("n1", AVAILABILITY_ACTIVE)
    world.run(10)
    assert len(world.serving(web)) == 2


def test_removing_a_service_leaves_nothing() -> None:
    world = World(22)
    web = world.create_service("web", service_spec(5, "good", 80))
    world.run(10)
    world.update_service(web, image("better"))
    world.run(1)
    world.remove_service(web)
    again = world.create_service("web", service_spec(2, "good", 80))
    world.run(20)
    assert set(world.snapshot.services.ids()) == {again}
    assert len(world.snapshot.revisions) == 1 and len(world.snapshot.tasks) == 2


def test_removing_a_service_does_not_wait_for_a_lost_host() -> None:
    world = World(23)
    web = world.create_service("web", service_spec(4))
    world.run(10)
    world.cut("n1")
    world.run(10)
    world.remove_service(web)
    world.run(10)
    assert web not in world.snapshot.services
    assert {task.node_id for task in world.snapshot.tasks} == {"n1"}
    world.heal("n1")
    world.run(10)
    assert len(world.snapshot.tasks) == 0 and not world.agents["n1"].running


def test_a_global_service_runs_once_on_each_node_that_qualifies() -> None:
    world = World(24)
    spec = service_spec(0)
    spec.mode.ClearField("replicated")
    getattr(spec.mode, "global").SetInParent()
    spec.task.placement.constraints.append("node.id != n4")
    web = world.create_service("web", spec)
    world.run(10)
    assert sorted(task.node_id for task in world.serving(web)) == ["n1", "n2", "n3"]
    world.set_availability("n1", AVAILABILITY_DRAIN)
    world.set_availability("n2", AVAILABILITY_PAUSE)
    world.add_node(5)
    world.run(10)
    assert sorted(task.node_id for task in world.serving(web)) == ["n2", "n3", "n5"]
    world.update_service(web, image("better"))
    world.run(30)
    assert sorted(task.node_id for task in world.serving(web)) == ["n2", "n3", "n5"]
    world.cut("n3")
    world.run(10)
    world.heal("n3")
    world.run(10)
    assert sorted(task.node_id for task in world.serving(web)) == ["n2", "n3", "n5"]


def test_a_global_service_has_a_port_of_each_host() -> None:
    """`service ps` said "1 node uses the host port already" of each task: the port that the task itself was to have."""
    world = World(28)
    spec = service_spec(0)
    getattr(spec.mode, "global").SetInParent()
    spec.ports.add(target_port=80, published_port=9000, mode=PUBLISH_MODE_HOST)
    first = world.create_service("first", spec)
    world.run(0.0)
    assert {task.status.state for task in world.tasks(first)} == {TASK_STATE_ASSIGNED}
    world.run(10)
    assert sorted(task.node_id for task in world.serving(first)) == ["n1", "n2", "n3", "n4"]
    second = world.create_service("second", spec)
    world.run(10)
    assert not world.serving(second), "the ports are taken"
    assert {task.status.message for task in world.tasks(second)} == {
        "no suitable node: 1 node uses the host port already"
    }
    world.remove_service(first)
    world.run(10)
    assert len(world.serving(second)) == 4


def test_round_robin_services_have_no_virtual_ip() -> None:
    world = World(25)
    spec = service_spec(1)
    spec.endpoint_mode = ENDPOINT_MODE_DNSRR
    web = world.create_service("web", spec)
    world.run(5)
    assert not world.snapshot.services[web].virtual_ips
    assert status(world, web).state not in (UPDATE_STATE_UPDATING,)
    assert [task.desired_state for task in world.tasks(web)] != [TASK_STATE_SHUTDOWN]


def test_what_one_service_gives_up_reaches_another_that_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the addresses of a small network, or the open ports, were used up, the next service waited for ever for its virtual
    IP ("no published port is free" for its port), also when others had long given theirs up: nobody looked at it again."""
    monkeypatch.setattr(ports, "LAST_PORT", ports.FIRST_PORT)
    world = World(26)
    world.commit("api", [Create(Network(id="small", spec=NetworkSpec(name="small", subnet="10.99.0.0/29")))])
    spec = service_spec(4)
    spec.task.networks.add(network="small")
    first, holder = world.create_service("first", spec), world.create_service("holder", service_spec(1, "good", 0))
    world.run(10)
    spec.mode.replicated.replicas = 2
    second, open_port = world.create_service("second", spec), world.create_service("open", service_spec(1, "good", 0))
    world.run(10)
    assert not world.serving(second) and not world.serving(open_port)
    world.scale(first, 2)
    world.remove_service(holder)
    world.run(10)
    assert len(world.snapshot.services[second].virtual_ips) == 1
    world.scale(first, 1)
    world.run(10)
    assert len(world.serving(second)) == 2 and len(world.serving(open_port)) == 1


def test_a_change_of_ports_that_fails_pauses_and_leaves_the_image_alone() -> None:
    """A user who published a port while the registry was away saw the image go back by one version, "rolled back", with
    the port still published."""
    world = World(26)
    spec = service_spec(2)
    spec.update.failure_action = FAILURE_ACTION_ROLLBACK
    web = world.create_service("web", spec)
    world.run(10)
    world.update_service(web, image("better"))
    world.run(60)
    world.bad_images.add("better")
    world.update_service(web, publish(8080))
    world.run(90)
    assert status(world, web).state == UPDATE_STATE_PAUSED
    assert status(world, web).message.endswith("no such image; not rolled back, because only ports changed")
    assert current_images(world, web) == {"better": 2}
    assert published(world, web) == [8080]
    world.bad_images.discard("better")
    world.update_service(web, image("bad"))
    world.run(60)
    assert status(world, web).state == UPDATE_STATE_ROLLBACK_COMPLETED
    assert world.snapshot.services[web].spec.task.container.image == "better"


def test_an_update_that_fails_does_not_return_to_a_removed_network() -> None:
    """A user saw the update roll back for ever: its tasks waited for a network that had been removed."""
    world = World(27)
    network = world.create_network("old")
    spec = service_spec(3)
    spec.task.networks.add(network=network)
    spec.update.failure_action = FAILURE_ACTION_ROLLBACK
    spec.update.all_at_once = True
    spec.update.monitor.CopyFrom(duration(60))
    web = world.create_service("web", spec)
    world.run(10)

    def detach(spec: ServiceSpec) -> None:
        del spec.task.networks[:]

    world.update_service(web, detach)
    world.run(10)
    world.commit("api", remove_network(world.snapshot, world.snapshot.networks[network]))
    task = world.serving(web)[0]
    world.container_ends(world.agents[task.node_id], task.id)
    world.run(60)
    assert status(world, web).state == UPDATE_STATE_PAUSED
    assert status(world, web).message.endswith("not rolled back, because a network of the previous version was removed")
    assert len(world.serving(web)) == 3


def test_a_port_published_after_an_update_was_paused_reaches_the_tasks() -> None:
    """A user saw a port published, and no task of the service with an address behind it."""
    world = World(28)
    web = world.create_service("web", service_spec(3))
    world.run(10)
    world.update_service(web, image("bad"))
    world.run(60)
    assert status(world, web).state == UPDATE_STATE_PAUSED
    world.bad_images.clear()
    world.update_service(web, publish(8080))
    world.run(60)
    assert status(world, web).state == UPDATE_STATE_COMPLETED
    assert len(world.serving(web)) == 3
    for task in world.serving(web):
        assert "net-ingress" in {attachment.network_id for attachment in task.attachments}


@pytest.mark.parametrize("behind", [5, 20])
def test_an_update_keeps_its_limits_under_a_leader_whose_clock_is_behind(behind: float) -> None:
    """A user who updated one task at a time saw several replaced at once after the leader changed."""
    world = World(29, nodes=6)
    spec = service_spec(12)
    web = world.create_service("web", spec)
    world.run(10)
    world.update_service(web, image("better"))
    world.run(0.3)
    world.new_leader(behind)
    for _ in range(600):
        world.run(0.1)
        assert len(world.serving(web)) >= 11
        if status(world, web).state == UPDATE_STATE_COMPLETED:
            break
    assert status(world, web).state == UPDATE_STATE_COMPLETED
    assert current_images(world, web) == {"better": 12}


@pytest.mark.parametrize("start_first", [False, True])
@pytest.mark.parametrize("loss", ["crash", "host", "drain"])
def test_a_slot_that_a_paused_update_tried_goes_on_with_what_it_had(loss: str, start_first: bool) -> None:
    """A user whose update to a wrong image had paused lost a replica for good with one crash: only the wrong image was tried
    in its place."""
    world = World(30)
    spec = service_spec(3)
    if start_first:
        spec.update.order = UPDATE_ORDER_START_FIRST
    web = world.create_service("web", spec)
    world.run(10)
    world.update_service(web, image("bad"))
    world.run(60)
    assert status(world, web).state == UPDATE_STATE_PAUSED
    good = world.snapshot.services[web].previous_revision_id
    (tried,) = {task.slot for task in world.tasks(web) if task.revision_id != good}
    for _ in range(3):
        (served,) = [task for task in world.serving(web) if task.slot == tried]
        if loss == "crash":
            world.container_ends(world.agents[served.node_id], served.id)
        elif loss == "host":
            world.crash(served.node_id)
        else:
            world.set_availability(served.node_id, AVAILABILITY_DRAIN)
        world.run(15)
        assert current_images(world, web) == {"good": 3}
        assert served.id not in world.containers()
        assert status(world, web).state == UPDATE_STATE_PAUSED
    world.bad_images.clear()
    world.update_service(web, publish(8080))
    world.run(60)
    assert current_images(world, web) == {"bad": 3}, "what was brought back is updated with the others"


@pytest.mark.parametrize("delay", [None, 1.0])
def test_a_drain_ends_also_where_no_successor_can_be_prepared(delay: float | None) -> None:
    """A user who drained a node while the registry was away waited for ever for it to get empty."""
    world = World(31, nodes=2)
    spec = service_spec(1)
    if delay is not None:
        spec.task.restart.delay.CopyFrom(duration(delay))
    web = world.create_service("web", spec)
    world.run(10)
    (task,) = world.serving(web)
    world.bad_images.add("good")
    world.set_availability(task.node_id, AVAILABILITY_DRAIN)
    world.run(29)
    assert task.id in world.containers(), "successors are tried for as long as one may take"
    world.run(3)
    assert task.id not in world.containers()
    world.bad_images.clear()
    world.run(60)
    assert len(world.serving(web)) == 1


@pytest.mark.parametrize("start_first", [False, True])
def test_a_drain_tries_again_also_where_nothing_is_restarted(start_first: bool) -> None:
    """A user who drained a node while the registry was away for a moment, waited for ever for it to get empty where the
    service's tasks are not to be restarted."""
    world = World(32, nodes=2)
    spec = service_spec(1)
    spec.task.restart.condition = RESTART_CONDITION_NONE
    if start_first:
        spec.update.order = UPDATE_ORDER_START_FIRST
    web = world.create_service("web", spec)
    world.run(10)
    (task,) = world.serving(web)
    world.bad_images.add("good")
    world.set_availability(task.node_id, AVAILABILITY_DRAIN)
    world.run(10)
    assert [serving.id for serving in world.serving(web)] == [task.id]
    world.bad_images.clear()
    world.run(15)
    (moved,) = world.serving(web)
    assert moved.node_id != task.node_id
    assert task.id not in world.containers()
