"""The leader's side of the dispatcher: one judgement for all nodes, whichever manager holds their sessions.

It decides which session of a node counts, who is alive, what of the agents' reports is written, and up to which index all
live nodes have programmed the endpoint table. Decisions are taken by the pure parts (`registry`, `liveness`, `statuses`,
`nodes`, `watermark`); here they are fed, and what they say is carried out. One instance for each term that this manager
leads: a new leader knows nothing of the one before, it learns from the sessions that the managers announce to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Generator, Sequence
from typing import Protocol

from swarm.errors import Conflict, OutcomeUnknown, SwarmError
from swarm.names import NODE_LEFT
from swarm.v1 import dispatcher_pb2 as dispatcher
from swarm.v1 import types_pb2 as types

from orchestrator.dispatcher.assignments import MirrorDiff
from orchestrator.dispatcher.dispatcher import Dispatcher, period_of
from orchestrator.dispatcher.liveness import Liveness, judge_tick
from orchestrator.dispatcher.nodes import Cloned, Down, NodeIntents, Ready
from orchestrator.dispatcher.registry import Claim, SessionRegistry
from orchestrator.dispatcher.session import Session
from orchestrator.dispatcher.statuses import StatusBatch, status_changes
from orchestrator.dispatcher.watermark import AcknowledgementTable
from orchestrator.store import MAX_ENTRY_BYTES, Change, Transactions, split_changes

log = logging.getLogger(__name__)

GATHER = 0.03  # seconds between two entries of statuses: a lone one is written at once, in a burst they are gathered
GATHER_NODES = 0.015  # seconds in which what is said of nodes is gathered into one entry
WATERMARK_PAUSE = 0.05  # seconds between two announcements
COMMIT_TIMEOUT = 10.0
FAILED_COMMIT_PAUSE = 0.2
NODE_ATTEMPTS = 5  # upon conflicts with whoever else writes nodes


class RelayedManager(Protocol):
    """A follower that relays its sessions to us."""

    manager_id: str
    number: int  # no two connections of a process have the same

    def acknowledge(self, sequence: int) -> None: ...

    def watermark(self, index: int) -> None: ...

    def supersede(self, node_id: str, session_id: str, end: dispatcher.SessionEnd) -> None: ...

    def alive(self, period: float, now: float) -> None: ...

    def close(self) -> None:
        """Ends the connection; the follower opens another one."""
        ...


class LeaderSide:
    """The `Uplink` of the manager that leads, and what followers' relays report to."""

    def __init__(self, hub: Dispatcher, transactions: Transactions, *, previous_leader: str = "") -> None:
        now = hub.clock.monotonic()
        self._hub = hub
        self._transactions = transactions
        self._previous_leader = previous_leader
        self._registry = SessionRegistry()
        self._liveness = Liveness(period_of(hub.snapshot), now)
        self._acknowledgements = AcknowledgementTable()
        self._intents = NodeIntents()
        self._down: set[str] = set()  # nodes that this leader called down
        self._leaving: set[str] = set()  # nodes that said so in the session that they hold
        self._relays: dict[str, RelayedManager] = {}
        self._expected: dict[str, float] = {}  # nodes without a session yet: nobody waits for them after this time
        self._statuses_waiting = asyncio.Event()
        self._intents_waiting = asyncio.Event()
        self._watermark_moves = asyncio.Event()
        self._expect_nodes(now)

    def _expect_nodes(self, now: float) -> None:
        """What the store says was alive gets its chance to be heard by the new leader."""
        ready = [node.id for node in self._hub.snapshot.nodes if node.status.state == types.NODE_STATE_READY]
        suspects = {self._previous_leader} - {self._hub.node_id}
        self._liveness.expect(ready, suspects=suspects)
        self._down = {node.id for node in self._hub.snapshot.nodes if node.status.state == types.NODE_STATE_DOWN}
        for node_id in ready:
            self._acknowledgements.expect(node_id, self._hub.mirrors.index)
            self._expected[node_id] = now + self._liveness.period

    @property
    def period(self) -> float:
        """The heartbeat period in force, in seconds."""
        return self._liveness.period

    @property
    def session_count(self) -> int:
        """Sessions of the whole cluster."""
        return len(self._registry)

    # ----------------------------------------------------------------------------------------- what sessions here report

    def began(self, session: Session, *, resumed: bool) -> None:
        self.announced(session.node_id, session.session_id, session.hello, via="", resumed=resumed)
        if session.leaving:
            self.leaving(session)

    def ended(self, session: Session) -> None:
        self.over(session.node_id, session.session_id)

    def leaving(self, session: Session) -> None:
        self.left(session.node_id, session.session_id)

    def alive(self, node_id: str) -> None:
        self.heard(node_id)

    def programmed(self, node_id: str, index: int) -> None:
        self._acknowledgements.acknowledged(node_id, index)
        self._watermark_moves.set()

    def moved(self, diff: MirrorDiff | None) -> None:
        snapshot = self._hub.snapshot
        index = self._hub.mirrors.index
        concerned = None if diff is None else diff.programming()
        node_ids = snapshot.nodes.ids() if concerned is None else concerned
        self._acknowledgements.changed(node_ids, index)
        self._watermark_moves.set()

    def reported(self) -> None:
        self._statuses_waiting.set()

    # ------------------------------------------------------------------------------------ the same, from everywhere else

    def announced(
        self, node_id: str, session_id: str, hello: dispatcher.SessionHello, *, via: str, resumed: bool
    ) -> None:
        """A session of a node began at the manager `via` (empty: here)."""
        claim = Claim(node_id, session_id, hello.boot_id, hello.boot_counter, via, resumed)
        verdict = self._registry.claim(claim)
        if verdict.loser is not None:
            end = dispatcher.SessionEnd(reason=verdict.reason, message=verdict.message)
            self._end(verdict.loser, end)
            if verdict.reason == dispatcher.SESSION_END_REASON_CLONED:
                log.warning("node %s: %s", node_id, verdict.message)
                self._intents.put(node_id, Cloned(verdict.message))
                self._intents_waiting.set()
        if not verdict.accepted:
            return
        self._liveness.heard(node_id, self._hub.clock.monotonic(), via)
        self._expected.pop(node_id, None)
        self._acknowledgements.expect(node_id, self._hub.mirrors.index)
        self._down.discard(node_id)
        self._leaving.discard(node_id)
        self._intents.put(node_id, Ready(hello.boot_id, hello.description))
        self._intents_waiting.set()

    def over(self, node_id: str, session_id: str) -> None:
        """A session ended. The node is alive until it was silent for long enough."""
        if self._registry.end(node_id, session_id):
            self._acknowledgements.drop(node_id)
            self._watermark_moves.set()

    def left(self, node_id: str, session_id: str) -> None:
        """The node of this session leaves the swarm: it is down now, whatever is heard in that session from now on. Its tasks
        are replaced at once, and nobody waits for what it programs."""
        holder = self._registry.holder(node_id)
        if holder is None or holder.session_id != session_id:
            return
        log.info("node %s leaves the swarm", node_id)
        self._leaving.add(node_id)
        self._liveness.forget(node_id)
        self._acknowledgements.drop(node_id)
        self._watermark_moves.set()
        self._intents.put(node_id, Down(NODE_LEFT))
        self._intents_waiting.set()

    def heard(self, node_id: str, via: str = "") -> None:
        """A sign of life of a node with a session at `via`."""
        holder = self._registry.holder(node_id)
        if holder is None or holder.via != via or node_id in self._leaving:
            return
        self._liveness.heard(node_id, self._hub.clock.monotonic(), via)
        if node_id in self._down:  # it was only slow
            self._down.discard(node_id)
            self._acknowledgements.expect(node_id, self._hub.mirrors.index)
            node = self._hub.snapshot.nodes.get(node_id)
            if node is not None:
                self._intents.put(node_id, Ready(holder.boot_id, node.description))
                self._intents_waiting.set()

    def relay_opened(self, relay: RelayedManager) -> None:
        """A follower connected. An older connection of the same follower is forgotten."""
        self._relays[relay.manager_id] = relay
        relay.alive(self.period, self._hub.clock.wall())
        relay.watermark(self._acknowledgements.watermark(self._hub.catch_up()))

    def relay_silent(self, manager_id: str) -> None:
        """A follower was not heard for a while: its nodes may need to find another manager."""
        self._liveness.manager_lost(manager_id, self._hub.clock.monotonic())

    def relay_closed(self, relay: RelayedManager) -> None:
        """A follower's connection ended; its sessions are announced again when it returns."""
        if self._relays.get(relay.manager_id) is not relay:
            return
        del self._relays[relay.manager_id]
        self._liveness.manager_lost(relay.manager_id, self._hub.clock.monotonic())
        for claim in self._registry.end_via(relay.manager_id):
            self._acknowledgements.drop(claim.node_id)
        self._watermark_moves.set()

    def _end(self, loser: Claim, end: dispatcher.SessionEnd) -> None:
        if loser.via == "":
            self._hub.end_session(loser.session_id, end)
        elif loser.via in self._relays:
            self._relays[loser.via].supersede(loser.node_id, loser.session_id, end)

    # ---------------------------------------------------------------------------------------------------------- the loops

    async def run(self) -> None:
        """Until the leadership ends."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._judge())
                group.create_task(self._write_statuses())
                group.create_task(self._write_nodes())
                group.create_task(self._announce_watermark())
        finally:
            # A manager that leads again at once gets the same followers back, who must not wait to notice.
            for relay in self._relays.values():
                relay.close()

    async def _judge(self) -> None:
        while True:
            now = self._hub.clock.monotonic()
            self._follow_period(now)
            self._forget_removed()
            for node_id in self._liveness.judge(now):
                log.warning("node %s was silent for %g s: it is down", node_id, self._liveness.allowance)
                self._down.add(node_id)
                self._acknowledgements.drop(node_id)
                self._expected.pop(node_id, None)
                self._intents.put(node_id, Down(f"no heartbeat for {self._liveness.allowance:g} s"))
                self._intents_waiting.set()
            for node_id in [node_id for node_id, until in self._expected.items() if until <= now]:
                del self._expected[node_id]
                self._acknowledgements.drop(node_id)
            for relay in self._relays.values():
                relay.alive(self.period, self._hub.clock.wall())
            self._watermark_moves.set()
            await asyncio.sleep(judge_tick(self.period))

    def _follow_period(self, now: float) -> None:
        period = period_of(self._hub.snapshot)
        if period != self._liveness.period:
            self._liveness.change_period(period, now)
        self._hub.leader_alive(period)

    def _forget_removed(self) -> None:
        nodes = self._hub.snapshot.nodes
        # Most were down before they were removed: nobody judges them any more.
        for node_id in {*self._liveness.known(), *self._leaving, *self._down, *self._registry.known()}:
            if node_id not in nodes:
                self._liveness.forget(node_id)
                self._leaving.discard(node_id)
                self._down.discard(node_id)
                self._acknowledgements.drop(node_id)
                self._registry.forget(node_id)
                self._expected.pop(node_id, None)

    async def _announce_watermark(self) -> None:
        announced = 0
        while True:
            await self._watermark_moves.wait()
            self._watermark_moves.clear()
            watermark = self._acknowledgements.watermark(self._hub.catch_up())
            if watermark <= announced:
                continue
            announced = watermark
            self._hub.announce_watermark(watermark)
            for relay in self._relays.values():
                relay.watermark(watermark)
            # Only stops wait for it, and hardly notice; while a service starts each status would make an announcement.
            await asyncio.sleep(WATERMARK_PAUSE)

    async def _write_statuses(self) -> None:
        queue = self._hub.statuses
        now = self._hub.clock.monotonic
        rest_until = 0.0
        while True:
            await self._statuses_waiting.wait()
            self._statuses_waiting.clear()
            while queue:
                await asyncio.sleep(max(0.0, rest_until - now()))
                batch = queue.take()
                rest_until = now() + GATHER
                with self._returned_unless_done(batch) as done:
                    if await self._commit(status_changes(self._hub.snapshot, batch)):
                        done()
                        self._acknowledge(batch)

    @contextlib.contextmanager
    def _returned_unless_done(self, batch: StatusBatch) -> Generator[Callable[[], None], None, None]:
        """The batch goes back to the queue where it was not committed, also when this leadership ends meanwhile."""
        committed = False

        def done() -> None:
            nonlocal committed
            committed = True

        try:
            yield done
        finally:
            if not committed:
                self._hub.statuses.give_back(batch)

    async def _commit(self, changes: Sequence[Change]) -> bool:
        """Whether all of it is written. Statuses merge, so that writing one twice does no harm."""
        try:
            for part in split_changes(changes, MAX_ENTRY_BYTES // 2):
                await self._transactions.commit(part, timeout=COMMIT_TIMEOUT)
        except SwarmError as error:
            log.warning("statuses of tasks were not written and are tried again: %s", error)
            await asyncio.sleep(FAILED_COMMIT_PAUSE)
            return False
        return True

    def _acknowledge(self, batch: StatusBatch) -> None:
        self._hub.acknowledge(batch.sequences)
        for relay in self._relays.values():
            sequence = batch.sequences.get(relay_reporter(relay))
            if sequence is not None:
                relay.acknowledge(sequence)

    async def _write_nodes(self) -> None:
        while True:
            await self._intents_waiting.wait()
            self._intents_waiting.clear()
            await asyncio.sleep(GATHER_NODES)
            intents = self._intents.take()
            if not await self._commit_nodes(intents):
                self._intents.give_back(intents)
                self._intents_waiting.set()
                await asyncio.sleep(FAILED_COMMIT_PAUSE)

    async def _commit_nodes(self, intents: NodeIntents) -> bool:
        for _ in range(NODE_ATTEMPTS):
            changes = intents.changes(self._hub.store_snapshot(), self._hub.clock.wall())
            try:
                for part in split_changes(changes, MAX_ENTRY_BYTES // 2):
                    await self._transactions.commit(part, timeout=COMMIT_TIMEOUT)
            except (Conflict, OutcomeUnknown):
                continue
            except SwarmError as error:
                log.warning("the state of nodes was not written and is tried again: %s", error)
                return False
            return True
        return False


def relay_reporter(relay: RelayedManager) -> str:
    """Whom the status queue acknowledges to, where a follower relayed the statuses."""
    return f"relay/{relay.manager_id}/{relay.number}"
