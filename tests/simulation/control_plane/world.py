"""A whole control plane under a virtual clock: the real store and functional core, and a model of agents, nodes and users.

Everything that happens is an event in one queue, drawn from one seeded generator, so that a seed replays a run exactly.
After each entry of the log the invariants of `rules.py` are checked.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from swarm.clock import ManualClock, timestamp
from swarm.ids import id_source
from swarm.v1.store_pb2 import Command, CommandResult
from swarm.v1.types_pb2 import (
    AVAILABILITY_ACTIVE,
    NODE_ROLE_WORKER,
    NODE_STATE_DOWN,
    NODE_STATE_READY,
    TASK_STATE_ACCEPTED,
    TASK_STATE_ASSIGNED,
    TASK_STATE_COMPLETE,
    TASK_STATE_FAILED,
    TASK_STATE_PREPARING,
    TASK_STATE_READY,
    TASK_STATE_REJECTED,
    TASK_STATE_RUNNING,
    TASK_STATE_SHUTDOWN,
    TASK_STATE_STARTING,
    Availability,
    Cluster,
    ClusterSpec,
    Network,
    NetworkSpec,
    Node,
    NodeDescription,
    NodeSpec,
    NodeState,
    NodeStatus,
    Resources,
    Service,
    ServiceRevision,
    ServiceSpec,
    Task,
    TaskState,
    TaskStatus,
)

from orchestrator.api import services
from orchestrator.controllers import ControlCore
from orchestrator.store import (
    Change,
    Create,
    Kind,
    Remove,
    SetTaskStatus,
    Snapshot,
    Store,
    Update,
    copy_of,
)
from orchestrator.store.changes import to_action
from tests.simulation.control_plane.rules import Rules

DOWN_AFTER = 3.0  # seconds without a heartbeat
_STEPS = (
    TASK_STATE_ACCEPTED,
    TASK_STATE_PREPARING,
    TASK_STATE_READY,
    TASK_STATE_STARTING,
    TASK_STATE_RUNNING,
)


class _NoLoop:
    """A watch's loop that never runs: the simulation asks for events itself."""

    def call_soon_threadsafe(self, *_: object) -> None:
        return


@dataclass
class Agent:
    """A host: which containers really run on it, and whether the managers can reach it."""

    node_id: str
    reachable: bool = True
    tasks: dict[str, TaskStatus] = field(default_factory=dict)  # what the agent knows of its tasks
    running: set[str] = field(default_factory=set)  # containers that exist, whoever knows of them
    busy: set[str] = field(default_factory=set)  # tasks with a step in the queue
    desired: dict[str, int] = field(default_factory=dict)  # as the agent last heard
    back_at: float = float("-inf")


class World:
    def __init__(self, seed: int, *, nodes: int = 4, crash_rate: float = 0.0, reject_rate: float = 0.0) -> None:
        self.rng = random.Random(seed)
        self.clock = ManualClock()
        self.store = Store()
        self.index = 0
        self.new_id = id_source(self.rng)
        self.crash_rate = crash_rate  # of a task, in each 10 s of running
        self.reject_rate = reject_rate
        self.bad_images: set[str] = {"bad"}
        self.agents: dict[str, Agent] = {}
        self.queue: list[tuple[float, int, Callable[[], None]]] = []
        self.sequence = 0
        self.entries = 0
        self.rules = Rules()
        _, self.watch = self.store.watch(loop=cast("Any", _NoLoop()))
        self.core = ControlCore(self.new_id)
        self.core.touch_all(self.snapshot)
        self.wake_scheduled = float("inf")
        self.commit("api", [Create(Cluster(id="c", spec=ClusterSpec(name="default", task_history_limit=3)))])
        self.commit(
            "api",
            [
                Create(Network(id="net-default", spec=NetworkSpec(name="default"))),
                Create(Network(id="net-ingress", spec=NetworkSpec(name="ingress", ingress=True))),
            ],
        )
        for number in range(1, nodes + 1):
            self.add_node(number)

    # ------------------------------------------------------------------------------------------------- time and log

    @property
    def snapshot(self) -> Snapshot:
        return self.store.snapshot()

    @property
    def now(self) -> float:
        return self.clock.now

    def after(self, delay: float, action: Callable[[], None]) -> None:
        self.sequence += 1
        heapq.heappush(self.queue, (self.now + delay, self.sequence, action))

    def commit(self, author: str, changes: Sequence[Change]) -> CommandResult:
        self.index += 1
        self.entries += 1
        command = Command(schema=1, proposer="m", at=timestamp(self.now))
        command.actions.extend(to_action(change) for change in changes)
        before = self.snapshot
        result = CommandResult.FromString(self.store.apply(self.index, command.SerializeToString()))
        self.rules.after_entry(self, author, before, self.snapshot)
        self.after(0.0, self.deliver)
        return result

    def deliver(self) -> None:
        """Events to the core and to the agents."""
        events = self.watch.take()
        if events is not None:
            if events.changes is None:
                self.core.touch_all(events.snapshot)
            else:
                self.core.touch(events.snapshot, events.changes)
                for change in events.changes:
                    if change.kind is Kind.TASK:
                        for obj in (change.old, change.new):
                            if isinstance(obj, Task) and obj.node_id in self.agents:
                                self.after(0.01, lambda node=obj.node_id, task=obj.id: self.agent_sees(node, task))
        self.round()

    def round(self) -> None:
        decision = self.core.decide(self.snapshot, self.now)
        if decision.changes:
            result = self.commit("core", decision.changes)
            assert not result.error_kind, f"the core decided what cannot be written: {result.error}"
        elif decision.wake_at is not None:
            assert decision.wake_at > self.now, "the core would spin"
            if decision.wake_at < self.wake_scheduled or self.wake_scheduled <= self.now:
                self.wake_scheduled = decision.wake_at
                self.after(decision.wake_at - self.now + 1e-6, self.round)

    def run(self, seconds: float) -> None:
        """Lets time pass."""
        end = self.now + seconds
        steps = 0
        while self.queue and self.queue[0][0] <= end:
            at, _, action = heapq.heappop(self.queue)
            self.clock.now = max(self.now, at)
            action()
            steps += 1
            assert steps < 200_000, "the simulation does not come to rest"
        self.clock.now = end

    def settle(self, seconds: float = 300.0) -> None:
        self.run(seconds)

    # ------------------------------------------------------------------------------------------------------- leaders

    def new_leader(self, behind: float = 0.0) -> None:
        """The leader is gone with all that it remembered; the new one's clock is `behind` seconds behind."""
        self.clock.now -= behind
        self.queue = [(at - behind, sequence, action) for at, sequence, action in self.queue]
        self.core = ControlCore(self.new_id)
        self.core.touch_all(self.snapshot)
        self.wake_scheduled = float("inf")
        self.after(0.0, self.round)

    # --------------------------------------------------------------------------------------------------------- nodes

    def add_node(self, number: int, **labels: str) -> str:
        node_id = f"n{number}"
        node = Node(
            id=node_id,
            number=number,
            role=NODE_ROLE_WORKER,
            spec=NodeSpec(availability=AVAILABILITY_ACTIVE, labels=labels),
            description=NodeDescription(
                hostname=node_id,
                os="linux",
                architecture="amd64",
                address=f"192.168.0.{number}",
                resources=Resources(nano_cpus=4_000_000_000, memory_bytes=4 << 30),
            ),
            status=NodeStatus(state=NODE_STATE_READY),
        )
        self.agents[node_id] = Agent(node_id)
        self.commit("api", [Create(node)])
        return node_id

    def set_node_state(self, node_id: str, state: NodeState.ValueType) -> None:
        node = self.snapshot.nodes.get(node_id)
        if node is None or node.status.state == state:
            return
        changed = copy_of(node)
        changed.status.state = state
        changed.status.since.CopyFrom(timestamp(self.now))
        self.commit("dispatcher", [Update(changed)])

    def set_availability(self, node_id: str, availability: Availability.ValueType) -> None:
        changed = copy_of(self.snapshot.nodes[node_id])
        changed.spec.availability = availability
        self.commit("api", [Update(changed)])

    def cut(self, node_id: str) -> None:
        """The managers cannot reach the host; its containers go on."""
        agent = self.agents[node_id]
        agent.reachable = False
        self.after(DOWN_AFTER, lambda: None if agent.reachable else self.set_node_state(node_id, NODE_STATE_DOWN))

    def heal(self, node_id: str) -> None:
        agent = self.agents[node_id]
        agent.reachable = True
        agent.back_at = self.now
        self.set_node_state(node_id, NODE_STATE_READY)
        for task_id, status in list(agent.tasks.items()):
            self.report(agent, task_id, status)
        for task_id in sorted({*agent.tasks, *(task.id for task in self.snapshot.tasks.on_node(node_id))}):
            self.agent_sees(node_id, task_id)

    def crash(self, node_id: str) -> None:
        """The host loses power: its containers are gone; the agent still knows of them when it comes back."""
        agent = self.agents[node_id]
        self.cut(node_id)
        for task_id in sorted(agent.running):
            self._end(agent, task_id, TASK_STATE_FAILED, "the host restarted")

    def remove_node(self, node_id: str) -> bool:
        """`node rm --force` of a node that is down; its host is never heard of again."""
        if self.snapshot.nodes[node_id].status.state != NODE_STATE_DOWN:
            return False
        del self.agents[node_id]
        self.commit("api", [Remove(Kind.NODE, node_id)])
        return True

    def recently_back(self, node_id: str) -> bool:
        """The host was cut off until now: what was replaced in the meantime is only just being stopped."""
        return self.now - self.agents[node_id].back_at < 5.0

    # -------------------------------------------------------------------------------------------------------- agents

    def agent_sees(self, node_id: str, task_id: str) -> None:
        """The agent's mirror of one task is up to date: it goes on with it."""
        agent = self.agents.get(node_id)
        if agent is None or not agent.reachable:
            return
        task = self.snapshot.tasks.get(task_id)
        if task is not None and task.status.state < TASK_STATE_ASSIGNED:
            return  # a global service's, whose node is not told of it yet
        if task is None or task.node_id != node_id:
            agent.running.discard(task_id)
            agent.tasks.pop(task_id, None)
            return
        if task.status.state >= TASK_STATE_COMPLETE and task_id not in agent.tasks:
            return
        if task_id not in agent.busy:
            self._schedule_step(agent, task_id)

    def _schedule_step(self, agent: Agent, task_id: str) -> None:
        agent.busy.add(task_id)
        self.after(self.rng.choice((0.005, 0.02, 0.1, 0.5)), lambda: self.agent_step(agent, task_id))

    def agent_step(self, agent: Agent, task_id: str) -> None:
        agent.busy.discard(task_id)
        task = self.snapshot.tasks.get(task_id)
        if task is None:
            agent.running.discard(task_id)
            return
        if agent.reachable:
            agent.desired[task_id] = task.desired_state
        status = agent.tasks.get(task_id)
        state = status.state if status is not None else 0
        wanted = agent.desired.get(task_id, 0)
        if not wanted or state >= TASK_STATE_COMPLETE:
            return
        if wanted >= TASK_STATE_SHUTDOWN:
            self._end(agent, task_id, TASK_STATE_SHUTDOWN, "")
            return
        following = next((step for step in _STEPS if step > state), None)
        if following is None or (state == TASK_STATE_READY and wanted == TASK_STATE_READY):
            return
        if following == TASK_STATE_PREPARING and self._is_bad(task):
            self._end(agent, task_id, TASK_STATE_REJECTED, "no such image")
        else:
            self._advance(agent, task, following)

    def _advance(self, agent: Agent, task: Task, following: TaskState.ValueType) -> None:
        if following == TASK_STATE_STARTING:
            agent.running.add(task.id)
            self.rules.started(self, task)
        made = TaskStatus(state=following, at=timestamp(self.now))
        if following == TASK_STATE_RUNNING:
            made.running_since.CopyFrom(timestamp(self.now))
            if self.rng.random() < self.crash_rate:
                self.after(self.rng.uniform(0.0, 10.0), lambda: self.container_ends(agent, task.id))
        agent.tasks[task.id] = made
        self.report(agent, task.id, made)
        if following != TASK_STATE_RUNNING:
            self._schedule_step(agent, task.id)

    def _is_bad(self, task: Task) -> bool:
        revision = self.snapshot.revisions.get(task.revision_id)
        bad = revision is not None and revision.spec.task.container.image in self.bad_images
        return bad or self.rng.random() < self.reject_rate

    def container_ends(self, agent: Agent, task_id: str) -> None:
        if task_id in agent.running:
            self._end(agent, task_id, TASK_STATE_FAILED, "exit code 1")

    def _end(self, agent: Agent, task_id: str, state: Any, error: str) -> None:
        agent.running.discard(task_id)
        made = TaskStatus(state=state, at=timestamp(self.now), error=error)
        before = agent.tasks.get(task_id)
        if before is not None and before.HasField("running_since"):
            made.running_since.CopyFrom(before.running_since)
        agent.tasks[task_id] = made
        self.report(agent, task_id, made)

    def report(self, agent: Agent, task_id: str, status: TaskStatus) -> None:
        if agent.reachable and agent.node_id in self.agents:
            self.commit("agent", [SetTaskStatus(task_id, status)])

    # --------------------------------------------------------------------------------------------------------- users

    def create_network(self, name: str) -> str:
        network_id = self.new_id()
        self.commit("api", [Create(Network(id=network_id, spec=NetworkSpec(name=name)))])
        return network_id

    def create_service(self, name: str, spec: ServiceSpec) -> str:
        spec = copy_of_spec(spec)
        spec.name = name
        service_id, revision_id = self.new_id(), self.new_id()
        result = self.commit(
            "api",
            [
                Create(ServiceRevision(id=revision_id, service_id=service_id, number=1, spec=spec)),
                Create(Service(id=service_id, spec=spec, revision_id=revision_id)),
            ],
        )
        assert not result.error_kind, result.error
        return service_id

    def update_service(self, service_id: str, change: Callable[[ServiceSpec], None]) -> None:
        service = self.snapshot.services[service_id]
        spec = copy_of(service).spec
        change(spec)
        self._api(services.update_service(self.snapshot, service, spec, service.meta.version, ids=self.new_id))

    def roll_back(self, service_id: str) -> None:
        service = self.snapshot.services[service_id]
        self._api(services.roll_back_service(self.snapshot, service, service.meta.version, self.now))

    def _api(self, changes: Sequence[Change]) -> None:
        result = self.commit("api", changes)
        assert not result.error_kind, result.error

    def scale(self, service_id: str, replicas: int) -> None:
        def change(spec: ServiceSpec) -> None:
            spec.mode.replicated.replicas = replicas

        self.update_service(service_id, change)

    def remove_service(self, service_id: str) -> None:
        service = copy_of(self.snapshot.services[service_id])
        service.removing = True
        self.commit("api", [Update(service)])

    # --------------------------------------------------------------------------------------------------------- views

    def tasks(self, service_id: str) -> list[Task]:
        return sorted(self.snapshot.tasks.of_service(service_id), key=lambda task: (task.slot, task.meta.created_index))

    def serving(self, service_id: str) -> list[Task]:
        return [
            task
            for task in self.tasks(service_id)
            if task.status.state == TASK_STATE_RUNNING and task.desired_state == TASK_STATE_RUNNING
        ]

    def containers(self) -> dict[str, str]:
        """Task id → node of every container that exists, whether the managers know or not."""
        return {task_id: agent.node_id for agent in self.agents.values() for task_id in agent.running}


def copy_of_spec(spec: ServiceSpec) -> ServiceSpec:
    copy = ServiceSpec()
    copy.CopyFrom(spec)
    return copy


def service_spec(replicas: int, image: str = "good", *ports: int) -> ServiceSpec:
    spec = ServiceSpec()
    spec.mode.replicated.replicas = replicas
    spec.task.container.image = image
    for port in ports:
        spec.ports.add(target_port=80, published_port=port)
    return spec
