"""Three managers with real TLS between them; who leads is up to the test. Any of them answers any call."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from swarm.channels import open_channel
from swarm.errors import Conflict, ManagerDemoted, NotFound, NotLeader, OutcomeUnknown, Unavailable, from_rpc
from swarm.identity import Role
from swarm.servers import RpcServer, current_peer, forwarded_peer_metadata, is_forwarded
from swarm.v1 import control_pb2
from swarm.v1.control_pb2_grpc import ControlServicer, ControlStub, add_ControlServicer_to_server

from orchestrator.api import channels, forwarding
from orchestrator.api.channels import PeerChannels
from orchestrator.api.forwarding import Forwarder, Place
from orchestrator.consensus import ConsensusStatus, Leadership, Member, MemberStatus
from tests.unit.identity.certificates import TestAuthority

TIMEOUT = 30.0


class _Consensus:
    """What the forwarder asks of consensus. Followers may know of no leader."""

    def __init__(self, cluster: _Cluster, node_id: str) -> None:
        self.cluster = cluster
        self.node_id = node_id
        self.callbacks: list[Callable[[Leadership], None]] = []

    def leadership(self) -> Leadership:
        leads = self.cluster.leader == self.node_id
        return Leadership(self.cluster.term, self.cluster.leader, leads, leads)

    def on_leadership(self, callback: Callable[[Leadership], None]) -> None:
        self.callbacks.append(callback)

    def status(self) -> ConsensusStatus:
        members = tuple(
            MemberStatus(manager.member, manager.up, node_id == self.cluster.leader, 0)
            for node_id, manager in self.cluster.managers.items()
        )
        return ConsensusStatus("follower", self.cluster.term, self.cluster.leader, 0, 0, members)


class _Control(ControlServicer):
    """Notes who asked what, and does what the test sets in `serve`."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.calls: list[tuple[str, str, bool]] = []
        self.began = asyncio.Event()
        self.serve: Callable[[], Awaitable[None]] | None = None
        self.stream: Callable[[], AsyncIterator[Any]] | None = None

    async def _answer(self) -> str:
        self.calls.append((current_peer().role.value, current_peer().name, is_forwarded()))
        self.began.set()
        if self.serve is not None:
            await self.serve()
        return self.node_id

    async def GetInfo(self, request, context):  # type: ignore[no-untyped-def]
        return control_pb2.GetInfoResponse(node_id=await self._answer())

    async def GetNode(self, request, context):  # type: ignore[no-untyped-def]
        answer = control_pb2.GetNodeResponse()
        answer.node.id = await self._answer()
        return answer

    async def RemoveService(self, request, context):  # type: ignore[no-untyped-def]
        return control_pb2.RemoveResponse(id=await self._answer())

    async def WatchService(self, request, context):  # type: ignore[no-untyped-def]
        answer = control_pb2.ServiceProgress()
        answer.summary.service.id = await self._answer()
        yield answer
        await asyncio.Event().wait()

    async def ServiceLogs(self, request, context):  # type: ignore[no-untyped-def]
        yield control_pb2.LogRecord(node_id=await self._answer())
        if request.follow:
            await asyncio.Event().wait()

    async def ListTasks(self, request, context):  # type: ignore[no-untyped-def]
        raise Conflict(f"{await self._answer()} says so")


class _Manager:
    def __init__(self, cluster: _Cluster, node_id: str) -> None:
        self.tls = cluster.authority.node(node_id)
        self.consensus = _Consensus(cluster, node_id)
        self.channels = PeerChannels(lambda: self.tls)
        self.forwarder = Forwarder(
            self.consensus,  # type: ignore[arg-type]
            lambda member: self.channels.to(member.address, member.node_id),
            rng=random.Random(1),
        )
        self.control = _Control(node_id)
        self.server = RpcServer()
        self.forwarder.register(
            self.server,
            add_ControlServicer_to_server,
            self.control,
            {
                "GetInfo": Place.ANYWHERE,
                "WatchService": Place.LEADER_RESUMED,
                "ServiceLogs": Place.ANYWHERE_IF_FOUND if cluster.logs_anywhere else Place.LEADER,
            },
        )
        self.member = Member(node_id, f"127.0.0.1:{self.server.listen_tls('127.0.0.1:0', lambda: self.tls)}")
        self.up = True

    async def stop(self) -> None:
        self.up = False
        await self.channels.close()
        await self.server.stop(0)


class _Cluster:
    def __init__(self, *, logs_anywhere: bool = False) -> None:
        self.authority = TestAuthority()
        self.logs_anywhere = logs_anywhere
        self.leader = ""
        self.term = 0
        self.managers: dict[str, _Manager] = {}

    def elect(self, node_id: str) -> None:
        self.leader, self.term = node_id, self.term + 1
        for manager in self.managers.values():
            for callback in manager.consensus.callbacks:
                callback(manager.consensus.leadership())

    def control(self, node_id: str) -> _Control:
        return self.managers[node_id].control

    @asynccontextmanager
    async def stub(self, node_id: str) -> AsyncIterator[Any]:
        tls = self.authority.person("Ann", Role.ADMIN)
        async with open_channel(self.managers[node_id].member.address, tls, "swarm-manager") as channel:
            yield ControlStub(channel)


@asynccontextmanager
async def three_managers(leader: str = "m1", *, logs_anywhere: bool = False) -> AsyncIterator[_Cluster]:
    cluster = _Cluster(logs_anywhere=logs_anywhere)
    async with AsyncExitStack() as stack:
        for node_id in ("m1", "m2", "m3"):
            manager = cluster.managers[node_id] = _Manager(cluster, node_id)
            await manager.server.start()
            stack.push_async_callback(manager.stop)
        cluster.elect(leader)
        yield cluster


async def node(stub: Any) -> str:
    answer = await stub.GetNode(control_pb2.GetRequest(reference="x"), timeout=TIMEOUT)
    return str(answer.node.id)


async def remove(stub: Any, request_id: str) -> str:
    answer = await stub.RemoveService(control_pb2.RemoveRequest(request_id=request_id), timeout=TIMEOUT)
    return str(answer.id)


async def failure(call: Awaitable[Any]) -> Exception:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc(caught.value)


async def test_the_leader_answers_whoever_is_asked_and_knows_the_caller() -> None:
    async with three_managers() as cluster:
        for asked in ("m1", "m2", "m3"):
            async with cluster.stub(asked) as stub:
                assert await node(stub) == "m1"
        assert cluster.control("m1").calls == [
            ("swarm-admin", "Ann", False),
            ("swarm-admin", "Ann", True),
            ("swarm-admin", "Ann", True),
        ]


async def test_some_methods_are_answered_anywhere() -> None:
    async with three_managers() as cluster, cluster.stub("m2") as stub:
        assert (await stub.GetInfo(control_pb2.GetInfoRequest(), timeout=TIMEOUT)).node_id == "m2"


async def test_a_read_that_may_be_stale_is_answered_by_whoever_is_asked() -> None:
    async with three_managers() as cluster, cluster.stub("m2") as stub:
        request = control_pb2.GetRequest(reference="x", stale=True)
        assert (await stub.GetNode(request, timeout=TIMEOUT)).node.id == "m2"
        cluster.elect("")
        assert (await stub.GetNode(request, timeout=TIMEOUT)).node.id == "m2"


async def test_the_leaders_refusal_arrives_as_it_is() -> None:
    async with three_managers() as cluster, cluster.stub("m2") as stub:
        error = await failure(stub.ListTasks(control_pb2.ListTasksRequest(), timeout=TIMEOUT))
        assert isinstance(error, Conflict)
        assert str(error) == "m1 says so"


async def test_a_manager_that_was_demoted_sends_callers_to_another_one() -> None:
    async with three_managers() as cluster, cluster.stub("m2") as stub:

        async def demoted() -> None:
            raise ManagerDemoted("'m2' is no manager and may not speak for others")

        cluster.control("m1").serve = demoted
        error = await failure(node(stub))
        assert isinstance(error, Unavailable), "a caller goes on with another manager then"
        assert str(error) == "this host is no manager any more; ask another one"


async def test_a_forwarded_call_is_not_forwarded_again() -> None:
    async with three_managers() as cluster:
        member = cluster.managers["m2"].member
        async with open_channel(member.address, cluster.managers["m3"].tls, "m2") as channel:
            call = ControlStub(channel).GetNode(
                control_pb2.GetRequest(),
                timeout=TIMEOUT,
                metadata=forwarded_peer_metadata(cluster.managers["m3"].tls.peer),
            )
            assert isinstance(await failure(call), NotLeader)


async def test_a_call_waits_for_the_election() -> None:
    async with three_managers("") as cluster, cluster.stub("m2") as stub:
        asking = asyncio.create_task(node(stub))
        await (await _informed(stub))
        cluster.elect("m3")
        assert await asking == "m3"


async def _informed(stub: Any) -> Any:
    """A call that was answered after those before it arrived."""
    return stub.GetInfo(control_pb2.GetInfoRequest(), timeout=TIMEOUT)


async def test_without_a_leader_the_numbers_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "ELECTION_TIMEOUT", 0.2)
    async with three_managers("") as cluster, cluster.stub("m2") as stub:
        cluster.managers["m1"].up = cluster.managers["m3"].up = False
        error = await failure(node(stub))
        assert isinstance(error, Unavailable)
        assert str(error).startswith("no leader: 1 of 3 managers reachable, a quorum needs 2;")


async def _never() -> None:
    await asyncio.Event().wait()


async def test_a_call_in_flight_survives_the_leaders_death_if_it_has_a_request_id() -> None:
    async with three_managers() as cluster, cluster.stub("m2") as stub:
        cluster.control("m1").serve = _never
        asking = asyncio.create_task(remove(stub, "r1"))
        await asyncio.wait_for(cluster.control("m1").began.wait(), TIMEOUT)
        await cluster.managers["m1"].stop()
        cluster.elect("m3")
        assert await asking == "m3"


async def test_without_a_request_id_the_outcome_is_unknown() -> None:
    async with three_managers() as cluster, cluster.stub("m2") as stub:
        cluster.control("m1").serve = _never
        asking = asyncio.create_task(failure(remove(stub, "")))
        await asyncio.wait_for(cluster.control("m1").began.wait(), TIMEOUT)
        await cluster.managers["m1"].stop()
        cluster.elect("m3")
        assert isinstance(await asking, OutcomeUnknown)
        assert cluster.control("m3").calls == []


async def test_a_write_whose_leader_was_lost_is_never_called_unwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "ELECTION_TIMEOUT", 0.3)
    async with three_managers() as cluster, cluster.stub("m2") as stub:
        cluster.control("m1").serve = _never
        writing = asyncio.create_task(failure(remove(stub, "request-1")))
        await asyncio.wait_for(cluster.control("m1").began.wait(), TIMEOUT)
        await cluster.managers["m1"].stop()
        cluster.elect("")
        error = await writing
        assert isinstance(error, OutcomeUnknown)
        assert "same request id" in str(error)
        assert isinstance(await failure(remove(stub, "request-2")), Unavailable), "this one reached nobody"
        assert isinstance(await failure(node(stub)), Unavailable)


async def test_who_does_not_lead_any_more_says_so_before_it_is_known_here() -> None:
    async with three_managers() as cluster, cluster.stub("m1") as stub:
        control = cluster.control("m1")

        async def deposed() -> None:
            control.serve = None
            raise NotLeader("this manager does not lead")

        control.serve = deposed
        assert await remove(stub, "") == "m1"  # asked again, as it was re-elected


async def test_a_call_leaves_a_leader_that_is_cut_off_as_soon_as_there_is_another() -> None:
    async with three_managers() as cluster, cluster.stub("m2") as stub:
        cluster.control("m1").serve = _never  # alive, but will not answer
        asking = asyncio.create_task(node(stub))
        await asyncio.wait_for(cluster.control("m1").began.wait(), TIMEOUT)
        cluster.elect("m2")
        assert await asking == "m2"


async def test_a_leader_that_loses_its_office_while_it_writes_hands_the_call_on() -> None:
    async with three_managers() as cluster, cluster.stub("m1") as stub:

        async def deposed() -> None:
            cluster.elect("m3")
            raise Unavailable("this manager does not lead")

        cluster.control("m1").serve = deposed
        assert await remove(stub, "") == "m3"  # surely not written: safe without a request id


async def test_unavailable_of_something_else_is_not_a_lost_leader() -> None:
    async with three_managers() as cluster, cluster.stub("m2") as stub:

        async def unreachable() -> None:
            raise Unavailable("the agent of w1 is not reachable")

        cluster.control("m1").serve = unreachable
        error = await failure(node(stub))
        assert isinstance(error, Unavailable)
        assert str(error) == "the agent of w1 is not reachable"
        assert len(cluster.control("m1").calls) == 1


async def test_a_leader_whose_address_is_dead_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "CONNECT_TIMEOUT", 0.3)
    async with three_managers() as cluster, cluster.stub("m2") as stub:
        await cluster.managers["m1"].stop()  # nobody has noticed yet
        asking = asyncio.create_task(remove(stub, ""))
        await (await _informed(stub))
        cluster.elect("m3")
        assert await asking == "m3"


@pytest.mark.parametrize("asked", ["m1", "m2", "m3"])
async def test_watching_goes_on_with_the_next_leader(asked: str) -> None:
    async with three_managers() as cluster, cluster.stub(asked) as stub:
        call = stub.WatchService(control_pb2.WatchServiceRequest(), timeout=TIMEOUT)
        assert (await call.read()).summary.service.id == "m1"
        cluster.elect("m2")
        assert (await call.read()).summary.service.id == "m2"
        cluster.elect("m3")
        assert (await call.read()).summary.service.id == "m3"
        call.cancel()


async def test_watching_survives_the_leaders_death() -> None:
    async with three_managers() as cluster, cluster.stub("m2") as stub:
        call = stub.WatchService(control_pb2.WatchServiceRequest(), timeout=TIMEOUT)
        assert (await call.read()).summary.service.id == "m1"
        await cluster.managers["m1"].stop()
        cluster.elect("m3")
        assert (await call.read()).summary.service.id == "m3"
        call.cancel()


async def test_other_streams_end_with_their_leader() -> None:
    async with three_managers() as cluster, cluster.stub("m2") as stub:
        call = stub.ServiceLogs(control_pb2.ServiceLogsRequest(follow=True), timeout=TIMEOUT)
        assert (await call.read()).node_id == "m1"
        cluster.elect("m3")
        assert "the leader was lost" in str(await failure(call.read()))


async def test_a_follower_that_does_not_know_yet_asks_the_leader() -> None:
    async with three_managers(logs_anywhere=True) as cluster, cluster.stub("m2") as stub:

        async def unknown() -> None:
            raise NotFound("no such service")

        async def asked() -> list[str]:
            call = stub.ServiceLogs(control_pb2.ServiceLogsRequest(), timeout=TIMEOUT)
            return [record.node_id async for record in call]

        assert await asked() == ["m2"]
        cluster.control("m2").serve = unknown
        assert await asked() == ["m1"]
        cluster.control("m1").serve = unknown
        assert isinstance(await failure(asked()), NotFound)


async def test_a_renewed_certificate_is_used_for_the_next_call() -> None:
    async with three_managers() as cluster, cluster.stub("m2") as stub:
        assert await node(stub) == "m1"
        before = cluster.managers["m2"].channels.to(cluster.managers["m1"].member.address, "m1")
        cluster.managers["m2"].tls = cluster.authority.node("m2")
        assert await node(stub) == "m1"
        assert cluster.managers["m2"].channels.to(cluster.managers["m1"].member.address, "m1") is not before


async def test_a_watch_and_a_write_outlive_the_connection_that_a_renewal_replaces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`swarmctl service create` hung for ever, asked of a follower whose certificate was renewed meanwhile: half a minute later
    the old connection to the leader was closed, and neither an answer nor an error came any more."""
    monkeypatch.setattr(channels, "CLOSING_GRACE", 0.05)
    async with three_managers() as cluster, cluster.stub("m2") as stub:
        watching = stub.WatchService(control_pb2.WatchServiceRequest(), timeout=TIMEOUT)
        assert (await watching.read()).summary.service.id == "m1"
        control, again = cluster.control("m1"), asyncio.Event()

        async def first_never_answers() -> None:
            if not again.is_set():
                again.set()
                await asyncio.Event().wait()

        control.serve = first_never_answers
        writing = asyncio.ensure_future(remove(stub, "id"))
        await again.wait()
        cluster.managers["m2"].tls = cluster.authority.node("m2")
        assert await node(stub) == "m1"
        async with asyncio.timeout(5.0):
            assert (await watching.read()).summary.service.id == "m1"
            assert await writing == "m1"
        watching.cancel()


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_connection_that_is_replaced_before_the_call_begins_is_asked_for_again(streaming: bool) -> None:
    """A command that came just while the certificate of its manager was renewed "failed unexpectedly (UsageError)"."""
    async with three_managers() as cluster, cluster.stub("m2") as stub:
        manager = cluster.managers["m2"]
        replaced = open_channel(cluster.managers["m1"].member.address, manager.tls, "m1")
        await replaced.close()
        given, connect = [replaced], manager.forwarder._channel_to
        manager.forwarder._channel_to = lambda member: given.pop() if given else connect(member)
        if streaming:
            call = stub.WatchService(control_pb2.WatchServiceRequest(), timeout=TIMEOUT)
            assert (await call.read()).summary.service.id == "m1"
            call.cancel()
        else:
            assert await remove(stub, "") == "m1"
        assert not given
