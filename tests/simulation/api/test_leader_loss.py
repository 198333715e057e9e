"""The API on a real replicated log of three managers in this process: any of them answers, and a lost leader is not noticed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from swarm.channels import open_channel
from swarm.clock import SystemClock
from swarm.errors import SwarmError, Unavailable, from_rpc
from swarm.identity import Role, TlsMaterial
from swarm.ids import id_source
from swarm.servers import RpcServer
from swarm.v1 import control_pb2, types_pb2
from swarm.v1.control_pb2_grpc import ControlStub

from orchestrator.api.channels import PeerChannels
from orchestrator.api.control import ControlService
from orchestrator.api.forwarding import Forwarder
from orchestrator.consensus import Member
from orchestrator.identity.membership import bootstrap_objects
from orchestrator.identity.revocation import is_revoked
from orchestrator.raft import RaftConfig, RaftNode
from orchestrator.raft.admission import join_cluster
from orchestrator.store import Create, Store, Transactions
from tests.unit.api.support import DIGEST, no_agents, no_snapshot, web
from tests.unit.identity.certificates import TestAuthority

TIMEOUT = 60.0


class Manager:
    def __init__(self, authority: TestAuthority, node_id: str, directory: Path) -> None:
        clock = SystemClock()
        self.tls = authority.node(node_id)
        self.store = Store()
        self.server = RpcServer(is_revoked=lambda peer: is_revoked(self.store.snapshot(), peer, clock.wall()))
        self.member = Member(node_id, f"127.0.0.1:{self.server.listen_tls('127.0.0.1:0', lambda: self.tls)}")
        self.channels = PeerChannels(lambda: self.tls)
        self.directory = directory
        self.running = False

    async def start(self, *, founder: bool) -> None:
        self.directory.mkdir()
        config = RaftConfig(
            state_directory=self.directory,
            member=self.member,
            tls=lambda: self.tls,
            initial_members=(self.member,) if founder else (),
        )
        self.log = RaftNode(config, self.store)
        self.transactions = Transactions(self.log, self.store, proposer=self.member.node_id, clock=SystemClock())
        forwarder = Forwarder(
            self.log, lambda member: self.channels.to(member.address, member.node_id), rng=random.Random(1)
        )
        control = ControlService(
            self.store,
            self.transactions,
            self.log,
            forwarder,
            resolve=_resolve,
            agent_channel=no_agents,
            clock=SystemClock(),
            ids=id_source(),
            rng=random.Random(2),
            node_id=self.member.node_id,
            version="test",
            save_snapshot=no_snapshot,
        )
        self.log.register(self.server)
        control.register(self.server)
        await self.server.start()
        await self.log.start()
        self.running = True

    async def stop(self) -> None:
        """As a crash looks from outside: nothing is handed over."""
        if self.running:
            self.running = False
            await self.server.stop(0)
            await self.log.stop(transfer=False)
            await self.channels.close()


async def _resolve(reference: str) -> str:
    return DIGEST


@asynccontextmanager
async def cluster(directory: Path) -> AsyncIterator[tuple[TestAuthority, dict[str, Manager]]]:
    authority = TestAuthority()
    managers = {node_id: Manager(authority, node_id, directory / node_id) for node_id in ("m1", "m2", "m3")}
    async with AsyncExitStack() as stack:
        for node_id, manager in managers.items():
            await manager.start(founder=node_id == "m1")
            stack.push_async_callback(manager.stop)
            if node_id == "m1":
                await _begin(authority, manager)
            else:
                await _add(managers["m1"], manager)
        yield authority, managers


async def _begin(authority: TestAuthority, manager: Manager) -> None:
    ready = asyncio.Event()
    manager.log.on_leadership(lambda leadership: ready.set() if leadership.ready else None)
    if not manager.log.leadership().ready:
        await asyncio.wait_for(ready.wait(), TIMEOUT)
    await manager.transactions.commit(
        bootstrap_objects(
            types_pb2.ClusterSpec(),
            cluster_id="cluster1",
            authority=authority.root,
            node_id="m1",
            hostname="m1",
            address=manager.member.address,
            availability=types_pb2.AVAILABILITY_ACTIVE,
            ids=id_source(),
        )
    )


async def _add(leader: Manager, manager: Manager) -> None:
    node = types_pb2.Node(id=manager.member.node_id, role=types_pb2.NODE_ROLE_MANAGER)
    await leader.transactions.commit([Create(node)])
    await join_cluster([leader.member.address], manager.tls, manager.member, TIMEOUT)


@asynccontextmanager
async def stub(manager: Manager, tls: TlsMaterial) -> AsyncIterator[Any]:
    async with open_channel(manager.member.address, tls, "swarm-manager") as channel:
        yield ControlStub(channel)


async def create(api: Any, name: str, request_id: str) -> types_pb2.Service:
    request = control_pb2.CreateServiceRequest(spec=web(name), request_id=request_id)
    try:
        answer = await api.CreateService(request, timeout=TIMEOUT)
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error) from error
    return answer.service  # type: ignore[no-any-return]


async def names(api: Any) -> list[str]:
    answer = await api.ListServices(control_pb2.ListRequest(), timeout=TIMEOUT)
    return [summary.service.spec.name for summary in answer.services]


async def test_any_manager_writes_and_reads_its_own_writes(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (authority, managers):
        ann = authority.person("Ann", Role.ADMIN)
        written: list[str] = []
        for node_id, manager in managers.items():
            async with stub(manager, ann) as api:
                await create(api, f"web-{node_id}", f"request-{node_id}")
                written.append(f"web-{node_id}")
            for other in managers.values():
                async with stub(other, ann) as api:
                    assert await names(api) == written


async def test_a_stream_of_writes_survives_the_loss_of_the_leader_without_loss_or_repetition(tmp_path: Path) -> None:
    async with (
        cluster(tmp_path) as (authority, managers),
        stub(managers["m2"], authority.person("Ann", Role.ADMIN)) as api,
    ):
        writing = asyncio.create_task(_write_many(api, 40))
        snapshot, watch = managers["m2"].store.watch()
        async with asyncio.timeout(TIMEOUT):
            while len(snapshot.services) < 10:
                snapshot = (await watch.next()).snapshot
        watch.close()
        await managers["m1"].stop()
        ids = await writing
        assert await names(api) == sorted(f"web{number}" for number in range(40))
        assert len(set(ids)) == 40


async def _write_many(api: Any, count: int) -> list[str]:
    return [(await create(api, f"web{number}", f"request{number}")).id for number in range(count)]


async def test_without_a_quorum_the_numbers_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.api.forwarding.ELECTION_TIMEOUT", 3.0)
    async with (
        cluster(tmp_path) as (authority, managers),
        stub(managers["m3"], authority.person("Ann", Role.ADMIN)) as api,
    ):
        snapshot, watch = managers["m3"].store.watch()
        await create(api, "first", "first")
        async with asyncio.timeout(TIMEOUT):
            while not len(snapshot.services):  # now m3 knows of everything before it, also of all members
                snapshot = (await watch.next()).snapshot
        watch.close()
        await managers["m1"].stop()
        await managers["m2"].stop()
        with pytest.raises(SwarmError) as caught:
            await create(api, "web", "request")
        assert isinstance(caught.value, Unavailable)
        assert "no leader: 1 of 3 managers reachable, a quorum needs 2" in str(caught.value)
        info = await api.GetInfo(control_pb2.GetInfoRequest(), timeout=TIMEOUT)
        assert info.node_id == "m3"
        old = await api.ListServices(control_pb2.ListRequest(stale=True), timeout=TIMEOUT)
        assert [summary.service.spec.name for summary in old.services] == ["first"]
        assert old.replica.node_id == "m3" and not old.replica.leader_id
