"""The manager process: its parts, the order in which they begin, and the order in which they end.

It begins with the certificate and the store, opens the cluster port (the log's other members must reach this one before it
can catch up), starts the log, founds the cluster or joins it, and then opens the enrolment port, the local socket and the
metrics. It serves agents and people from then on, leader or not; what only a leader does begins and ends with the leadership.
It ends by sending its agents to other managers, handing leadership over, and closing its ports. A member of the log that
fails for good (a damaged disk, an entry of a newer version) ends the process with that reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
from importlib import import_module
from pathlib import Path

from swarm.cancellation import raise_if_cancelled
from swarm.clock import SystemClock
from swarm.errors import FailedPrecondition, HistoryCut, SwarmError
from swarm.identity import Peer, Role, write_atomically
from swarm.ids import id_source
from swarm.metrics_listener import MetricsListener
from swarm.retry import Backoff
from swarm.servers import RpcServer
from swarm.v1.enrolment_pb2_grpc import add_CertificatesServicer_to_server, add_EnrolmentServicer_to_server
from swarm.version import VERSION

from orchestrator.api.channels import PeerChannels
from orchestrator.api.control import ControlService
from orchestrator.api.forwarding import Forwarder
from orchestrator.consensus import Leadership, Member
from orchestrator.controllers.loop import ControlLoop
from orchestrator.dispatcher.service import DispatcherService
from orchestrator.identity.enrolment import CertificatesService, EnrolmentService
from orchestrator.identity.membership import join_host_port
from orchestrator.identity.revocation import check_history, is_demoted, is_revoked
from orchestrator.manager.backups import Backups
from orchestrator.manager.bootstrap import commit_bootstrap, is_founder
from orchestrator.manager.certificates import CertificateSource
from orchestrator.manager.data_key import data_key
from orchestrator.manager.images import AgentImages
from orchestrator.manager.leadership import LeaderWork
from orchestrator.manager.offline import commit_cut
from orchestrator.manager.options import RunOptions
from orchestrator.manager.roles import RoleKeeper
from orchestrator.manager.upgrades import FeatureKeeper
from orchestrator.raft import RaftConfig, RaftNode
from orchestrator.raft.admission import join_cluster, supported_level
from orchestrator.store import Store, Transactions, features
from orchestrator.web.latency import SchedulingLatency

log = logging.getLogger(__name__)

READY_TIMEOUT = 20.0  # seconds that a starting manager waits for a leader before it says that it serves
JOIN_TIMEOUT = 30.0  # seconds of one attempt to become a member; repeated until it worked
LEADERLESS_TIMEOUT = 6.0  # seconds after which a manager asks the others whether it still is one of them
ASK_TIMEOUT = 3.0  # seconds for another manager to say what it supports
_JOIN_BACKOFF = Backoff(first=0.5, maximum=10.0)


class Manager:
    """One manager. `run` until SIGTERM or SIGINT, or until it cannot go on."""

    def __init__(self, options: RunOptions) -> None:
        """Raises FailedPrecondition where this host has no identity, or not that of a manager, and HistoryCut where the swarm
        went on without this manager."""
        places = options.places
        if places.superseded.exists():
            raise HistoryCut(places.superseded.read_text().strip())
        self._options = options
        self._clock = SystemClock()
        self._rng = random.Random()
        self._tls = CertificateSource(places.certificates)
        me = self._tls().peer
        if me.role is not Role.MANAGER:
            raise FailedPrecondition(f"the certificate in {places.certificates.directory} is not that of a manager")
        self._node_id = me.name
        self._member = Member(me.name, join_host_port(options.advertise, options.cluster_port))
        self._stop = asyncio.Event()
        self._failure: SwarmError | None = None
        self.store = Store()
        self.consensus = self._make_consensus()
        self._transactions = Transactions(self.consensus, self.store, proposer=self._node_id, clock=self._clock)
        self._channels = PeerChannels(self._tls)
        self._images = AgentImages(options.agent_socket)
        self._dispatcher = DispatcherService(
            self.store,
            self.consensus,
            self._transactions,
            node_id=self._node_id,
            tls=self._tls,
            clock=self._clock,
            ids=id_source(),
            rng=self._rng,
        )
        self._leader_work = LeaderWork(
            self.consensus.leadership,
            self._prepare_to_lead,
            [
                self._control_loop,
                RoleKeeper(self.store, self._transactions, self.consensus, self._node_id).run,
                self._make_feature_keeper().run,
            ],
            monotonic=self._clock.monotonic,
            rng=self._rng,
        )
        self.consensus.on_leadership(self._leader_work.leadership_changed)
        self.consensus.on_leadership(self._say_leadership)
        self._cluster, self._enrolment, self._local = self._make_servers()

    def _make_consensus(self) -> RaftNode:
        places = self._options.places
        places.raft.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not is_founder(places) and not any(places.raft.iterdir()) and not self._options.join:
            raise FailedPrecondition(
                f"{places.raft} is empty, so this manager needs the address of another one to become a member (--join)"
            )
        config = RaftConfig(
            state_directory=places.raft,
            member=self._member,
            tls=self._tls,
            initial_members=(self._member,) if is_founder(places) else (),
            data_key=data_key(places),
            feature_level=features.SUPPORTED,
            required_level=lambda: features.level_of(self.store.snapshot().cluster),
        )
        node = RaftNode(config, self.store)
        node.on_failure(self._fail)
        return node

    def _make_servers(self) -> tuple[RpcServer, RpcServer, RpcServer]:
        """Cluster port, enrolment port and local socket, with their services."""
        cluster = RpcServer(
            is_revoked=self._is_revoked,
            is_demoted=lambda peer: is_demoted(
                self.store.snapshot(), peer, self._clock.wall(), leading=self.consensus.leadership().ready
            ),
        )
        enrolment, local = RpcServer(anonymous=True), RpcServer()
        channels = self._channels
        forwarder = Forwarder(self.consensus, lambda member: channels.to(member.address, member.node_id), rng=self._rng)
        control = ControlService(
            self.store,
            self._transactions,
            self.consensus,
            forwarder,
            resolve=self._images.resolve,
            agent_channel=channels.to_agent,
            clock=self._clock,
            ids=id_source(),
            rng=self._rng,
            node_id=self._node_id,
            version=VERSION,
            save_snapshot=Backups(self.consensus, self._options.places.manager).chunks,
            enrolment_port=self._options.enrolment_port,
        )
        joining = EnrolmentService(self.store, self._transactions, clock=self._clock, ids=id_source())
        renewing = CertificatesService(self.store, self._transactions, clock=self._clock)
        for server in (cluster, local):
            control.register(server)
        for server in (cluster, enrolment):
            forwarder.register(server, add_EnrolmentServicer_to_server, joining)
        forwarder.register(cluster, add_CertificatesServicer_to_server, renewing)
        self._dispatcher.register(cluster)
        self.consensus.register(cluster)
        return cluster, enrolment, local

    def _is_revoked(self, peer: Peer) -> bool:
        """Raises HistoryCut where that is why: who is told so stops."""
        snapshot = self.store.snapshot()
        check_history(snapshot, peer)
        return is_revoked(snapshot, peer, self._clock.wall())

    def _make_feature_keeper(self) -> FeatureKeeper:
        return FeatureKeeper(
            self.store,
            self._transactions,
            self.consensus.members,
            lambda member: supported_level(member, self._tls(), ASK_TIMEOUT),
            self._node_id,
        )

    async def _prepare_to_lead(self) -> None:
        """What a new cluster, or one whose history was cut, must hold before anything else."""
        places = self._options.places
        await commit_bootstrap(places, self.store, self._transactions)
        members = self.consensus.members()
        await commit_cut(places, self.store, self._transactions, members, self._clock.wall())

    async def _control_loop(self) -> None:
        loop = ControlLoop(self.store, self._transactions, clock=self._clock, new_id=id_source())
        await loop.run()

    def _say_leadership(self, leadership: Leadership) -> None:
        log.info("term %d: the leader is %s", leadership.term, leadership.leader_id or "not known")

    # ------------------------------------------------------------------------------------------------------------ running

    async def run(self) -> None:
        """Raises SwarmError where it cannot begin or go on."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: None)  # whoever started us may go
        options = self._options
        self._cluster.listen_tls(join_host_port(options.listen, options.cluster_port), self._tls)
        self._enrolment.listen_tls(join_host_port(options.listen, options.enrolment_port), self._tls)
        self._local.listen_unix(options.places.control_socket)
        metrics = self._make_metrics()
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._cluster.start()
            await self.consensus.start()
            coroutines = [self._dispatcher.run(), self._leader_work.run(), self._become_member(), self._stay_member()]
            if metrics is not None:
                await metrics.start()
                coroutines.append(metrics.latency.watch(self.store))
            tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
            await self._enrolment.start()
            await self._local.start()
            tasks.append(asyncio.create_task(self._announce_ready()))
            await self._until_stopped(tasks)
        finally:
            await self._end(tasks)
            if metrics is not None:
                await metrics.stop()

    async def _until_stopped(self, tasks: list[asyncio.Task[None]]) -> None:
        """Until a signal, a failure of the log, or of a task. Raises what failed."""
        stop = asyncio.create_task(self._stop.wait())
        waiting: set[asyncio.Task[None] | asyncio.Task[bool]] = {stop, *tasks}
        try:
            while not stop.done():
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done - {stop}:
                    task.result()  # becoming a member and announcing readiness end by themselves; the others raise
        finally:
            stop.cancel()
        if self._failure is not None:
            raise self._failure

    def _fail(self, failure: SwarmError) -> None:
        self._failure = failure
        self._stop.set()
        if isinstance(failure, HistoryCut):  # for good: a majority of those left behind must not form again and again
            try:
                write_atomically(self._options.places.superseded, f"{failure}\n".encode())
            except OSError as error:  # told so again after its next start
                log.error("that this manager is to stop for good cannot be written down: %s", error)

    async def _end(self, tasks: list[asyncio.Task[None]]) -> None:
        self._dispatcher.shut_down()
        await self.consensus.stop(transfer=self._failure is None)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(self._cluster.stop(), self._enrolment.stop(), self._local.stop())
        await self._channels.close()
        await self._images.close()

    async def _become_member(self) -> None:
        """Has this manager added to the log, or its new address noted, until that worked."""
        delays = _JOIN_BACKOFF.delays(self._rng)
        others = [address for address in self._options.join if address != self._member.address]
        while self._member not in self.consensus.members():
            try:
                if self.consensus.leadership().ready:  # it moved, and leads: alone, or elected since
                    await self.consensus.add_member(self._member, timeout=JOIN_TIMEOUT)
                elif others:
                    await join_cluster(
                        others, self._tls(), self._member, JOIN_TIMEOUT, feature_level=features.SUPPORTED
                    )
                else:
                    await asyncio.sleep(next(delays))
                    continue
                log.info("this manager is a member of the log, at %s", self._member.address)
                return
            except SwarmError as error:
                raise_if_cancelled()
                log.warning("this manager is not a member yet and asks again: %s", error)
                await asyncio.sleep(next(delays))

    async def _stay_member(self) -> None:
        """A member that hears of no leader for long may have been removed without noticing: demoted, and promoted again before
        its agent had ended it. It has itself added again; where it still is a member, that changes nothing."""
        changed = asyncio.Event()
        self.consensus.on_leadership(lambda _: changed.set())
        while True:
            changed.clear()
            leaderless = not self.consensus.leadership().leader_id
            try:
                async with asyncio.timeout(LEADERLESS_TIMEOUT if leaderless else None):
                    await changed.wait()
                continue
            except TimeoutError:
                known = [member.address for member in self.consensus.members()]
            others = [
                address for address in dict.fromkeys([*known, *self._options.join]) if address != self._member.address
            ]
            if not others:
                continue
            try:
                await join_cluster(others, self._tls(), self._member, JOIN_TIMEOUT, feature_level=features.SUPPORTED)
                log.info("after a time without a leader: this manager is a member of the log")
            except SwarmError as error:
                raise_if_cancelled()
                log.info("no leader is heard of, and none was found by asking: %s", error)

    async def _announce_ready(self) -> None:
        """Tells who started us that we serve: at once when the cluster's state is here and somebody leads."""
        if self._options.ready_fd is None:
            return
        _, watch = self.store.watch()
        with watch, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_TIMEOUT):
                while self.store.snapshot().cluster is None:
                    await watch.next()
        try:
            os.write(self._options.ready_fd, b"ready\n")
        except BrokenPipeError:
            log.info("who started this manager has gone meanwhile")
        finally:
            os.close(self._options.ready_fd)
        log.info("manager %s serves at %s", self._node_id, self._member.address)

    def _make_metrics(self) -> Metrics | None:
        options = self._options
        if not options.metrics:
            return None
        return Metrics(self, options.metrics, options.metrics_token)

    @property
    def node_id(self) -> str:
        return self._node_id

    @property
    def session_count(self) -> int:
        return self._dispatcher.session_count


class Metrics:
    """The page for Prometheus. Its library is imported when somebody asks first: it is large."""

    def __init__(self, manager: Manager, address: str, token_file: Path | None) -> None:
        self._manager = manager
        self.latency = SchedulingLatency(since=manager._clock.wall())
        self._listener = MetricsListener(
            address,
            self._page,
            load=lambda: import_module("orchestrator.web.metrics"),
            token_file=token_file,
            tls=manager._options.places.certificates,
        )

    def _page(self) -> bytes:
        from orchestrator.web.metrics import ManagerCollector, page

        manager = self._manager
        return page(
            ManagerCollector(
                manager.store, manager.consensus, manager.node_id, lambda: manager.session_count, self.latency
            )
        )

    async def start(self) -> None:
        await self._listener.start()

    async def stop(self) -> None:
        await self._listener.stop()
