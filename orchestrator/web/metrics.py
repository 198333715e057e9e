"""What a manager tells Prometheus.

Everything but the latencies is computed when it is asked for, from one snapshot of the store and the state of the log: no
counters to keep in step with the truth. `SchedulingLatency` watches the store for tasks that reach a node and tasks that run,
which a snapshot cannot tell afterwards; it counts what was committed while this manager ran.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from swarm.clock import seconds_of
from swarm.exposition import Family, Histogram, gauge
from swarm.v1 import types_pb2 as types

from orchestrator.consensus import Consensus
from orchestrator.store import ObjectChange, Snapshot, Store
from orchestrator.store.states import is_healthy, is_serving

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class ManagerCollector:
    """`sessions` gives the number of agents with a session at this manager."""

    def __init__(self, store: Store, consensus: Consensus, node_id: str, sessions: Callable[[], int]) -> None:
        self._store = store
        self._consensus = consensus
        self._node_id = node_id
        self._sessions = sessions

    def collect(self) -> Iterator[Family]:
        snapshot = self._store.snapshot()
        yield from services(snapshot)
        yield from tasks(snapshot)
        yield from nodes(snapshot)
        yield from self._raft()
        yield gauge("swarm_dispatcher_sessions", "Agents with a session at this manager.", self._sessions())
        yield gauge("swarm_store_index", "The index of the last entry in the store.", snapshot.index)

    def _raft(self) -> Iterator[Family]:
        status = self._consensus.status()
        leadership = self._consensus.leadership()
        yield gauge("swarm_raft_term", "The current term.", status.term)
        yield gauge("swarm_raft_is_leader", "1 where this manager leads.", leadership.is_leader)
        yield gauge("swarm_raft_has_leader", "1 where this manager knows a leader.", bool(status.leader_id))
        yield gauge("swarm_raft_commit_index", "The last committed entry.", status.commit_index)
        yield gauge("swarm_raft_applied_index", "The last applied entry.", status.applied_index)
        yield gauge("swarm_raft_members", "Members of the log.", len(status.members))
        reachable = Family(
            "swarm_raft_member_reachable", "1 where the member answers this manager.", labels=["node_id"]
        )
        for member in status.members:
            reachable.add([member.member.node_id], float(member.reachable))
        yield reachable


def services(snapshot: Snapshot) -> Iterator[Family]:
    """Services, and for each how many tasks are desired, running, healthy and serving."""
    yield gauge("swarm_services", "Services.", len(snapshot.services))
    help_texts = {
        "desired": "Tasks that the service wants.",
        "running": "Tasks of the service that run.",
        "healthy": "Tasks of the service that run and whose health check, where there is one, agrees.",
        "serving": "Tasks of the service that names and virtual IPs lead to.",
    }
    families = {
        word: Family(f"swarm_service_tasks_{word}", text, labels=["service"]) for word, text in help_texts.items()
    }
    for service in snapshot.services:
        of_service = list(snapshot.tasks.of_service(service.id))
        counts = {
            "desired": _desired(service, of_service),
            "running": sum(task.status.state == types.TASK_STATE_RUNNING for task in of_service),
            "healthy": sum(map(is_healthy, of_service)),
            "serving": sum(map(is_serving, of_service)),
        }
        for word, count in counts.items():
            families[word].add([service.spec.name], count)
    yield from families.values()


def _desired(service: types.Service, tasks_: Iterable[types.Task]) -> int:
    if service.removing:
        return 0
    if service.spec.mode.HasField("global"):  # one for each node that may have one: the controller's wish
        return sum(task.desired_state == types.TASK_STATE_RUNNING for task in tasks_)
    return int(service.spec.mode.replicated.replicas)


def tasks(snapshot: Snapshot) -> Iterator[Family]:
    """Tasks by what was observed of them."""
    found = Counter(task.status.state for task in snapshot.tasks)
    family = Family("swarm_tasks", "Tasks by observed state.", labels=["state"])
    for state in types.TaskState.values():
        if state not in (types.TASK_STATE_UNSPECIFIED, types.TASK_STATE_REMOVE):
            family.add([types.TaskState.Name(state).removeprefix("TASK_STATE_").lower()], found[state])
    yield family


def nodes(snapshot: Snapshot) -> Iterator[Family]:
    """Nodes by state and role."""
    found = Counter((node.status.state or types.NODE_STATE_UNKNOWN, node.role) for node in snapshot.nodes)
    family = Family("swarm_nodes", "Nodes by state and role.", labels=["state", "role"])
    for state in (types.NODE_STATE_UNKNOWN, types.NODE_STATE_READY, types.NODE_STATE_DOWN):
        for role in (types.NODE_ROLE_WORKER, types.NODE_ROLE_MANAGER):
            labels = [
                types.NodeState.Name(state).removeprefix("NODE_STATE_").lower(),
                types.NodeRole.Name(role).removeprefix("NODE_ROLE_").lower(),
            ]
            family.add(labels, found[state, role])
    yield family


class SchedulingLatency:
    """How long tasks wait: from their creation to a node, and to running."""

    def __init__(self) -> None:
        self._latency = Histogram(
            "swarm_task_scheduling_seconds",
            "Seconds from a task's creation until it was assigned to a node, and until it ran.",
            _SECONDS,
            label="step",
        )

    def collect(self) -> Iterator[Family]:
        yield self._latency.family()

    def observe(self, changes: Iterable[ObjectChange]) -> None:
        """Looks at what changed for tasks that took one of the steps."""
        for change in changes:
            if not isinstance(change.new, types.Task):
                continue
            before = change.old.status.state if isinstance(change.old, types.Task) else types.TASK_STATE_NEW
            for step, state in (("assigned", types.TASK_STATE_ASSIGNED), ("running", types.TASK_STATE_RUNNING)):
                if before < state <= change.new.status.state <= types.TASK_STATE_RUNNING:
                    self._latency.observe(max(0.0, _age(change.new)), step)

    async def watch(self, store: Store) -> None:
        """Follows the store until cancelled."""
        _, watch = store.watch()
        with watch:
            async for events in watch:
                if events.changes is not None:
                    self.observe(events.changes)


def _age(task: types.Task) -> float:
    return seconds_of(task.status.recorded_at) - seconds_of(task.meta.created_at)
