"""Random days in the life of a cluster. A failing seed replays: SWARM_SEED=n runs that one alone, SWARM_SEEDS=n more."""

from __future__ import annotations

import os

import pytest
from swarm.v1.types_pb2 import (
    AVAILABILITY_ACTIVE,
    AVAILABILITY_DRAIN,
    AVAILABILITY_PAUSE,
    FAILURE_ACTION_ROLLBACK,
    UPDATE_ORDER_START_FIRST,
    ServiceSpec,
)

from tests.simulation.control_plane.world import World, service_spec

SEEDS = (
    [int(os.environ["SWARM_SEED"])] if "SWARM_SEED" in os.environ else range(int(os.environ.get("SWARM_SEEDS", "40")))
)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_day_keeps_the_rules_and_converges(seed: int) -> None:
    world = World(seed, nodes=4, crash_rate=0.1, reject_rate=0.02)
    rng = world.rng
    services: list[str] = []
    cut: set[str] = set()
    drained: set[str] = set()
    names, nodes = 0, 4
    for _ in range(30):
        world.run(rng.choice((0.0, 0.05, 0.3, 2.0, 10.0)))
        live = [service_id for service_id in services if service_id in world.snapshot.services]
        live = [service_id for service_id in live if not world.snapshot.services[service_id].removing]
        action = rng.randrange(14)
        if action <= 1 or not live:
            names += 1
            spec = service_spec(rng.randrange(1, 6), "good", *([8000 + names] if rng.random() < 0.5 else []))
            spec.update.parallelism = rng.randrange(0, 3)
            spec.update.monitor.seconds = rng.randrange(0, 3)
            if rng.random() < 0.4:
                spec.update.order = UPDATE_ORDER_START_FIRST
            if rng.random() < 0.7:
                spec.update.failure_action = FAILURE_ACTION_ROLLBACK
            services.append(world.create_service(f"s{names}", spec))
        elif action == 2:
            service_id = rng.choice(live)
            if world.snapshot.services[service_id].spec.mode.HasField("replicated"):
                world.scale(service_id, rng.randrange(0, 7))
        elif action in (3, 4):
            image = rng.choice(("good", "better", "best", "bad"))

            def change(spec: ServiceSpec, image: str = image) -> None:
                spec.task.container.image = image

            world.update_service(rng.choice(live), change)
        elif action == 5:
            world.remove_service(rng.choice(live))
        elif action == 6 and len(cut) < 2:
            node = rng.choice(sorted(set(world.agents) - cut))
            cut.add(node)
            (world.cut if rng.random() < 0.5 else world.crash)(node)
        elif action == 7 and cut:
            node = rng.choice(sorted(cut))
            cut.discard(node)
            world.heal(node)
        elif action == 8 and len(drained) < 2:
            node = rng.choice(sorted(world.agents))
            drained.add(node)
            world.set_availability(node, AVAILABILITY_DRAIN)
        elif action == 9 and drained:
            node = rng.choice(sorted(drained))
            drained.discard(node)
            world.set_availability(node, AVAILABILITY_ACTIVE)
        elif action == 10:
            world.new_leader()
        elif action == 11:
            world.set_availability(rng.choice(sorted(set(world.snapshot.nodes.ids()) - drained)), AVAILABILITY_PAUSE)
        elif action == 12 and cut:
            node = rng.choice(sorted(cut))
            if world.remove_node(node):
                cut.discard(node)
                drained.discard(node)
                nodes += 1
                world.add_node(nodes)
        elif action == 13:
            names += 1
            network = world.create_network(f"net{names}")
            spec = service_spec(rng.randrange(1, 4))
            spec.task.networks.add(network=network)
            if rng.random() < 0.5:
                getattr(spec.mode, "global").SetInParent()
            services.append(world.create_service(f"s{names}", spec))
    for node in sorted(cut):
        world.heal(node)
    for found in sorted(world.snapshot.nodes, key=lambda found: found.id):
        if found.spec.availability == AVAILABILITY_PAUSE:
            world.set_availability(found.id, AVAILABILITY_ACTIVE)
    world.crash_rate = world.reject_rate = 0.0
    world.bad_images = set()
    world.settle()
    world.rules.at_rest(world)
    world.rules.nothing_was_changed_in_place()
