"""Managers and agents in one process, speaking real gRPC with mutual TLS on loopback. The managers share one store; one of
them leads."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from swarm.channels import open_channel
from swarm.clock import SystemClock
from swarm.identity import TlsMaterial
from swarm.ids import id_source
from swarm.keys import new_key_and_request
from swarm.names import MANAGER_TLS_NAME
from swarm.servers import RpcServer
from swarm.v1 import dispatcher_pb2 as dispatcher
from swarm.v1 import types_pb2 as types
from swarm.v1.dispatcher_pb2_grpc import DispatcherStub

from orchestrator.consensus import ConsensusStatus, Leadership, Member, MemberStatus
from orchestrator.dispatcher.service import DispatcherService
from orchestrator.identity.authority import RootAuthority
from orchestrator.store import Store, Transactions
from tests.support.consensus import LocalConsensus
from tests.unit.dispatcher.worlds import ReferenceMirror

DEADLINE = 20.0  # seconds for anything to happen that should


class Log(LocalConsensus):
    """The shared log; `leader` may be any of the managers, or nobody."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.index = store.snapshot().index
        self.leader = ""
        self.term = 1
        self.addresses: dict[str, str] = {}
        self.views: list[View] = []

    def elect(self, node_id: str) -> None:
        self.leader, self.term = node_id, self.term + 1
        for view in self.views:
            view.announce()


class View(LocalConsensus):
    """The log as one manager sees it."""

    def __init__(self, log: Log, node_id: str) -> None:
        super().__init__(log.machine, node_id=node_id)
        self.log = log
        log.views.append(self)

    async def propose(self, command: bytes, *, timeout: float) -> Any:
        return await self.log.propose(command, timeout=timeout)

    def leadership(self) -> Leadership:
        leads = self.log.leader == self.member.node_id
        return Leadership(self.log.term, self.log.leader, leads, leads)

    def announce(self) -> None:
        self._announce()

    def status(self) -> ConsensusStatus:
        members = tuple(
            MemberStatus(Member(node_id, address), True, node_id == self.log.leader, 0)
            for node_id, address in self.log.addresses.items()
        )
        return ConsensusStatus("", self.log.term, self.log.leader, 0, 0, members)


class Manager:
    def __init__(self, swarm: Swarm, node_id: str) -> None:
        self.node_id = node_id
        self.swarm = swarm
        self.view = View(swarm.log, node_id)
        self.clock = SystemClock()
        transactions = Transactions(self.view, swarm.store, proposer=node_id, clock=self.clock)
        tls = swarm.certificate(node_id, types.NODE_ROLE_MANAGER)
        self.service = DispatcherService(
            swarm.store,
            self.view,
            transactions,
            node_id=node_id,
            tls=lambda: tls,
            clock=self.clock,
            ids=id_source(),
            rng=random.Random(1),
        )
        self.server = RpcServer(is_demoted=lambda peer: peer.name in swarm.demoted)
        self.service.register(self.server)
        port = self.server.listen_tls("127.0.0.1:0", lambda: tls)
        self.address = f"127.0.0.1:{port}"
        swarm.log.addresses[node_id] = self.address
        self.task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.server.start()
        self.task = asyncio.create_task(self.service.run())

    async def stop(self) -> None:
        if self.task is None:
            return
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.task = None
        await self.server.stop(0)


class Agent:
    """An agent that takes in what it is sent, acknowledges it, and beats."""

    def __init__(self, swarm: Swarm, node_id: str, boot_id: str = "boot-1", counter: int = 1) -> None:
        self.swarm = swarm
        self.node_id = node_id
        self.hello = dispatcher.SessionHello(
            boot_id=boot_id,
            boot_counter=counter,
            cluster_id="c1",
            description=types.NodeDescription(hostname=node_id, address="192.0.2.77"),
        )
        self.mirror = ReferenceMirror()
        self.settings: dispatcher.SessionSettings | None = None
        self.watermark = 0
        self.acknowledged = 0
        self.ended: dispatcher.SessionEnd | None = None
        self.error: grpc.aio.AioRpcError | None = None
        self.acknowledging = True
        self._changed = asyncio.Event()
        self._unsaid: asyncio.Queue[dispatcher.AgentMessage] = asyncio.Queue()

    def say(self, message: dispatcher.AgentMessage) -> None:
        """One task writes: two at once break the call."""
        self._unsaid.put_nowait(message)

    async def _write(self) -> None:
        while True:
            await self.call.write(await self._unsaid.get())

    @asynccontextmanager
    async def connected(self, manager: Manager) -> AsyncIterator[Agent]:
        tls = self.swarm.certificate(self.node_id, types.NODE_ROLE_WORKER)
        async with open_channel(manager.address, tls, MANAGER_TLS_NAME) as channel:
            self.call: Any = DispatcherStub(channel).Session()
            self.say(dispatcher.AgentMessage(hello=self.hello))
            tasks = [asyncio.create_task(coroutine) for coroutine in (self._read(), self._beat(), self._write())]
            try:
                yield self
            finally:
                for task in tasks:
                    task.cancel()
                self.call.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self) -> None:
        try:
            while (message := await self.call.read()) is not grpc.aio.EOF:
                self._take(message)
                self._changed.set()
        except grpc.aio.AioRpcError as error:
            self.error = error
            self._changed.set()

    def _take(self, message: dispatcher.ManagerMessage) -> None:
        match message.WhichOneof("message"):
            case "start":
                self.settings = message.start.settings
            case "settings":
                self.settings = message.settings
            case "assignments":
                self.mirror.take([message.SerializeToString()])
                if self.acknowledging:
                    ack = dispatcher.NetworkAck(index=message.assignments.index)
                    self.say(dispatcher.AgentMessage(network_ack=ack))
            case "status_ack":
                self.acknowledged = message.status_ack.sequence
            case "watermark":
                self.watermark = message.watermark.index
            case "end":
                self.ended = message.end

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            self.say(dispatcher.AgentMessage(heartbeat=dispatcher.Heartbeat()))

    def report(self, sequence: int, **states: types.TaskState.ValueType) -> None:
        updates = [
            dispatcher.TaskStatusUpdate(task_id=task_id, status=types.TaskStatus(state=state))
            for task_id, state in states.items()
        ]
        batch = dispatcher.StatusBatch(sequence=sequence, updates=updates)
        self.say(dispatcher.AgentMessage(statuses=batch))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Until what the agent has heard makes `condition` true."""
        async with asyncio.timeout(DEADLINE):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


class Swarm:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.log = Log(store)
        self.clock = SystemClock()
        self.transactions = Transactions(self.log, store, proposer="test", clock=self.clock)
        self.authority = RootAuthority.create("c1", self.clock.wall())
        self.managers: dict[str, Manager] = {}
        self.demoted: set[str] = set()

    def certificate(self, node_id: str, role: types.NodeRole.ValueType) -> TlsMaterial:
        keys = new_key_and_request(node_id)
        chain = self.authority.issue_node(keys.csr_pem, node_id, role, now=self.clock.wall())
        return TlsMaterial(keys.key_pem, chain, self.authority.certificate_pem)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Until the store makes `condition` true."""
        _, watch = self.store.watch()
        with watch:
            async with asyncio.timeout(DEADLINE):
                while not condition():
                    await watch.next()


@asynccontextmanager
async def swarm_of(store: Store, *managers: str) -> AsyncIterator[Swarm]:
    """Managers that serve; the first one leads."""
    swarm = Swarm(store)
    swarm.managers = {node_id: Manager(swarm, node_id) for node_id in managers}
    try:
        swarm.log.elect(managers[0])
        for manager in swarm.managers.values():
            await manager.start()
        yield swarm
    finally:
        for manager in swarm.managers.values():
            await manager.stop()
