"""The dispatcher of one manager: its sessions, their mirrors, and whom it reports to.

`Dispatcher` is the hub between three sides. The store: each batch of events moves the mirrors and goes to the sessions that
it concerns. The agents: sessions begin, report and end (`sessions.py`). The leadership: on the leader an `Uplink` judges and
writes (`leader.py`), on a follower it relays (`relay.py`); when the leadership changes the uplink is replaced, and all
sessions are announced to the new one without the agents noticing. A manager that hears no leader for two heartbeat periods
ends its sessions, so that agents find another one well before they would be called down.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from swarm.cancellation import cancelled
from swarm.clock import Clock, duration, seconds_of
from swarm.ids import IdSource
from swarm.v1 import dispatcher_pb2 as dispatcher
from swarm.v1 import types_pb2 as types

from orchestrator.consensus import Leadership
from orchestrator.dispatcher.assignments import MirrorDiff, Mirrors
from orchestrator.dispatcher.liveness import LEADERLESS_CHECKS, LeaderContact, heartbeat_period
from orchestrator.dispatcher.outbox import Outbox
from orchestrator.dispatcher.pulse import Pulse
from orchestrator.dispatcher.session import NO_MANAGER, Session
from orchestrator.dispatcher.statuses import StatusQueue
from orchestrator.store import Events, Kind, Snapshot, Store, Watch

log = logging.getLogger(__name__)

UPLINK_RETRY = 0.5  # seconds after an uplink failed


class Uplink(Protocol):
    """Where this manager's sessions are accounted for."""

    async def run(self) -> None:
        """Does its work until cancelled."""
        ...

    def began(self, session: Session, *, resumed: bool) -> None:
        """A session began; `resumed`: it did so before this uplink existed."""
        ...

    def ended(self, session: Session) -> None: ...

    def leaving(self, session: Session) -> None:
        """The node said in this session that it leaves the swarm."""
        ...

    def alive(self, node_id: str) -> None: ...

    def programmed(self, node_id: str, index: int) -> None:
        """The node holds everything up to `index`."""
        ...

    def moved(self, diff: MirrorDiff | None) -> None:
        """The mirrors moved; None: they were made anew."""
        ...

    def reported(self) -> None:
        """There is something in the status queue."""
        ...


MakeUplink = Callable[["Dispatcher", Leadership, str], Uplink | None]


class Dispatcher:
    """Built before the server starts; `run` for as long as the manager lives.

    `make_uplink(dispatcher, leadership, previous_leader)` makes the uplink that fits a leadership: None where nobody leads.
    """

    def __init__(
        self, store: Store, *, node_id: str, leadership: Callable[[], Leadership], make_uplink: MakeUplink,
        clock: Clock, ids: IdSource,
    ) -> None:  # fmt: skip
        self.node_id = node_id
        self.clock = clock
        self.pulse = Pulse()
        self.statuses = StatusQueue()
        self._store = store
        self._ids = ids
        self._leadership = leadership
        self._make_uplink = make_uplink
        self._mirrors = Mirrors(store.snapshot())
        self._sessions: dict[str, Session] = {}
        self._by_node: dict[str, set[str]] = {}
        self._uplink: Uplink | None = None
        self._leadership_changed = asyncio.Event()
        self._leader_contact = LeaderContact()
        self.dismissed = False  # the leader says that this node is no manager any more
        self._period_from_leader: float | None = None
        self._watermark = 0
        self._watch: Watch | None = None

    # --------------------------------------------------------------------------------------------------- what is known

    @property
    def snapshot(self) -> Snapshot:
        """What the sessions are served from."""
        return self._mirrors.snapshot

    def store_snapshot(self) -> Snapshot:
        """The newest state, which the sessions may not have been served yet."""
        return self._store.snapshot()

    @property
    def mirrors(self) -> Mirrors:
        return self._mirrors

    @property
    def position(self) -> tuple[int, int]:
        """(epoch, index) of what the sessions are served from."""
        cluster = self.snapshot.cluster
        return (cluster.epoch if cluster is not None else 0, self._store.snapshot().index)

    def catch_up(self) -> int:
        """Takes in what the store has published, and returns the index that the mirrors stand for: that of the last entry,
        also where it changed nothing. (Managers must agree on it: an agent refuses what is older than it has seen.)"""
        index = self._store.snapshot().index
        events = self._watch.take() if self._watch is not None else None
        if events is not None:
            self._move(events)
        return max(index, self._mirrors.index)

    @property
    def session_count(self) -> int:
        return len(self._sessions)

    @property
    def period(self) -> float:
        """The heartbeat period in seconds: the leader's word, else what it will be."""
        if self._period_from_leader is not None:
            return self._period_from_leader
        return period_of(self.snapshot)

    @property
    def has_leader(self) -> bool:
        """Whether a leader was heard within the last two heartbeat periods."""
        return self._leader_contact.is_fresh(self.clock.monotonic(), self.period)

    def was_removed(self, node_id: str) -> bool:
        """Whether the node was once a member and is none any more. Only certain where the cluster says so: a replica that is
        behind does not know new nodes either."""
        cluster = self.snapshot.cluster
        return cluster is not None and any(revoked.node_id == node_id for revoked in cluster.revoked_nodes)

    # --------------------------------------------------------------------------------------------------- the agents' side

    def begin(self, node_id: str, hello: dispatcher.SessionHello) -> Session:
        """An admitted agent gets its session; an earlier one of the same agent process on this manager ends."""
        session_id = f"{int(self.clock.wall() * 1000):013x}-{self._ids()}"
        settings = self._settings(node_id)
        start = dispatcher.SessionStart(session_id=session_id, settings=settings)
        session = Session(node_id, session_id, hello, Outbox(start, lambda: self._complete(node_id)), settings=settings)
        session.to_program = self._mirrors.index
        for other in [self._sessions[id_] for id_ in self._by_node.get(node_id, ())]:
            if other.hello.boot_id == hello.boot_id:
                other.outbox.end(dispatcher.SESSION_END_REASON_UNSPECIFIED, "the agent opened another session")
        self._sessions[session_id] = session
        self._by_node.setdefault(node_id, set()).add(session_id)
        if self._watermark:
            session.outbox.watermark(self._watermark)
        if self._uplink is not None:
            self._uplink.began(session, resumed=False)
        return session

    def finish(self, session: Session) -> None:
        """The stream of a session is over."""
        if self._sessions.pop(session.session_id, None) is None:
            return
        remaining = self._by_node[session.node_id]
        remaining.discard(session.session_id)
        if not remaining:
            del self._by_node[session.node_id]
        self.statuses.forget(session.reporter)
        if self._uplink is not None:
            self._uplink.ended(session)

    def alive(self, session: Session) -> None:
        if self._uplink is not None and session.session_id in self._sessions:
            self._uplink.alive(session.node_id)

    def leaving(self, session: Session) -> None:
        """The node of this session leaves the swarm."""
        session.leaving = True
        if self._uplink is not None and session.session_id in self._sessions:
            self._uplink.leaving(session)

    def report(self, session: Session, batch: dispatcher.StatusBatch) -> None:
        """Statuses of an agent. Raises ResourceExhausted."""
        # The queue holds one status of a task: what a stranger says must not take the place of its own node's word.
        tasks = self._store.snapshot().tasks
        own = [
            update
            for update in batch.updates
            if (task := tasks.get(update.task_id)) is None or task.node_id in ("", session.node_id)
        ]
        self.statuses.offer(session.reporter, batch.sequence, session.node_id, own)
        if self._uplink is not None:
            self._uplink.reported()

    def programmed(self, session: Session, index: int) -> None:
        """An agent has put everything up to `index` into its tables."""
        session.acknowledged = max(session.acknowledged, index)
        if self._uplink is not None:
            self._uplink.programmed(session.node_id, session.programmed(self._mirrors.index))

    def sessions(self) -> list[Session]:
        return list(self._sessions.values())

    # --------------------------------------------------------------------------------------------------- the leader's side

    def leader_alive(self, period: float | None = None) -> None:
        """There is a leader, now. `period`: the heartbeat period that it chose."""
        self.dismissed = False
        had_one = self.has_leader
        self._leader_contact.heard(self.clock.monotonic())
        if period is not None and period != self._period_from_leader:
            self._period_from_leader = period
            self._refresh_settings()
        if not had_one:
            self.pulse.beat()

    def dismiss(self) -> None:
        """The leader refuses this manager, since the node was demoted or removed: its own agent must hear of that, and no agent
        should wait here until the leader counts as lost."""
        self.dismissed = True
        self.end_all(dispatcher.SESSION_END_REASON_NO_LEADER, NO_MANAGER)

    def acknowledge(self, sequences: dict[str, int]) -> None:
        """Statuses of these reporters were committed."""
        for reporter, sequence in sequences.items():
            session = self._sessions.get(reporter.removeprefix("session/"))
            if session is not None:
                session.outbox.acknowledge(sequence)

    def announce_watermark(self, index: int) -> None:
        """All live nodes hold everything up to `index`: told to the agents that are stopping a task."""
        if index <= self._watermark:
            return
        self._watermark = index
        for session in self._sessions.values():
            if self._mirrors.is_stopping(session.node_id):
                session.outbox.watermark(index)

    def end_session(self, session_id: str, end: dispatcher.SessionEnd) -> None:
        """The leader ends a session of this manager."""
        session = self._sessions.get(session_id)
        if session is not None:
            session.outbox.end(end.reason, end.message)

    def end_all(self, reason: dispatcher.SessionEndReason.ValueType, message: str) -> None:
        for session in self._sessions.values():
            session.outbox.end(reason, message)

    # ---------------------------------------------------------------------------------------------------------- the loops

    def leadership_changed(self, _: Leadership | None = None) -> None:
        """To be called at each change of leadership, and when a leader's address may have changed."""
        self._leadership_changed.set()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_store())
            group.create_task(self._follow_leadership())
            group.create_task(self._watch_leader())

    async def _follow_store(self) -> None:
        snapshot, watch = self._store.watch()
        with watch:
            self._watch = watch
            self._move(Events(snapshot, None))
            async for events in watch:
                self._move(events)

    def _move(self, events: Events) -> None:
        keys = None if events.changes is None else [(change.kind, change.id) for change in events.changes]
        diff = self._mirrors.apply(events.snapshot, keys)
        if diff is None:
            for session in self._sessions.values():
                session.to_program = self._mirrors.index
                session.outbox.resynchronise()
        else:
            self._distribute(diff)
        if keys is None or any(kind in (Kind.CLUSTER, Kind.NODE) for kind, _ in keys):
            self._refresh_settings()
            self._end_removed()
        if self._uplink is not None:
            self._uplink.moved(diff)
        self.pulse.beat()

    def _distribute(self, diff: MirrorDiff) -> None:
        concerned = diff.concerned()
        programming = diff.programming()
        epoch = self.position[0]
        for node_id in list(self._by_node) if concerned is None else concerned:
            for session_id in self._by_node.get(node_id, ()):
                session = self._sessions[session_id]
                changes = diff.of(node_id)
                if not changes:
                    continue
                if programming is None or node_id in programming:
                    session.to_program = diff.index
                session.outbox.add(epoch, diff.index, changes, may_wait=diff.may_wait(changes))
                if self._watermark and self._mirrors.is_stopping(node_id):
                    session.outbox.watermark(self._watermark)

    def _complete(self, node_id: str) -> tuple[int, int, list[bytes]]:
        index = self.catch_up()
        return self.position[0], index, self._mirrors.complete(node_id)

    def _end_removed(self) -> None:
        for session in self._sessions.values():
            if session.node_id not in self.snapshot.nodes:
                session.outbox.end(
                    dispatcher.SESSION_END_REASON_REMOVED, f"node {session.node_id} was removed from the swarm"
                )

    def _refresh_settings(self) -> None:
        """Sends each session its settings where they changed."""
        for session in self._sessions.values():
            settings = self._settings(session.node_id)
            if settings != session.settings:
                session.settings = settings
                session.outbox.settings(settings)

    def _settings(self, node_id: str) -> dispatcher.SessionSettings:
        snapshot = self.snapshot
        settings = dispatcher.SessionSettings(heartbeat_period=duration(self.period), managers=managers_of(snapshot))
        if snapshot.cluster is not None:
            settings.ca_pem = snapshot.cluster.ca.certificate_pem
            settings.default_registry = snapshot.cluster.spec.default_registry
        node = snapshot.nodes.get(node_id)
        if node is not None:
            settings.node.CopyFrom(node)
            # What the agent said itself, and what moves with every heartbeat lost and found, is no news to it.
            settings.node.ClearField("description")
            settings.node.ClearField("status")
            settings.node.ClearField("meta")
        return settings

    async def _watch_leader(self) -> None:
        """Ends the sessions when no leader was heard for too long."""
        while True:
            leadership = self._leadership()
            if leadership.is_leader and leadership.ready:
                self.leader_alive()
            if not self._leader_contact.check(self.clock.monotonic(), self.period):
                self.end_all(dispatcher.SESSION_END_REASON_NO_LEADER, "this manager knows no leader; try another one")
            await asyncio.sleep(self.period / LEADERLESS_CHECKS)

    async def _follow_leadership(self) -> None:
        """Runs the uplink that fits the leadership, one at a time."""
        previous_leader = ""
        while True:
            self._leadership_changed.clear()
            leadership = self._leadership()
            uplink = self._make_uplink(self, leadership, previous_leader)
            await self._run_uplink(uplink, leadership)
            previous_leader = leadership.leader_id or previous_leader

    async def _run_uplink(self, uplink: Uplink | None, leadership: Leadership) -> None:
        """Until the leadership is another; an uplink that fails is made anew after a pause."""
        changed = asyncio.create_task(self._another_leadership(leadership))
        running = [asyncio.create_task(self._use(uplink, leadership))] if uplink is not None else []
        try:
            await asyncio.wait({changed, *running}, return_when=asyncio.FIRST_COMPLETED)
            if not changed.done():
                await asyncio.wait({changed}, timeout=UPLINK_RETRY)
        finally:
            self._uplink = None
            for result in await cancelled(changed, *running):
                if isinstance(result, Exception):
                    log.error("the dispatcher's link to the leadership failed and is made anew", exc_info=result)

    async def _use(self, uplink: Uplink, leadership: Leadership) -> None:
        if leadership.is_leader:
            self._period_from_leader = None
            self.leader_alive()
        self._uplink = uplink
        for session in self._sessions.values():
            uplink.began(session, resumed=True)
            uplink.programmed(session.node_id, session.programmed(self._mirrors.index))
        if self.statuses:
            uplink.reported()
        await uplink.run()

    async def _another_leadership(self, known: Leadership) -> None:
        while True:
            now = self._leadership()
            if (now.leader_id, now.is_leader and now.ready) != (known.leader_id, known.is_leader and known.ready):
                return
            if now.is_leader and now.term != known.term:
                return
            await self._leadership_changed.wait()
            self._leadership_changed.clear()


def period_of(snapshot: Snapshot) -> float:
    """The heartbeat period in seconds that fits the cluster's size and its spec."""
    configured = seconds_of(snapshot.cluster.spec.heartbeat_period) if snapshot.cluster is not None else 0.0
    return heartbeat_period(len(snapshot.nodes), configured)


def managers_of(snapshot: Snapshot) -> list[dispatcher.ManagerEndpoint]:
    """Where the managers are, in a stable order."""
    return [
        dispatcher.ManagerEndpoint(node_id=node.id, address=node.manager.address)
        for node in sorted(snapshot.nodes, key=lambda node: node.id)
        if node.role == types.NODE_ROLE_MANAGER and node.manager.address
    ]
