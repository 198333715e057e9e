"""A node while it is part of a swarm: session, tasks, networks, certificate, manager process and agent port, wired together.

`run` holds them all; when it is cancelled (the daemon ends) containers, networks, resolver and the manager process go on.
The order of a start matters: what an earlier process left is taken up from the disk first, and serves before any manager is
reachable; only then a session is opened.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swarm.cancellation import carried_through, raise_if_cancelled
from swarm.clock import Clock
from swarm.errors import DeadlineExceeded, ResourceExhausted, SwarmError, Unauthenticated
from swarm.identity import Peer, Role, TlsFiles
from swarm.names import CLUSTER_PORT
from swarm.renewal import Renewal
from swarm.retry import Backoff
from swarm.servers import RpcServer
from swarm.v1 import dispatcher_pb2 as dispatcher
from swarm.v1 import types_pb2 as types

from agent.images.interface import ImageStore
from agent.network.interface import DataPlane
from agent.node.callers import is_stranger
from agent.node.description import describe
from agent.node.manager_process import ManagerProcess
from agent.node.options import Options
from agent.node.record import NodeFile, NodeRecord
from agent.runtime.interface import Runtime
from agent.runtime.logs import last_line
from agent.session.client import SessionClient
from agent.session.gates import Gate
from agent.session.mirror import Mirror, Self
from agent.session.mirror_file import MirrorFile
from agent.session.networks import NetworkApplier
from agent.tasks.host import Directories, TaskHost
from agent.tasks.records import TaskRecords
from agent.tasks.supervisor import TaskSupervisor

log = logging.getLogger(__name__)

CORES_PER_START = (
    2  # a start keeps one busy (the OCI runtime), and the agent's own thread; more at once only take turns
)
ORDERS_TIMEOUT = 1.0  # seconds for the managers to order the tasks of a node that leaves to stop
DRAIN_TIMEOUT = 30.0  # seconds for tasks to stop as ordered; what is left then is stopped without draining
LEAVE_TIMEOUT = 120.0  # seconds for all tasks to end when the node leaves
REPORT_TIMEOUT = 3.0  # seconds for their last statuses to reach a manager
_BACKOFF = Backoff(first=0.5, maximum=10.0)
_RENEWAL_BACKOFF = Backoff(first=1.0, maximum=300.0)  # where a manager says that this node is no member


@dataclass(frozen=True)
class NodeParts:
    """The parts of a node that do I/O, and what they are given."""

    options: Options
    runtime: Runtime
    images: ImageStore
    new_data_plane: Callable[[], DataPlane]  # one for each membership: a stopped one does not start again
    clock: Clock
    rng: random.Random
    use_registry: Callable[[str], None]  # tells the image store the cluster's default registry
    on_started: Callable[[float], None] = lambda _: None  # seconds from assignment to RUNNING
    manager_program: tuple[str, ...] = ()  # in tests: something else than our manager


class Member:
    """One membership, from joining or from the daemon's start until it is left or the daemon ends."""

    def __init__(
        self, parts: NodeParts, file: NodeFile, record: NodeRecord, add_services: Callable[[RpcServer], None]
    ) -> None:
        self.record = record.with_boot()
        self._parts = parts
        self._options = parts.options
        self._file = file
        self._add_services = add_services
        self._boot_id = f"{parts.rng.getrandbits(128):032x}"
        self.tls = TlsFiles(self._options.certificates)
        self.mirror = Mirror()
        self._mirror_file = MirrorFile(self._options.state / "assignments")
        self._writing: asyncio.Task[None] | None = None  # assignments, to the disk
        self.session = SessionClient(
            self, lambda: self.record.managers, self.tls.read, clock=parts.clock, rng=_child(parts.rng)
        )
        self.data_plane = parts.new_data_plane()
        self.networks = NetworkApplier(self.data_plane, _child(parts.rng), self._networks_applied)
        self._watermark = Gate()
        cores = len(os.sched_getaffinity(0))
        self.tasks = TaskSupervisor(
            TaskHost(
                runtime=parts.runtime,
                images=parts.images,
                data_plane=self.data_plane,
                networks=self.networks,
                records=TaskRecords(self._options.state / "tasks"),
                sink=self,
                clock=parts.clock,
                directories=Directories(self._options.state, self._options.run),
                watermark=self._watermark,
                starts=asyncio.Semaphore(max(1, cores // CORES_PER_START)),
                node=self.description,
                last_line=last_line,
                on_started=parts.on_started,
            ),
            _child(parts.rng),
        )
        self.renewal = Renewal(
            self.tls, self._renewal_managers, clock=parts.clock, rng=_child(parts.rng), on_renewed=self._renewed
        )
        self.manager: ManagerProcess | None = None
        self._role_changed = asyncio.Event()
        self._roles_asked: tuple[Role, Role] | None = None  # for which a certificate was asked in this session
        self._manager_ids: frozenset[str] = frozenset()  # as this process heard last
        self._going = False  # it was asked to leave: a manager that begins now would be missed as soon as it is one
        self._leaving = False  # and its tasks were told to end
        self._in_step = False  # this session has sent assignments: its manager's indexes and ours are of one history
        self._heard = False  # assignments from a manager, not only from the disk
        self.ready = asyncio.Event()  # a session began and the networks that it named are in force
        self.problem = ""

    # ------------------------------------------------------------------------------------------------------- running

    @property
    def role(self) -> Role:
        """As the certificate says."""
        return self.tls.read().peer.role

    async def run(self) -> None:
        """Raises NodeRemoved where the managers say that this node is no member any more."""
        await self._write_boot()
        self._parts.use_registry(self.record.default_registry)
        server = await self._listen()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_manager())
                await self._take_up()
                group.create_task(self.networks.run())
                group.create_task(self.session.run())
                group.create_task(self._keep_certificate())
        finally:
            await self.tasks.close()
            await self.data_plane.stop()
            await self._written()
            if server is not None:
                await server.stop()

    async def _write_boot(self) -> None:
        """No session without the boot counter on the disk. Where that is full there will be room again; containers go on."""
        for wait in _BACKOFF.delays(self._parts.rng):
            try:
                # To its end also where the membership ends meanwhile: else the file came back after that.
                await carried_through(asyncio.to_thread(self._file.write, self.record))
                break
            except ResourceExhausted as error:
                raise_if_cancelled()
                self.problem = f"{error}; free some space"
                log.error("this node waits: %s", self.problem)
                await asyncio.sleep(wait)
        self.problem = ""

    async def _listen(self) -> RpcServer | None:
        """The agent port. A node works without it, only its logs and images cannot be reached from elsewhere."""
        server = RpcServer(is_revoked=lambda peer: is_stranger(peer, self._manager_ids, self._parts.clock.wall()))
        self._add_services(server)
        address = f"{self.record.listen_address}:{self.record.agent_port}"
        try:
            server.listen_tls(address, self.tls.read)
        except SwarmError as error:
            self.problem = f"managers cannot reach this node's logs and images: {error}"
            log.error("%s", self.problem)
            return None
        await server.start()
        return server

    async def _take_up(self) -> None:
        """Goes on with what an earlier agent process left."""
        problem = self.problem  # of the agent port: that stays
        for wait in _BACKOFF.delays(self._parts.rng):
            try:
                await self.data_plane.start()
                await self.tasks.prepare_recovery()
                loaded = await asyncio.to_thread(self._mirror_file.load)
                break
            except (SwarmError, OSError) as error:
                raise_if_cancelled()
                self.problem = str(error)
                log.error("this node cannot run tasks yet: %s", error)
                await asyncio.sleep(wait)
        self.problem = problem
        if loaded is not None:
            self.mirror = loaded
            self._spread()

    # --------------------------------------------------------------------------------------- what the session brings

    def hello(self) -> dispatcher.SessionHello:
        return dispatcher.SessionHello(
            boot_id=self._boot_id,
            boot_counter=self.record.boot_counter,
            description=self.description(),
            seen_epoch=self.mirror.epoch,
            seen_index=self.mirror.index,
            cluster_id=self.record.cluster_id,
        )

    def description(self) -> types.NodeDescription:
        return describe(self._options.hostname, self.record.address, self.record.agent_port, self._options.labels)

    def settings(self, settings: dispatcher.SessionSettings) -> None:
        before = self.record
        managers = [manager.address for manager in settings.managers]
        self._manager_ids = frozenset(manager.node_id for manager in settings.managers) or self._manager_ids
        self.record = before.with_settings(settings.node.number, managers, settings.default_registry)
        if self.record != before:
            try:
                self._file.write(self.record)
            except ResourceExhausted as error:  # it is in force; the next session brings it again
                log.error("%s; going on without", error)
            self._parts.use_registry(self.record.default_registry)
        if settings.node.id:
            self._look_at_role(settings.node)

    def _look_at_role(self, node: types.Node) -> None:
        """A role changes with the certificate. It is asked for when the managers want another role than ours, and again when
        they have carried that out: a manager that is demoted leaves their log first."""
        roles = (_role(node.spec.desired_role or node.role), _role(node.role or node.spec.desired_role))
        if not self._going and {self.role} != set(roles) and roles != self._roles_asked:
            log.info("this node is to become a %s", roles[0].value)
            self._roles_asked = roles
            self.renewal.request()

    async def assignments(self, message: dispatcher.Assignments) -> None:
        epoch = self.mirror.epoch
        parts = self.mirror.receive(message)
        if parts is None or self._leaving:
            return
        if self.mirror.epoch != epoch:
            self.networks.restart()
            self._watermark.restart()
        self._in_step = True
        was_behind = self._mirror_file.behind
        try:
            await self._write_down(parts)
        except ResourceExhausted as error:
            raise_if_cancelled()
            if not was_behind:
                log.error("%s; going on without", error)
        self._heard = True
        self._spread()
        self._networks_applied(self.networks.applied_index)

    async def _write_down(self, parts: Sequence[dispatcher.Assignments]) -> None:
        """One set after the other. On a slow disk a session does not wait for what the one before is still writing; the next
        set does, and the membership's end: the file would come back after it."""
        await self._written()
        self._writing = asyncio.create_task(asyncio.to_thread(self._mirror_file.append, parts, self.mirror))
        await asyncio.shield(self._writing)

    async def _written(self) -> None:
        if self._writing is not None:
            await asyncio.wait({self._writing})

    def _spread(self) -> None:
        """Networks first: tasks wait for theirs, and others wait for our acknowledgement."""
        if self._leaving:
            return  # all tasks were told to end meanwhile: nobody would tell those that come now
        mirror = self.mirror
        me = Self(self.record.node_id, self.record.number, self.record.address)
        self.networks.submit(mirror.revision, mirror.index, lambda: mirror.network_view(me))
        self.tasks.apply(mirror)

    def _networks_applied(self, index: int) -> None:
        if self._in_step:
            self.session.networks_applied(index)
        if self._heard and index >= self.mirror.index:
            self.ready.set()

    def watermark(self, index: int) -> None:
        self._watermark.advance(index)

    def session_over(self) -> None:
        self._roles_asked = None
        self._in_step = False
        self.session.networks_applied(0)
        self.mirror.drop_parts()

    def status(self, task_id: str, status: types.TaskStatus, *, urgent: bool) -> None:
        self.session.status(task_id, status, urgent=urgent)

    def forgotten(self, task_id: str) -> None:
        if not self._leaving:  # the managers still wait for the last statuses of a node that leaves
            self.session.forgotten(task_id)

    # ------------------------------------------------------------------------------------- certificate and manager

    def _renewal_managers(self) -> Sequence[str]:
        first = [self.session.connected_to] if self.session.connected_to else []
        return list(dict.fromkeys([*first, *self.record.managers]))

    async def _renewed(self, peer: Peer) -> None:
        self._role_changed.set()

    async def _keep_certificate(self) -> None:
        for wait in _RENEWAL_BACKOFF.delays(self._parts.rng):
            try:
                await self.renewal.run()
            except Unauthenticated as error:
                raise_if_cancelled()
                # Whether this node was removed is for its session to say: one manager alone may just lag behind.
                log.error("the certificate was not renewed and will be tried again: %s", error)
            await asyncio.sleep(wait)
            self.renewal.request()

    async def _keep_manager(self) -> None:
        """Runs the manager process while the certificate says that this node is a manager."""
        while True:
            self._role_changed.clear()
            if await self._is_manager() and not self._going:
                self.manager = ManagerProcess(
                    self._options,
                    self.manager_arguments,
                    _child(self._parts.rng),
                    **({"program": self._parts.manager_program} if self._parts.manager_program else {}),
                )
                running = asyncio.create_task(self.manager.run())
                try:
                    while await self._is_manager():
                        await self._role_changed.wait()
                        self._role_changed.clear()
                    await self.stop_manager(self.manager)
                    await asyncio.to_thread(shutil.rmtree, self._options.state / "manager", True)
                finally:
                    running.cancel()
                    await asyncio.gather(running, return_exceptions=True)
                self.manager = None
            await self._role_changed.wait()

    async def _is_manager(self) -> bool:
        """Whether the certificate says so. Where it is damaged, or cannot be read for a moment, as without descriptors,
        everything goes on as it is until it can."""
        delays = _BACKOFF.delays(self._parts.rng)
        while True:
            try:
                return self.role is Role.MANAGER
            except SwarmError as error:
                log.error("whether this node is a manager cannot be looked up and is tried again: %s", error)
                await asyncio.sleep(next(delays))

    async def stop_manager(self, manager: ManagerProcess) -> None:
        """Tried again where descriptors are lacking for a moment: a demoted manager must not go on."""
        for wait in _BACKOFF.delays(self._parts.rng):
            try:
                await manager.stop()
                return
            except OSError as error:
                raise_if_cancelled()
                log.error("the manager cannot be stopped and is tried again: %s", error)
                await asyncio.sleep(wait)

    def manager_arguments(self) -> list[str]:
        """The options of `orchestrator.manager run` on this node."""
        options, own = self._options, cluster_address(self.record.address)
        return [
            "--state-dir", str(options.state),
            "--run-dir", str(options.run),
            "--listen", self.record.listen_address,
            "--advertise", self.record.address,
            "--join", ",".join(address for address in self.record.managers if address != own),
            "--metrics", options.manager_metrics,
        ]  # fmt: skip

    # ------------------------------------------------------------------------------------------------------ leaving

    async def stop_tasks(self, *, force: bool = False) -> None:
        """Ends and removes all tasks, and lets the managers hear of it. Raises DeadlineExceeded, where it is not by force: then
        the node stays."""
        self._going = True
        self.session.leave()
        try:
            await self._drain_tasks()
            self._leaving = True
            await self._remove_tasks(force)
            await self._last_statuses()
        except BaseException:
            self._going = self._leaving = False
            self._role_changed.set()
            self.session.leave(False)
            raise

    async def _remove_tasks(self, force: bool) -> None:
        try:
            await self.tasks.remove_all(LEAVE_TIMEOUT)
        except DeadlineExceeded:
            if not force:
                raise
            log.warning("leaving although not all tasks have ended")

    async def _last_statuses(self) -> None:
        try:
            async with asyncio.timeout(REPORT_TIMEOUT):
                while self.session.unacknowledged and self.session.connected_to:  # noqa: ASYNC110 – rare and bounded
                    await asyncio.sleep(0.05)
        except TimeoutError:
            log.warning("the managers did not confirm the last statuses of this node's tasks")

    async def _drain_tasks(self) -> None:
        """To the managers this node is down now: they replace its tasks and order these to stop, which then drain as ever, also
        while the session goes to another manager."""
        now = self._parts.clock.monotonic
        ordered_until = now() + ORDERS_TIMEOUT
        drained_until = now() + DRAIN_TIMEOUT
        while self.session.started and len(self.tasks):
            if now() >= (drained_until if self.tasks.stopping else ordered_until):
                return
            await asyncio.sleep(0.05)


def _role(role: types.NodeRole.ValueType) -> Role:
    return Role.MANAGER if role == types.NODE_ROLE_MANAGER else Role.WORKER


def cluster_address(address: str) -> str:
    """HOST:PORT of the cluster port of a manager at `address`."""
    return f"[{address}]:{CLUSTER_PORT}" if ":" in address else f"{address}:{CLUSTER_PORT}"


def _child(rng: random.Random) -> random.Random:
    return random.Random(rng.getrandbits(64))
