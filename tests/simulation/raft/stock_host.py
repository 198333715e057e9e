"""The library as shipped, in the place of our members: the same clock, links, disks, clients and rules.

`Registers` is what a user of the library writes: a subclass with one replicated method. Nothing of the library is replaced but
what it asks for files, the time and random numbers. `StockCore` is the view of it that the simulation looks at.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import pysyncobj.journal
import pysyncobj.pickle as library_pickle
import pysyncobj.serializer
import pysyncobj.syncobj as library
from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated
from pysyncobj.transport import Transport
from swarm.errors import OutcomeUnknown, SwarmError, Unavailable
from swarm.v1 import raft_pb2 as pb

from orchestrator.consensus import Committed, Member
from orchestrator.raft import membership
from orchestrator.raft.engine import MemberNode, Role, prepare_library, ticking
from orchestrator.raft.proposals import Proposal
from tests.simulation.raft.hosts import COMPACTION, TIMINGS, Host
from tests.simulation.raft.network import BOMB, Bytes, VirtualLinks
from tests.simulation.raft.stock_files import StockFiles

if TYPE_CHECKING:
    from tests.simulation.raft.world import World

# The library says of these that the command was not applied. What it says of the others leaves that open.
_REFUSALS = {
    FAIL_REASON.QUEUE_FULL,
    FAIL_REASON.MISSING_LEADER,
    FAIL_REASON.DISCARDED,
    FAIL_REASON.NOT_LEADER,
    FAIL_REASON.REQUEST_DENIED,
}
_QUESTIONS = 40  # how often a tick asks for the time before that itself takes time: a loop waits for the clock
_files = StockFiles()
_random = random.Random(0)


class Registers(SyncObj):  # type: ignore[misc]
    """Keys and values."""

    def __init__(
        self, told: Callable[[int, bytes], None], own: MemberNode, others: list[MemberNode], conf: Any, transport: Any
    ) -> None:
        self._told = told  # set before the library's own attributes: not part of the replicated state
        super().__init__(own, others, conf, nodeClass=MemberNode, transport=transport)
        self.registers: dict[str, str] = {}

    @replicated
    def put(self, command: bytes) -> int:
        index = int(self.raftLastApplied) + 1
        self._told(index, command)
        if command.startswith(b"!"):
            raise ValueError("this cannot be applied")
        key, _, rest = command.decode().partition(" ")
        self.registers[key] = rest.split(" ")[0]
        return index


class _VirtualTransport(Transport):  # type: ignore[misc]
    """The library's way to bring links of one's own."""

    def __init__(self, host: StockHost) -> None:
        super().__init__(None, None, [])
        self._host = host

    def addNode(self, node: MemberNode) -> None:
        self._host.links.connect(node)

    def dropNode(self, node: MemberNode) -> None:
        self._host.links.disconnect(node.id)

    def send(self, node: MemberNode, message: dict[str, Any]) -> bool:
        host = self._host
        if message["type"] == "next_node_idx" and message["success"]:
            host.promises.stored = max(host.promises.stored, message["next_node_idx"] - 1)
        if message["type"] == "response_vote":
            host.promises.vote = (message["term"], node.id)
        return host.world.network.send(host.name, node.id, [library_pickle.dumps(message)], host.spent)

    def connected(self, node_id: str, *, up: bool) -> None:
        (self._onNodeConnected if up else self._onNodeDisconnected)(MemberNode(node_id))

    def received(self, node_id: str, message: dict[str, Any]) -> None:
        self._onMessageReceived(MemberNode(node_id), message)


class StockCore:
    """One life of a member."""

    snapshot = None

    def __init__(self, host: StockHost, others: list[str]) -> None:
        self._host = host
        self._asked = 0
        self._last_time = 0.0
        self._told_last: tuple[int, int] = (0, 0)
        self._transport = _VirtualTransport(host)
        self.conf = SyncObjConf(
            autoTick=False,
            useFork=False,  # a simulation cannot be in two processes
            journalFile=f"{host.name}/journal",
            fullDumpFile=f"{host.name}/dump",
            appendEntriesPeriod=TIMINGS.heartbeat,
            raftMinTimeout=TIMINGS.election_min,
            raftMaxTimeout=TIMINGS.election_max,
            leaderFallbackTimeout=TIMINGS.quorum,
            logCompactionMinEntries=COMPACTION.entries,
            dynamicMembershipChange=host.world.options.change_members,
        )
        with ticking(self.clock):
            self.member = Registers(
                self._told, MemberNode(host.name), [MemberNode(name) for name in others], self.conf, self._transport
            )
        for name in others:
            host.links.connect(MemberNode(name))

    def clock(self) -> float:
        self._asked += 1
        now = self._host.clock() + max(0, self._asked - _QUESTIONS) * 0.01
        self._last_time = max(self._last_time, now)
        return self._last_time

    def _told(self, index: int, command: bytes) -> None:
        world, name = self._host.world, self._host.name
        state = id(
            self.member.registers
        )  # another one where a dump was loaded: what follows that is applied again, rightly
        if self._told_last[0] == state and index <= self._told_last[1]:
            world.violated(f"{name} applied entry {index} after entry {self._told_last[1]}")
        self._told_last = state, index
        world.rules.applied(index, command, name)

    # ---- what the simulation does

    def tick(self, wait: float) -> None:
        self._asked = 0
        with ticking(self.clock):
            self._host.links.deliver(0)
            self.member.doTick(wait)

    def message_received(self, node_id: str, message: dict[str, Any]) -> None:
        if node_id in self._host.links.peers:  # as its own transport: who is no member is not listened to
            self._transport.received(node_id, message)

    def link_up(self, node_id: str) -> None:
        self._transport.connected(node_id, up=True)

    def link_down(self, node_id: str) -> None:
        self._transport.connected(node_id, up=False)

    def propose(self, proposal: Proposal) -> None:
        proposal.begin()
        self.member.put(proposal.command, callback=_answers(proposal))

    def read(self, done: Callable[[int | None], None]) -> None:
        """All that the library offers: whoever believes to lead answers from its own state."""
        done(self.applied_index() if self._is_ready() else None)

    def transfer_leadership(self, target: str | None, _: float, done: Callable[[SwarmError | None], None]) -> None:
        self.member.transferLeadership(MemberNode(target) if target else None)
        done(None)

    def change_configuration(
        self, change: Callable[[pb.RaftConfiguration], pb.RaftConfiguration], proposal: Proposal
    ) -> None:
        before = self.history.current
        try:
            after = change(before)
        except SwarmError as error:
            proposal.end(error)
            return
        proposal.begin()
        for name in sorted({m.node_id for m in after.members} - {m.node_id for m in before.members}):
            self.member.addNodeToCluster(MemberNode(name), callback=_answers(proposal))
        for name in sorted({m.node_id for m in before.members} - {m.node_id for m in after.members}):
            self.member.removeNodeFromCluster(MemberNode(name), callback=_answers(proposal))

    def take_snapshot(self) -> None:
        self.member.forceLogCompaction()

    # ---- what the simulation looks at

    def _of(self, name: str) -> Any:
        return getattr(self.member, f"_SyncObj__{name}")

    @property
    def role(self) -> Role:
        return Role(self._of("raftState"))

    @property
    def term(self) -> int:
        return int(self._of("raftCurrentTerm"))

    @property
    def voted_for(self) -> str | None:
        return self._of("votedForNodeId")  # type: ignore[no-any-return]

    @property
    def commit_index(self) -> int:
        return int(self._of("raftCommitIndex"))

    def applied_index(self) -> int:
        return int(self._of("raftLastApplied"))

    @property
    def log(self) -> Any:
        return self._of("raftLog")

    @property
    def base_index(self) -> int:
        return int(self.log[0][1])

    @property
    def last_index(self) -> int:
        return int(self.log[-1][1])

    def entry(self, index: int) -> Any:
        position = index - self.base_index
        return self.log[position] if 0 <= position < len(self.log) else None

    @property
    def match_index(self) -> dict[MemberNode, int]:
        return self._of("raftMatchIndex")  # type: ignore[no-any-return]

    @property
    def history(self) -> Any:
        names = sorted({self._host.name, *(node.id for node in self._of("otherNodes"))})
        return SimpleNamespace(
            current_index=0, current=membership.founding(Member(name, f"{name}:1") for name in names)
        )

    def _is_ready(self) -> bool:
        own_entry = self._of("noopIDx")
        return self.role is Role.LEADER and own_entry is not None and self.applied_index() >= own_entry


def _answers(proposal: Proposal) -> Callable[[Any, int], None]:
    def answer(index: Any, reason: int) -> None:
        if reason == FAIL_REASON.SUCCESS:
            proposal.end(Committed(index or 0, b""))
        elif reason in _REFUSALS:
            proposal.end(Unavailable("the library refused it"))
        else:
            proposal.end(OutcomeUnknown("the library does not know"))

    return answer


class StockHost(Host):
    """A member that is the library as shipped."""

    def __init__(self, world: World, name: str, founders: tuple[str, ...]) -> None:
        super().__init__(world, name, founders)
        _random.seed(world.seed)
        _files.disks[name] = self.disk

    @staticmethod
    @contextmanager
    def surroundings() -> Iterator[None]:
        """Files and random numbers of the simulation, for the library."""
        prepare_library()
        with (
            mock.patch.multiple(pysyncobj.journal, os=_files.os, shutil=_files.shutil, mmap=_files.mmap),
            mock.patch.object(pysyncobj.journal, "open", _files.open, create=True),
            mock.patch.multiple(pysyncobj.serializer, os=_files.os, atomicReplace=_files.rename),
            mock.patch.object(pysyncobj.serializer, "open", _files.open, create=True),
            mock.patch.multiple(library, os=_files.os, random=_random),
        ):
            yield

    def start(self) -> None:
        self.links = VirtualLinks(self.world, self.name)
        super().start()

    def _open(self) -> StockCore:
        others = self.founders
        if not others and (leader := self.world.leader()) is not None:
            others = tuple(m.node_id for m in leader.core.history.current.members)
        core = StockCore(self, [name for name in others or tuple(sorted(self.world.hosts)) if name != self.name])
        self.machine = core.member
        return core

    def _wrong_members(self) -> str | None:
        return None  # what the library does there shows in what comes of it

    def tick(self) -> None:
        super().tick()
        core = self.core
        if core is None:
            return
        self.promises.stored = min(self.promises.stored, core.last_index)
        before = None
        for command, index, term in core.log[:]:
            if before is not None:
                self.world.rules.logged(self.name, index, term, command, before)
            before = term

    def keep_whole_log(self) -> None:
        self.core.conf.logCompactionMinEntries = 1 << 30

    def deliver(self, source: str, data: Bytes) -> None:
        self.links.post(self.core.message_received, source, library_pickle.loads(data[0]))

    def receive_hostile(self, source: str) -> None:
        self.deliver(source, [BOMB])
        self.world.ran_no_code()
