"""Real TLS on loopback: who is let in, as whom, and for how long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from swarm import servers
from swarm.channels import open_channel, open_enrolment_channel, open_local
from swarm.errors import Conflict, InternalError, PermissionDenied, SwarmError, Unauthenticated, Unavailable, from_rpc
from swarm.identity import Peer, Role, TlsMaterial
from swarm.servers import RpcServer, current_peer, forwarded_peer_metadata, is_forwarded
from swarm.v1 import control_pb2, enrolment_pb2
from swarm.v1.control_pb2_grpc import ControlServicer, ControlStub, add_ControlServicer_to_server
from swarm.v1.enrolment_pb2_grpc import EnrolmentServicer, EnrolmentStub, add_EnrolmentServicer_to_server

from tests.unit.identity.certificates import WORKER, TestAuthority

CALL_TIMEOUT = 20.0


class _Control(ControlServicer):
    """Answers with who calls. WatchService streams as the test says."""

    def __init__(self) -> None:
        self.stream_began = asyncio.Event()
        self.stream_ended = asyncio.Event()
        self.tasks: set[asyncio.Task[Any] | None] = set()

    async def GetInfo(self, request, context):  # type: ignore[no-untyped-def]
        peer = current_peer()
        return control_pb2.GetInfoResponse(
            node_id=peer.name, leader_id=peer.role.value, version="forwarded" if is_forwarded() else ""
        )

    async def CreateService(self, request, context):  # type: ignore[no-untyped-def]
        raise Conflict("service web: changed")

    async def RemoveService(self, request, context):  # type: ignore[no-untyped-def]
        raise ZeroDivisionError("secret detail")

    async def WatchService(self, request, context):  # type: ignore[no-untyped-def]
        try:
            self.tasks.add(asyncio.current_task())
            self.stream_began.set()
            yield control_pb2.ServiceProgress()
            # A group belongs to the task that entered it: all steps of a handler must run in one.
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(0))
                self.tasks.add(asyncio.current_task())
                yield control_pb2.ServiceProgress(converged=True)
            if request.reference == "ends":
                return
            if request.reference == "fails":
                raise Conflict("it changed")
            await asyncio.Event().wait()
        finally:
            self.stream_ended.set()


class _Enrolment(EnrolmentServicer):
    async def Join(self, request, context):  # type: ignore[no-untyped-def]
        return enrolment_pb2.JoinResponse(node_id=current_peer().role.value)


@asynccontextmanager
async def serving(
    source: Callable[[], TlsMaterial],
    *,
    anonymous: bool = False,
    is_revoked: Callable[[Peer], bool] = lambda _: False,
    is_demoted: Callable[[Peer], bool] = lambda _: False,
) -> AsyncIterator[tuple[str, _Control]]:
    server, control = RpcServer(anonymous=anonymous, is_revoked=is_revoked, is_demoted=is_demoted), _Control()
    add_ControlServicer_to_server(control, server.server)
    add_EnrolmentServicer_to_server(_Enrolment(), server.server)
    port = server.listen_tls("127.0.0.1:0", source)
    await server.start()
    try:
        yield f"127.0.0.1:{port}", control
    finally:
        await server.stop(0)


async def info(
    address: str, tls: TlsMaterial, *, name: str = "swarm-manager", metadata: tuple[tuple[str, str], ...] = ()
) -> control_pb2.GetInfoResponse:
    async with open_channel(address, tls, name) as channel:
        try:
            return await ControlStub(channel).GetInfo(
                control_pb2.GetInfoRequest(), timeout=CALL_TIMEOUT, metadata=metadata
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from error


@pytest.fixture(scope="module")
def authority() -> TestAuthority:
    return TestAuthority()


async def test_a_caller_is_who_its_certificate_says(authority: TestAuthority) -> None:
    tls = authority.node("m1")
    async with serving(lambda: tls) as (address, _):
        answer = await info(address, authority.person("Ann", Role.VIEWER))
        assert (answer.node_id, answer.leader_id) == ("Ann", "swarm-viewer")


async def test_a_server_must_carry_the_expected_name(authority: TestAuthority) -> None:
    tls = authority.node("w1", WORKER)
    async with serving(lambda: tls) as (address, _):
        with pytest.raises(Unavailable):
            await info(address, authority.node("m2"))  # expects swarm-manager
        assert (await info(address, authority.node("m2"), name="w1")).node_id == "m2"


async def test_a_certificate_of_another_cluster_is_refused(authority: TestAuthority) -> None:
    tls, foreign = authority.node("m1"), TestAuthority("cluster2")
    async with serving(lambda: tls) as (address, _):
        intruder = foreign.node("m1")
        with pytest.raises(Unavailable):
            await info(address, intruder)  # does not even trust the server
        with pytest.raises(Unavailable):
            await info(address, replace(intruder, ca=tls.ca))  # the server does not trust it


async def test_an_expired_certificate_is_refused(authority: TestAuthority) -> None:
    tls = authority.node("m1")
    async with serving(lambda: tls) as (address, _):
        with pytest.raises((Unavailable, Unauthenticated)):
            await info(address, authority.node("m2", validity=10, age=100))


async def test_a_role_may_call_only_what_the_table_says(authority: TestAuthority) -> None:
    tls = authority.node("m1")
    async with serving(lambda: tls) as (address, _):
        with pytest.raises(PermissionDenied, match=r"swarm-worker of 'w1' may not call /swarm.v1.Control/GetInfo"):
            await info(address, authority.node("w1", WORKER))
        async with open_channel(address, authority.person("Vic", Role.VIEWER), "swarm-manager") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ControlStub(channel).CreateService(control_pb2.CreateServiceRequest(), timeout=CALL_TIMEOUT)
            assert isinstance(from_rpc(caught.value), PermissionDenied)


async def test_only_a_manager_may_speak_for_another(authority: TestAuthority) -> None:
    tls = authority.node("m1")
    metadata = forwarded_peer_metadata(Peer("Zoë 1", Role.VIEWER, "cluster1"))
    async with serving(lambda: tls) as (address, _):
        answer = await info(address, authority.node("m2"), metadata=metadata)
        assert (answer.node_id, answer.leader_id, answer.version) == ("Zoë 1", "swarm-viewer", "forwarded")
        with pytest.raises(PermissionDenied, match="may not speak for others"):
            await info(address, authority.person("Eve", Role.ADMIN), metadata=metadata)
        with pytest.raises(Unauthenticated, match="unknown role"):
            await info(address, authority.node("m2"), metadata=((servers.FORWARDED_PEER_KEY, "emperor x"),))


async def test_a_removed_manager_cannot_forward(authority: TestAuthority) -> None:
    tls = authority.node("m1")
    metadata = forwarded_peer_metadata(Peer("Ann", Role.ADMIN, "cluster1"))
    async with serving(lambda: tls, is_revoked=lambda peer: peer.name == "m2") as (address, _):
        with pytest.raises(Unauthenticated, match="'m2' is not, or no longer, a member"):
            await info(address, authority.node("m2"), metadata=metadata)


async def test_errors_keep_their_kind_and_defects_do_not_leak(authority: TestAuthority) -> None:
    tls = authority.node("m1")
    async with serving(lambda: tls) as (address, _), open_channel(address, tls, "m1") as channel:
        stub = ControlStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CreateService(control_pb2.CreateServiceRequest(), timeout=CALL_TIMEOUT)
        error = from_rpc(caught.value)
        assert isinstance(error, Conflict)
        assert str(error) == "service web: changed"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.RemoveService(control_pb2.RemoveRequest(), timeout=CALL_TIMEOUT)
        error = from_rpc(caught.value)
        assert isinstance(error, InternalError)
        assert "secret detail" not in str(error)


async def test_a_handler_runs_in_one_task_and_its_end_and_failure_reach_the_caller(authority: TestAuthority) -> None:
    tls = authority.node("m1")
    async with serving(lambda: tls) as (address, control), open_channel(address, tls, "m1") as channel:
        stub = ControlStub(channel)
        call = stub.WatchService(control_pb2.WatchServiceRequest(reference="ends"), timeout=CALL_TIMEOUT)
        assert [answer.converged async for answer in call] == [False, True]
        assert len(control.tasks) == 1
        call = stub.WatchService(control_pb2.WatchServiceRequest(reference="fails"), timeout=CALL_TIMEOUT)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [answer async for answer in call]
        assert isinstance(from_rpc(caught.value), Conflict)


async def _end_of_stream(address: str, tls: TlsMaterial) -> SwarmError:
    async with open_channel(address, tls, "swarm-manager") as channel:
        call = ControlStub(channel).WatchService(control_pb2.WatchServiceRequest(), timeout=CALL_TIMEOUT)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [answer async for answer in call]
        return from_rpc(caught.value)


async def test_a_stream_ends_when_the_certificate_expires(
    authority: TestAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "REVOCATION_CHECK_PERIOD", 0.05)
    tls = authority.node("m1")
    async with serving(lambda: tls) as (address, control):
        error = await _end_of_stream(address, authority.node("m2", validity=2))
        assert isinstance(error, Unauthenticated)
        assert "has expired" in str(error)
        await asyncio.wait_for(control.stream_ended.wait(), CALL_TIMEOUT)


async def test_a_stream_ends_when_its_caller_is_removed(
    authority: TestAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "REVOCATION_CHECK_PERIOD", 0.05)
    tls = authority.node("m1")
    removed: set[str] = set()
    async with serving(lambda: tls, is_revoked=lambda peer: peer.name in removed) as (address, control):
        ending = asyncio.create_task(_end_of_stream(address, authority.node("m2")))
        await asyncio.wait_for(control.stream_began.wait(), CALL_TIMEOUT)
        removed.add("m2")
        assert "'m2' is not, or no longer, a member" in str(await ending)
        await asyncio.wait_for(control.stream_ended.wait(), CALL_TIMEOUT)


async def test_a_demoted_manager_has_the_rights_of_a_worker(
    authority: TestAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "REVOCATION_CHECK_PERIOD", 0.05)
    tls = authority.node("m1")
    demoted: set[str] = set()
    async with serving(lambda: tls, is_demoted=lambda peer: peer.name in demoted) as (address, control):
        ending = asyncio.create_task(_end_of_stream(address, authority.node("m2")))
        await asyncio.wait_for(control.stream_began.wait(), CALL_TIMEOUT)
        demoted.add("m2")
        assert "the role swarm-worker of 'm2' may not call" in str(await ending)
        with pytest.raises(PermissionDenied, match="the role swarm-worker of 'm2' may not call"):
            await info(address, authority.node("m2"))
        for_another = forwarded_peer_metadata(Peer("Ann", Role.ADMIN, "c1"))
        with pytest.raises(PermissionDenied, match="'m2' is no manager and may not speak for others"):
            await info(address, authority.node("m2"), metadata=for_another)
        assert (await info(address, authority.node("m3"))).node_id == "m3"


async def test_a_handler_is_cancelled_when_the_caller_goes(authority: TestAuthority) -> None:
    tls = authority.node("m1")
    async with serving(lambda: tls) as (address, control):
        async with open_channel(address, tls, "m1") as channel:
            call = ControlStub(channel).WatchService(control_pb2.WatchServiceRequest(), timeout=CALL_TIMEOUT)
            await call.read()
            call.cancel()
        await asyncio.wait_for(control.stream_ended.wait(), CALL_TIMEOUT)


async def test_a_renewed_server_certificate_is_used_by_new_connections(authority: TestAuthority) -> None:
    current = authority.node("m1", validity=3)
    async with serving(lambda: current) as (address, _):
        assert (await info(address, authority.node("m2"), name="m1")).node_id == "m2"
        current = authority.node("renamed")
        assert (await info(address, authority.node("m2"), name="renamed")).node_id == "m2"
        with pytest.raises(Unavailable):
            await info(address, authority.node("m2"), name="m1")


async def test_the_server_keeps_its_certificate_while_the_source_fails(authority: TestAuthority) -> None:
    material = authority.node("m1")
    broken = False

    def source() -> TlsMaterial:
        if broken:
            raise InternalError("the disk is gone")
        return material

    async with serving(source) as (address, _):
        broken = True
        assert (await info(address, authority.node("m2"), name="m1")).node_id == "m2"


async def test_the_enrolment_port_takes_callers_without_a_certificate_for_joining_only(
    authority: TestAuthority,
) -> None:
    tls = authority.node("m1")
    async with (
        serving(lambda: tls, anonymous=True) as (address, _),
        open_enrolment_channel(address, tls.ca, "swarm-manager") as channel,
    ):
        answer = await EnrolmentStub(channel).Join(enrolment_pb2.JoinRequest(), timeout=CALL_TIMEOUT)
        assert answer.node_id == "anonymous"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ControlStub(channel).GetInfo(control_pb2.GetInfoRequest(), timeout=CALL_TIMEOUT)
        assert isinstance(from_rpc(caught.value), Unauthenticated)


async def test_the_local_socket_is_local(tmp_path: Path) -> None:
    server = RpcServer()
    add_ControlServicer_to_server(_Control(), server.server)
    socket = tmp_path / "control.sock"
    server.listen_unix(socket)
    assert socket.stat().st_mode & 0o077 == 0, "before it has its group, nobody else may connect"
    await server.start()
    try:
        assert socket.stat().st_mode & 0o777 == 0o660
        async with open_local(socket) as channel:
            answer = await ControlStub(channel).GetInfo(control_pb2.GetInfoRequest(), timeout=CALL_TIMEOUT)
        assert answer.leader_id == "local"
    finally:
        await server.stop(0)
    assert not socket.exists()


def test_a_peer_knows_when_its_certificate_was_issued(authority: TestAuthority) -> None:
    before = time.time()
    peer = authority.node("m1", validity=100).peer
    assert before - 1 <= peer.issued_at <= time.time()
    assert before + 99 <= peer.expires_at <= time.time() + 100
