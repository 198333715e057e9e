"""What Prometheus may ask of an agent: containers by state, session, heartbeats, start durations, image pulls.

What the agent knows anyway is read when somebody asks; only durations and counts of events are kept. prometheus-client is
imported when the listener is opened, and nothing is imported where metrics are off.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from swarm.errors import SwarmError

from agent.images.interface import Image, ImageStore

if TYPE_CHECKING:
    from agent.node.membership import Membership

log = logging.getLogger(__name__)

START_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 15.0, 60.0)  # seconds


class Endpoint:
    """An open metrics listener."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class AgentMetrics:
    def __init__(self) -> None:
        self._starts = [0] * (len(START_BUCKETS) + 1)
        self._start_seconds = 0.0
        self._ensured = 0
        self._failed = 0

    def task_started(self, seconds: float) -> None:
        """A task went from assigned to RUNNING in `seconds`."""
        self._start_seconds += seconds
        for position, bound in enumerate(START_BUCKETS):
            if seconds <= bound:
                self._starts[position] += 1
                return
        self._starts[-1] += 1

    def counting(self, images: ImageStore) -> ImageStore:
        """The same image store, whose `ensure` is counted."""
        counted = images.ensure

        async def ensure(reference: str, digest: str = "", auth: str = "") -> Image:
            self._ensured += 1
            try:
                return await counted(reference, digest, auth)
            except SwarmError:
                self._failed += 1
                raise

        images.ensure = ensure  # type: ignore[method-assign]
        return images

    def serve(self, address: str, membership: Membership) -> Endpoint | None:
        """Opens the listener on ADDR:PORT; None where it is off or taken, which is logged: a node works without."""
        if not address:
            return None
        from prometheus_client import CollectorRegistry, start_http_server

        registry = CollectorRegistry()
        registry.register(_Collector(self, membership))
        host, _, port = address.rpartition(":")
        try:
            server, _ = start_http_server(int(port), host.strip("[]"), registry)
        except OSError as error:
            log.warning("no metrics are served on %s: %s", address, error.strerror)
            return None
        return Endpoint(server)

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
        total, buckets = 0, []
        for bound, count in zip((*map(str, START_BUCKETS), "+Inf"), self._starts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        starts.add_metric([], buckets, self._start_seconds)
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
