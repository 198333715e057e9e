"""What a manager tells Prometheus.

Everything but the latencies is computed when it is asked for, from one snapshot of the store and the state of the log: no
counters to keep in step with the truth. Latencies are counted by `latency`. This module is imported when somebody asks first,
because Prometheus' library comes with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from swarm.v1 import types_pb2 as types

from orchestrator.consensus import Consensus
from orchestrator.store import Snapshot, Store
from orchestrator.store.states import is_healthy, is_serving
from orchestrator.web.latency import SchedulingLatency


class ManagerCollector(Collector):
    """`sessions` gives the number of agents with a session at this manager."""

    def __init__(
        self, store: Store, consensus: Consensus, node_id: str, sessions: Callable[[], int], latency: SchedulingLatency
    ) -> None:
        self._store = store
        self._consensus = consensus
        self._node_id = node_id
        self._sessions = sessions
        self._latency = latency

    def collect(self) -> Iterator[Metric]:
        snapshot = self._store.snapshot()
        yield from services(snapshot)
        yield from tasks(snapshot)
        yield from nodes(snapshot)
        yield from self._raft()
        yield _gauge("swarm_dispatcher_sessions", "Agents with a session at this manager.", self._sessions())
        yield _gauge("swarm_store_index", "The index of the last entry in the store.", snapshot.index)
        scheduling = HistogramMetricFamily(
            "swarm_task_scheduling_seconds",
            "Seconds from a task's creation until it was assigned to a node, and until it ran.",
            labels=["step"],
        )
        for step, counted in self._latency.steps.items():
            scheduling.add_metric([step], counted.buckets(), counted.total)
        yield scheduling

    def _raft(self) -> Iterator[GaugeMetricFamily]:
        status = self._consensus.status()
        leadership = self._consensus.leadership()
        yield _gauge("swarm_raft_term", "The current term.", status.term)
        yield _gauge("swarm_raft_is_leader", "1 where this manager leads.", leadership.is_leader)
        yield _gauge("swarm_raft_has_leader", "1 where this manager knows a leader.", bool(status.leader_id))
        yield _gauge("swarm_raft_commit_index", "The last committed entry.", status.commit_index)
        yield _gauge("swarm_raft_applied_index", "The last applied entry.", status.applied_index)
        yield _gauge("swarm_raft_members", "Members of the log.", len(status.members))
        reachable = GaugeMetricFamily(
            "swarm_raft_member_reachable", "1 where the member answers this manager.", labels=["node_id"]
        )
        for member in status.members:
            reachable.add_metric([member.member.node_id], float(member.reachable))
        yield reachable


def services(snapshot: Snapshot) -> Iterator[GaugeMetricFamily]:
    """Services, and for each how many tasks are desired, running, healthy and serving."""
    yield _gauge("swarm_services", "Services.", len(snapshot.services))
    help_texts = {
        "desired": "Tasks that the service wants.",
        "running": "Tasks of the service that run.",
        "healthy": "Tasks of the service that run and whose health check, where there is one, agrees.",
        "serving": "Tasks of the service that names and virtual IPs lead to.",
    }
    families = {
        word: GaugeMetricFamily(f"swarm_service_tasks_{word}", text, labels=["service"])
        for word, text in help_texts.items()
    }
    counts: dict[str, Counter[str]] = {}  # by name: one that is being removed may stand beside its successor
    for service in snapshot.services:
        of_service = list(snapshot.tasks.of_service(service.id))
        counts.setdefault(service.spec.name, Counter()).update(
            desired=_desired(service, of_service),
            running=sum(task.status.state == types.TASK_STATE_RUNNING for task in of_service),
            healthy=sum(map(is_healthy, of_service)),
            serving=sum(map(is_serving, of_service)),
        )
    for name, counted in counts.items():
        for word, family in families.items():
            family.add_metric([name], counted[word])
    yield from families.values()


def _desired(service: types.Service, tasks_: Iterable[types.Task]) -> int:
    if service.removing:
        return 0
    if service.spec.mode.HasField("global"):  # one for each node that may have one: the controller's wish
        return sum(task.desired_state == types.TASK_STATE_RUNNING for task in tasks_)
    return int(service.spec.mode.replicated.replicas)


def tasks(snapshot: Snapshot) -> Iterator[GaugeMetricFamily]:
    """Tasks by what was observed of them."""
    found = Counter(task.status.state for task in snapshot.tasks)
    family = GaugeMetricFamily("swarm_tasks", "Tasks by observed state.", labels=["state"])
    for state in types.TaskState.values():
        if state not in (types.TASK_STATE_UNSPECIFIED, types.TASK_STATE_REMOVE):
            family.add_metric([types.TaskState.Name(state).removeprefix("TASK_STATE_").lower()], found[state])
    yield family


def nodes(snapshot: Snapshot) -> Iterator[GaugeMetricFamily]:
    """Nodes by state and role."""
    found = Counter((node.status.state or types.NODE_STATE_UNKNOWN, node.role) for node in snapshot.nodes)
    family = GaugeMetricFamily("swarm_nodes", "Nodes by state and role.", labels=["state", "role"])
    for state in (types.NODE_STATE_UNKNOWN, types.NODE_STATE_READY, types.NODE_STATE_DOWN):
        for role in (types.NODE_ROLE_WORKER, types.NODE_ROLE_MANAGER):
            labels = [
                types.NodeState.Name(state).removeprefix("NODE_STATE_").lower(),
                types.NodeRole.Name(role).removeprefix("NODE_ROLE_").lower(),
            ]
            family.add_metric(labels, found[state, role])
    yield family


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))


def page(collector: ManagerCollector) -> bytes:
    """What Prometheus reads: the collector's metrics, and CPU and memory of this process."""
    registry = CollectorRegistry()
    registry.register(collector)
    ProcessCollector(registry=registry)
    return generate_latest(registry)
