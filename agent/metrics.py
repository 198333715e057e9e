"""What Prometheus may ask of an agent: containers by state, session, heartbeats, start durations, image pulls.

What the agent knows anyway is read when somebody asks; only durations and counts of events are kept. prometheus-client is
imported when somebody asks first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

from swarm.errors import SwarmError
from swarm.histogram import Histogram
from swarm.metrics_listener import MetricsListener

from agent.images.interface import Image, ImageStore

if TYPE_CHECKING:
    from agent.node.membership import Membership

log = logging.getLogger(__name__)

START_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 15.0, 60.0)  # seconds


class AgentMetrics:
    def __init__(self) -> None:
        self._starts = Histogram(START_BUCKETS)
        self._ensured = 0
        self._failed = 0

    def task_started(self, seconds: float) -> None:
        """A task went from assigned to RUNNING in `seconds`."""
        self._starts.observe(seconds)

    def counting(self, images: ImageStore) -> ImageStore:
        """The same image store, whose `ensure` is counted."""
        counted = images.ensure

        async def ensure(
            reference: str, digest: str = "", auth: str = "", tell: Callable[[str], None] = lambda _: None
        ) -> Image:
            self._ensured += 1
            try:
                return await counted(reference, digest, auth, tell)
            except SwarmError:
                self._failed += 1
                raise

        images.ensure = ensure  # type: ignore[method-assign]
        return images

    async def serve(self, address: str, membership: Membership) -> MetricsListener | None:
        """Opens the listener on ADDR:PORT; None where it is off or taken, which is logged: a node works without."""
        if not address:
            return None
        listener = MetricsListener(
            address, lambda: self._page(membership), plain=True, load=lambda: import_module("prometheus_client")
        )
        try:
            await listener.start()
        except SwarmError as error:
            log.warning("no metrics are served: %s", error)
            return None
        return listener

    def _page(self, membership: Membership) -> bytes:
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry()
        registry.register(_Collector(self, membership))
        return generate_latest(registry)

    def collect(self, membership: Membership) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        member = membership.member
        tasks = GaugeMetricFamily("swarm_agent_tasks", "Tasks of this node by observed state.", labels=["state"])
        connected = GaugeMetricFamily("swarm_agent_session_connected", "1 while there is a session with a manager.")
        sessions = CounterMetricFamily("swarm_agent_sessions", "Sessions that began.")
        beats = CounterMetricFamily("swarm_agent_heartbeats", "Heartbeats sent.")
        waiting = GaugeMetricFamily("swarm_agent_statuses_unacknowledged", "Statuses that no manager has confirmed.")
        index = GaugeMetricFamily("swarm_agent_networks_applied_index", "Assignment index that the networks are at.")
        restarts = CounterMetricFamily(
            "swarm_agent_manager_restarts", "Times that the manager process ended by itself."
        )
        if member is not None:
            for state, count in member.tasks.by_state().items():
                tasks.add_metric([state], count)
            connected.add_metric([], bool(member.session.connected_to))
            sessions.add_metric([], member.session.started)
            beats.add_metric([], member.session.heartbeats)
            waiting.add_metric([], member.session.unacknowledged)
            index.add_metric([], member.networks.applied_index)
            if member.manager is not None:
                restarts.add_metric([], member.manager.restarts)
        yield from (tasks, connected, sessions, beats, waiting, index, restarts)
        starts = HistogramMetricFamily("swarm_agent_task_start_seconds", "From assignment to RUNNING.")
        starts.add_metric([], self._starts.buckets(), self._starts.total)
        images = CounterMetricFamily("swarm_agent_images_ensured", "Images asked for by tasks.", labels=["result"])
        images.add_metric(["ok"], self._ensured - self._failed)
        images.add_metric(["failed"], self._failed)
        yield from (starts, images)


class _Collector:
    def __init__(self, metrics: AgentMetrics, membership: Membership) -> None:
        self._metrics = metrics
        self._membership = membership

    def collect(self) -> Iterator[Any]:
        return self._metrics.collect(self._membership)
