"""The daemon: what runs whether or not this node is part of a swarm.

The local socket is there from the first moment. Everything else depends on the membership: `Membership` starts it at once
where the disk says that this node is a member, or when it becomes one.
"""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from swarm import footprint
from swarm.clock import Clock
from swarm.servers import RpcServer
from swarm.v1 import node_pb2_grpc

from agent.images import mounting
from agent.images.interface import ImageStore
from agent.metrics import AgentMetrics
from agent.network.interface import DataPlane
from agent.node import children
from agent.node.member import NodeParts
from agent.node.membership import Membership
from agent.node.options import Options
from agent.runtime.interface import Runtime
from agent.services.images import ImagesService
from agent.services.local_node import LocalNodeService
from agent.services.logs import NodeAgentService
from agent.tasks.host import Directories
from agent.tasks.worker import TaskWorker

log = logging.getLogger(__name__)

SWEEP_PERIOD = 5.0  # seconds between looks for orphans to reap
_UNDER_WAY = ("uploads", "images-temporary")  # below the state directory: what goes with the process that works on it


class Daemon:
    """Wires a node. `run` until `stop` is called or a signal arrives."""

    def __init__(
        self,
        options: Options,
        runtime: Runtime,
        images: ImageStore,
        new_data_plane: Callable[[], DataPlane],
        *,
        clock: Clock,
        rng: random.Random,
        use_registry: Callable[[str], None],
        manager_program: tuple[str, ...] = (),
    ) -> None:
        self._options = options
        self._metrics = AgentMetrics()
        parts = NodeParts(
            options=options,
            runtime=runtime,
            images=self._metrics.counting(images),
            new_data_plane=new_data_plane,
            clock=clock,
            rng=rng,
            use_registry=use_registry,
            on_started=self._metrics.task_started,
            manager_program=manager_program,
        )
        self.membership = Membership(parts, self._add_services)
        self._images = ImagesService(parts.images, options.state, self._containers_of)
        self._logs = NodeAgentService(self._worker, Directories(options.state, options.run).log, clock)
        self._local = LocalNodeService(self.membership)
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        self._stopped.set()

    async def run(self) -> None:
        """Raises SwarmError where the local socket cannot be opened or the node's own record cannot be read."""
        abandoned = [path for name in _UNDER_WAY for path in (self._options.state / name).glob("*")]
        server = RpcServer()
        self._add_services(server)
        node_pb2_grpc.add_LocalNodeServicer_to_server(self._local, server.server)
        server.listen_unix(self._options.node_socket)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        self.membership.resume()
        await server.start()
        endpoint = await self._metrics.serve(self._options.metrics, self.membership)
        reaping = asyncio.create_task(self._reap(abandoned))
        log.info("swarmd answers on %s; state in %s", self._options.node_socket, self._options.state)
        try:
            await self._stopped.wait()
        finally:
            log.info("swarmd ends; containers and their networks go on")
            reaping.cancel()
            if endpoint is not None:
                await endpoint.stop()
            await server.stop()
            await self.membership.close()

    def _add_services(self, server: RpcServer) -> None:
        """What both the local socket and the agent port serve."""
        node_pb2_grpc.add_ImagesServicer_to_server(self._images, server.server)
        node_pb2_grpc.add_NodeAgentServicer_to_server(self._logs, server.server)

    def _containers_of(self, digest: str) -> int:
        member = self.membership.member
        return member.tasks.using_image(digest) if member is not None else 0

    def _worker(self, task_id: str) -> TaskWorker | None:
        member = self.membership.member
        return member.tasks.worker(task_id) if member is not None else None

    async def _reap(self, abandoned: Iterable[Path]) -> None:
        """What is done beside, at first and then now and then, for as long as the daemon runs."""
        try:
            await asyncio.to_thread(_remove, abandoned)
        except OSError as error:
            log.warning("what an earlier process had under way stays: %s", error)
        reaper = children.OrphanReaper()
        while True:
            await asyncio.sleep(SWEEP_PERIOD)
            try:
                reaper.sweep(time.monotonic())
            except OSError as error:  # no descriptors, for a moment
                log.warning("orphans are looked for again in %g s: %s", SWEEP_PERIOD, error)
            footprint.give_back()


def _remove(abandoned: Iterable[Path]) -> None:
    """What an earlier process was killed over; it may be as large as an image, or a build's hundred thousands of files."""
    mounts = Path("/proc/self/mountinfo").read_text()
    for path in abandoned:
        if mounting.mount_points(mounts, path):
            log.warning("%s stays: a build that was killed left mounts below", path)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
