"""`RaftNode`: a member of the log, as the asyncio side of the manager sees it.

The protocol runs on a thread of its own (`Core`); this is the other side of the glass. Calls go in as events or queued
proposals, answers come back in batches through `call_soon_threadsafe`. Every call has a deadline and always ends: with what
was asked for, or with an error that says what is known.

A failure of the tick thread (a damaged disk, an entry of a newer version, a broken promise of the protocol) is final: the
member stops taking part, each call fails with the reason, and `on_failure` tells the manager, which should end its process.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import fcntl
import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

from swarm.errors import FailedPrecondition, InternalError, InvalidArgument, NotLeader, SwarmError, Unavailable
from swarm.servers import RpcServer
from swarm.v1 import raft_pb2 as pb
from swarm.v1 import raft_pb2_grpc as rpc

from orchestrator.consensus import (
    Committed,
    Consensus,
    ConsensusStatus,
    Leadership,
    Member,
    MemberStatus,
    StateMachine,
)
from orchestrator.raft import membership
from orchestrator.raft.admission import MembershipService, leave_cluster
from orchestrator.raft.config import MAX_COMMAND_BYTES, RaftConfig
from orchestrator.raft.configurations import Change
from orchestrator.raft.core import Core
from orchestrator.raft.disk import LocalDirectory
from orchestrator.raft.engine import MemberNode
from orchestrator.raft.journal import Journal
from orchestrator.raft.presence import Presence
from orchestrator.raft.proposals import Outcome, Proposal
from orchestrator.raft.recovery import SnapshotSummary, export
from orchestrator.raft.sealing import sealer_from
from orchestrator.raft.service import RaftService
from orchestrator.raft.snapshots import SnapshotStore
from orchestrator.raft.transport import GrpcLinks

log = logging.getLogger(__name__)

T = TypeVar("T")

_TICK_WAIT = 0.1
_STOP_TIMEOUT = 5.0
_TRANSFER_ON_STOP = 1.0
_TICK_THREAD_NICE = -5
# Seconds that one Python thread may keep another waiting. The default of 5 ms is paid several times per committed write
# when the event loop is busy; 1 ms costs a few percent of throughput.
_SWITCH_INTERVAL = 0.001
# What a thread that stores a snapshot rests after each block: about as long as the block took. A thread that computes without a
# pause costs each of the others up to a switch interval whenever they have to wait for one another.
_BREATH = 0.0005
_GC_THRESHOLDS = (50_000, 20, 50)


class RaftNode(Consensus):
    """See `Consensus` for what each method promises."""

    def __init__(self, config: RaftConfig, machine: StateMachine) -> None:
        self.config = config
        self._machine = machine
        self._links = GrpcLinks(config.member.node_id, config.tls, config.clock, config.rng)
        self._presence = Presence(self._links.transmit, config.timings.heartbeat, config.clock.monotonic)
        self._core: Core | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = threading.Event()
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="raft-background")
        self._lock: IO[bytes] | None = None
        self._leadership = Leadership(0, "", False, False)
        self._configuration = pb.RaftConfiguration()
        self._on_leadership: list[Callable[[Leadership], None]] = []
        self._on_failure: list[Callable[[SwarmError], None]] = []
        self._on_members: list[Callable[[tuple[Member, ...]], None]] = []
        self._news = asyncio.Event()
        self._mail: collections.deque[tuple[Callable[..., None], tuple[Any, ...]]] = collections.deque()
        self._mail_scheduled = False
        self.failure: SwarmError | None = None

    def register(self, server: RpcServer) -> None:
        """Adds the Raft and membership services to the manager's server on the cluster port; before the server starts."""
        rpc.add_RaftServicer_to_server(RaftService(self._links), server.server)
        rpc.add_RaftMembershipServicer_to_server(MembershipService(self), server.server)

    # ---- life

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        sys.setswitchinterval(_SWITCH_INTERVAL)
        self._core = await asyncio.to_thread(self._load)
        # What was just restored lives long: the collector need not walk over it again and again (tick delays).
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        self._links.started(self._loop)
        self._presence.start()
        self._thread = threading.Thread(target=self._run, name="raft-tick", daemon=True)
        self._thread.start()

    def _load(self) -> Core:
        config = self.config
        directory = LocalDirectory(config.state_directory)
        self._lock_directory()
        sealer = sealer_from(config.data_key)
        journal = Journal(directory, membership.founding(config.initial_members), sealer=sealer)
        snapshots = self._links.snapshots = SnapshotStore(directory, sealer, breathe=_breathe)
        return Core(
            MemberNode(config.member.node_id, config.member.address),
            journal=journal,
            snapshots=snapshots,
            machine=self._machine,
            links=self._links,
            background=self._in_background,
            observer=self,
            timings=config.timings,
            compaction=config.compaction,
            clock=config.clock.monotonic,
            rng=config.rng,
            queue_size=config.queue_size,
        )

    def _lock_directory(self) -> None:
        self._lock = (self.config.state_directory / "lock").open("wb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise FailedPrecondition(
                f"another manager process uses {self.config.state_directory}; stop that one first"
            ) from error

    async def stop(self, *, transfer: bool = True) -> None:
        if self._core is None or self._thread is None:
            return
        if transfer and self._leadership.is_leader and len(membership.voters(self._configuration)) > 1:
            with contextlib.suppress(SwarmError):
                await self.transfer_leadership(None, timeout=_TRANSFER_ON_STOP)
        self._stopping.set()
        self._links.post(_nothing)
        await asyncio.to_thread(self._thread.join, _STOP_TIMEOUT)
        self._presence.stop()
        self._links.stopped()
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._flush_mail()
        if self._lock is not None:
            self._lock.close()

    def _run(self) -> None:
        """The tick thread."""
        assert self._core is not None
        core = self._core
        with contextlib.suppress(OSError):  # needs CAP_SYS_NICE; without it the thread competes like any other
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _TICK_THREAD_NICE)
        try:
            while not self._stopping.is_set():
                core.tick(_TICK_WAIT)
        except Exception as error:
            log.exception("this manager's Raft member stopped")
            failure = error if isinstance(error, SwarmError) else InternalError(f"the replicated log stopped: {error}")
            self.failure = failure
            self._to_loop(self._failed, failure)
        finally:
            core.stop()
            core.journal._destroy()

    def _failed(self, failure: SwarmError) -> None:
        self._set_leadership(Leadership(self._leadership.term, "", False, False))
        for callback in list(self._on_failure):
            callback(failure)

    def _in_background(self, work: Callable[[], Any], done: Callable[[Any, Exception | None], None]) -> None:
        def run() -> None:
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 – handed to whoever asked for the work
                self._links.post(done, None, error)
            else:
                self._links.post(done, result, None)

        self._executor.submit(run)

    # ---- from the tick thread to the event loop

    def _to_loop(self, action: Callable[..., None], *arguments: Any) -> None:
        """Runs `action` on the event loop. One wake-up serves all that came meanwhile."""
        self._mail.append((action, arguments))
        if not self._mail_scheduled:
            self._mail_scheduled = True
            assert self._loop is not None
            with contextlib.suppress(RuntimeError):  # the event loop is closed
                self._loop.call_soon_threadsafe(self._flush_mail)

    def _flush_mail(self) -> None:
        self._mail_scheduled = False
        while self._mail:
            action, arguments = self._mail.popleft()
            try:
                action(*arguments)
            except Exception:
                log.exception("news of the replicated log were not taken")  # what waits behind them is for others

    def disk_begins(self, peers: list[str], message: pb.RaftMessage) -> None:
        """From the core, on the tick thread."""
        self._presence.begin(peers, message)

    def disk_ended(self) -> None:
        """From the core, on the tick thread."""
        self._presence.end()

    def leadership_changed(self, leadership: Leadership) -> None:
        """From the core, on the tick thread."""
        self._to_loop(self._set_leadership, leadership)

    def configuration_changed(self, configuration: pb.RaftConfiguration) -> None:
        """From the core, on the tick thread."""
        self._links.removed = frozenset(configuration.removed)
        self._to_loop(self._set_configuration, configuration)

    def _set_leadership(self, leadership: Leadership) -> None:
        if leadership == self._leadership:
            return
        self._leadership = leadership
        self._announce()
        for callback in list(self._on_leadership):
            callback(leadership)

    def _set_configuration(self, configuration: pb.RaftConfiguration) -> None:
        self._configuration = configuration
        self._announce()
        for callback in list(self._on_members):
            callback(self.members())

    def _announce(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def _until(self, condition: Callable[[], bool], timeout: float, otherwise: str) -> None:
        """Waits for a change of leadership or members that makes `condition` true. Raises Unavailable."""
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    await self._news.wait()
        except TimeoutError:
            raise Unavailable(otherwise) from None

    # ---- writing and reading

    async def propose(self, command: bytes, *, timeout: float) -> Committed:
        if len(command) > MAX_COMMAND_BYTES:
            raise InvalidArgument(
                f"one write may have at most {MAX_COMMAND_BYTES >> 20} MiB, this one has {len(command)} bytes"
            )
        return await self._decided(command, timeout, lambda core, proposal: core.propose(proposal))

    async def _decided(self, command: bytes, timeout: float, begin: Callable[[Core, Proposal], None]) -> Committed:
        core = self._running()
        assert self._loop is not None
        future: asyncio.Future[Outcome] = self._loop.create_future()
        proposal = Proposal(
            command,
            self.config.clock.monotonic() + timeout,
            lambda outcome: self._to_loop(_resolve, future, outcome),
        )
        begin(core, proposal)
        # A timer of its own: `asyncio.timeout` costs as much as everything else here.
        timer = self._loop.call_later(timeout, lambda: _resolve(future, proposal.expire(core.obstacle)))
        try:
            outcome = await future
        except asyncio.CancelledError:
            proposal.expire()
            raise
        finally:
            timer.cancel()
        if isinstance(outcome, Committed):
            return outcome
        raise outcome

    async def read_barrier(self, *, timeout: float) -> int:
        core = self._running()
        index = await self._answered(
            lambda done: self._links.post(core.read, done),
            timeout,
            "no majority of managers confirmed in time that this one still leads; repeat later",
        )
        if index is None:
            raise NotLeader("this manager does not lead; ask another one")
        return int(index)

    async def _answered(self, ask: Callable[[Callable[[Any], None]], None], timeout: float, otherwise: str) -> Any:
        assert self._loop is not None
        future: asyncio.Future[Any] = self._loop.create_future()
        ask(lambda answer: self._to_loop(_resolve, future, answer))
        timer = self._loop.call_later(timeout, _refuse, future, otherwise)
        try:
            return await future
        finally:
            timer.cancel()

    def _running(self) -> Core:
        if self.failure is not None:
            raise Unavailable(f"this manager has stopped taking part: {self.failure}")
        if self._core is None or self._stopping.is_set():
            raise Unavailable("this manager is starting or stopping; nothing was written, repeat later")
        return self._core

    # ---- leadership

    def leadership(self) -> Leadership:
        return self._leadership

    def on_leadership(self, callback: Callable[[Leadership], None]) -> None:
        self._on_leadership.append(callback)

    def on_failure(self, callback: Callable[[SwarmError], None]) -> None:
        """`callback` is called when the member stops for a reason that it cannot mend; the process should end."""
        self._on_failure.append(callback)

    async def transfer_leadership(self, node_id: str | None, *, timeout: float) -> None:
        core = self._running()
        refused = await self._answered(
            lambda done: self._links.post(core.transfer_leadership, node_id, timeout, done),
            timeout + 1.0,
            "leadership was not handed over in time",
        )
        if refused is not None:
            raise refused

    # ---- membership

    def members(self) -> tuple[Member, ...]:
        """The members in force, voters and learners."""
        return tuple(Member(m.node_id, m.address) for m in self._configuration.members)

    def on_members(self, callback: Callable[[tuple[Member, ...]], None]) -> None:
        """`callback` is called at each change of `members()`."""
        self._on_members.append(callback)

    def is_voter(self, node_id: str) -> bool:
        return node_id in membership.voters(self._configuration)

    async def add_member(self, member: Member, *, timeout: float) -> None:
        """As `Consensus.add_member`: returns once the member has caught up and has its vote."""
        deadline = self.config.clock.monotonic() + timeout
        await self._change(lambda now: membership.with_learner(now, member), timeout)
        left = max(0.1, deadline - self.config.clock.monotonic())
        await self._until(
            lambda: self.is_voter(member.node_id) or not self._leadership.is_leader,
            left,
            f"manager {member.node_id} at {member.address} was added, but has not caught up yet; it gets its vote as soon "
            "as it has",
        )
        if not self.is_voter(member.node_id):
            raise Unavailable("leadership changed while the manager was being added; repeat it")

    async def remove_member(self, node_id: str, *, timeout: float) -> None:
        """As `Consensus.remove_member`. A leader that removes itself hands leadership over first, and asks its successor."""
        if node_id == self.config.member.node_id and self._leadership.is_leader:
            if len(membership.voters(self._configuration)) == 1:
                raise FailedPrecondition(f"manager {node_id} is the last one; a swarm cannot be without a manager")
            await self.transfer_leadership(None, timeout=timeout)
            await leave_cluster([m.address for m in self._others()], self.config.tls(), timeout)
            return
        core = self._running()
        await self._change(lambda now: membership.without(now, node_id, _answering(core)), timeout)

    def _others(self) -> list[Member]:
        return [member for member in self.members() if member.node_id != self.config.member.node_id]

    async def _change(self, change: Change, timeout: float) -> Committed:
        return await self._decided(
            b"", timeout, lambda core, proposal: self._links.post(core.change_configuration, change, proposal)
        )

    # ---- snapshots for people

    async def save_snapshot(self, path: Path, *, timeout: float) -> SnapshotSummary:
        """Writes the applied state to a file of this host, while everything goes on. Raises AlreadyExists, DiskFull."""
        core = self._running()
        view = await self._answered(
            lambda done: self._links.post(lambda: done(core.view())), timeout, "the snapshot could not be taken in time"
        )
        return await asyncio.to_thread(export, path, *view)

    # ---- what people see

    def status(self) -> ConsensusStatus:
        core = self._core
        if core is None:
            return ConsensusStatus("follower", 0, "", 0, 0, ())
        leader_id = self._leadership.leader_id
        reachable = core.in_touch()
        if (
            self._leadership.is_leader
        ):  # a new one gives everybody time to answer: a process that died has no connection
            reachable &= core.reachable()
        own_id = self.config.member.node_id
        members = tuple(
            MemberStatus(
                member=Member(m.node_id, m.address),
                reachable=m.node_id == own_id or m.node_id in reachable,
                leader=m.node_id == leader_id,
                match_index=core.last_index if m.node_id == own_id else core.match_index.get(MemberNode(m.node_id), 0),
                learner=m.learner,
            )
            for m in self._configuration.members
        )
        return ConsensusStatus(
            core.role.name.lower(), core.term, leader_id, core.commit_index, core.applied_index(), members
        )


def _answering(core: Core) -> frozenset[str]:
    """The members that answer this leader. A new leader gives everybody time for that: whoever has no connection is not there
    all the same."""
    return core.reachable() & (core.in_touch() | {core.own_id})


def _resolve(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)


def _refuse(future: asyncio.Future[Any], why: str) -> None:
    if not future.done():
        future.set_exception(Unavailable(why))


def _breathe() -> None:
    time.sleep(_BREATH)


def _nothing() -> None:
    """Wakes the tick thread."""
