"""Joining and renewal over real TLS: the host recognises the cluster before it shows the secret, and the other way round."""

from __future__ import annotations

import asyncio
import errno
import random
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from swarm import renewal as renewal_module
from swarm.clock import ManualClock, SystemClock
from swarm.enrolment import join, split_address, with_default_port
from swarm.errors import (
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    ResourceExhausted,
    SwarmError,
    Unauthenticated,
    Unavailable,
)
from swarm.identity import Peer, Role, TlsFiles, TlsMaterial
from swarm.ids import id_source
from swarm.keys import new_key_and_request
from swarm.renewal import Renewal, renewal_time
from swarm.servers import RpcServer
from swarm.tls_chain import shown_chain
from swarm.tokens import new_secret
from swarm.v1 import enrolment_pb2, types_pb2
from swarm.v1.enrolment_pb2_grpc import add_CertificatesServicer_to_server, add_EnrolmentServicer_to_server

from orchestrator.api.channels import PeerChannels
from orchestrator.api.forwarding import Forwarder
from orchestrator.consensus import Leadership, Member
from orchestrator.identity.authority import RootAuthority
from orchestrator.identity.enrolment import CertificatesService, EnrolmentService
from orchestrator.identity.membership import bootstrap_objects, with_role
from orchestrator.identity.revocation import is_revoked
from orchestrator.store import Create, Kind, Remove, Store, Transactions, Update, copy_of
from tests.support.consensus import LocalConsensus

TIMEOUT = 30.0
WORKER, MANAGER = types_pb2.NODE_ROLE_WORKER, types_pb2.NODE_ROLE_MANAGER


class _Follower(LocalConsensus):
    """A member that does not lead and knows who does."""

    leader = Member("m1", "")

    def leadership(self) -> Leadership:
        return Leadership(1, "m1", False, False)


class Manager:
    """One manager with its two ports. A follower shares the leader's store, as if it were always up to date."""

    def __init__(self, cluster: Cluster, node_id: str, *, leads: bool) -> None:
        keys = new_key_and_request(node_id)
        authority = cluster.authority
        chain = authority.issue_node(keys.csr_pem, node_id, MANAGER, now=time.time(), validity=3600)
        self.tls = TlsMaterial(keys.key_pem, chain, authority.certificate_pem)
        self.channels = PeerChannels(lambda: self.tls)
        log = cluster.log if leads else _Follower(cluster.store, node_id=node_id)
        self.forwarder = Forwarder(
            log,
            lambda member: self.channels.to(cluster.addresses[member.node_id], member.node_id),
            rng=random.Random(1),
        )
        log.members = cluster.log.members
        enrolment = EnrolmentService(cluster.store, cluster.transactions, clock=SystemClock(), ids=cluster.ids)
        certificates = CertificatesService(cluster.store, cluster.transactions, clock=SystemClock())
        self.enrolment = RpcServer(anonymous=True)
        self.cluster = RpcServer(is_revoked=lambda peer: is_revoked(cluster.store.snapshot(), peer, time.time()))
        self.forwarder.register(self.enrolment, add_EnrolmentServicer_to_server, enrolment)
        self.forwarder.register(self.cluster, add_EnrolmentServicer_to_server, enrolment)
        self.forwarder.register(self.cluster, add_CertificatesServicer_to_server, certificates)
        self.port = self.enrolment.listen_tls("127.0.0.1:0", lambda: self.tls)
        cluster.addresses[node_id] = f"127.0.0.1:{self.cluster.listen_tls('127.0.0.1:0', lambda: self.tls)}"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        await self.enrolment.start()
        await self.cluster.start()

    async def stop(self) -> None:
        await self.channels.close()
        await self.enrolment.stop(0)
        await self.cluster.stop(0)


class Cluster:
    def __init__(self, cluster_id: str) -> None:
        self.ids = id_source(random.Random(5))
        self.store = Store()
        self.log = LocalConsensus(self.store, node_id="m1")
        self.transactions = Transactions(self.log, self.store, proposer="m1", clock=SystemClock())
        self.authority = RootAuthority.create(cluster_id, time.time())
        self.addresses: dict[str, str] = {}
        self.cluster_id = cluster_id

    async def begin(self) -> None:
        await self.transactions.commit(
            bootstrap_objects(
                types_pb2.ClusterSpec(),
                cluster_id=self.cluster_id,
                authority=self.authority,
                node_id="m1",
                hostname="host1",
                address="10.1.0.1",
                availability=types_pb2.AVAILABILITY_ACTIVE,
                ids=self.ids,
            )
        )

    def token(self, role: types_pb2.NodeRole.ValueType = WORKER) -> str:
        cluster = self.store.snapshot().cluster
        assert cluster is not None
        secrets = cluster.join_secrets
        return self.authority.token(secrets.manager if role == MANAGER else secrets.worker)


@asynccontextmanager
async def running(cluster_id: str = "c1") -> AsyncIterator[tuple[Cluster, Manager]]:
    cluster = Cluster(cluster_id)
    await cluster.begin()
    manager = Manager(cluster, "m1", leads=True)
    await manager.start()
    try:
        yield cluster, manager
    finally:
        await manager.stop()


async def joining(manager: Manager | str, token: str, directory: Path, *, request_id: str = "r1", host: str = "host2"):  # type: ignore[no-untyped-def]
    address = manager if isinstance(manager, str) else manager.address
    return await join(
        token,
        [address],
        files=TlsFiles(directory / host),
        hostname=host,
        advertise_address="10.1.0.2",
        request_id=request_id,
        rng=random.Random(1),
    )


async def test_the_server_shows_its_whole_chain() -> None:
    async with running() as (_, manager):
        chain = await asyncio.to_thread(shown_chain, *split_address(manager.address))
        assert len(chain) == 2


@pytest.mark.parametrize("role", [WORKER, MANAGER])
async def test_a_host_joins_in_the_role_of_its_token(tmp_path: Path, role: types_pb2.NodeRole.ValueType) -> None:
    async with running() as (cluster, manager):
        joined = await joining(manager, cluster.token(role), tmp_path)
        node = cluster.store.snapshot().nodes[joined.node_id]
        assert (node.number, node.role, node.spec.desired_role, node.description.hostname) == (2, role, role, "host2")
        assert joined.managers[0] == "10.1.0.1:2378"
        assert node.HasField("manager") == (role == MANAGER)
        tls = TlsFiles(tmp_path / "host2").read()
        assert tls.peer.name == joined.node_id
        assert tls.peer.cluster_id == joined.cluster_id == "c1"
        load_pem_private_key(tls.key, None)


async def test_joining_twice_with_one_request_id_is_one_node(tmp_path: Path) -> None:
    async with running() as (cluster, manager):
        once = await joining(manager, cluster.token(), tmp_path)
        again = await joining(manager, cluster.token(), tmp_path)
        other = await joining(manager, cluster.token(), tmp_path, request_id="r2", host="host3")
        assert once.node_id == again.node_id != other.node_id
        assert sorted(node.number for node in cluster.store.snapshot().nodes) == [1, 2, 3]


async def test_hosts_that_join_at_once_get_different_numbers(tmp_path: Path) -> None:
    async with running() as (cluster, manager):
        await asyncio.gather(
            *(
                joining(manager, cluster.token(), tmp_path, request_id=f"r{number}", host=f"h{number}")
                for number in range(8)
            )
        )
        assert sorted(node.number for node in cluster.store.snapshot().nodes) == list(range(1, 10))


async def test_a_token_of_another_cluster_is_noticed_before_the_secret_is_shown(tmp_path: Path) -> None:
    async with running() as (_, manager), running("c2") as (other, _):
        with pytest.raises(Unauthenticated, match="belongs to another cluster than the join token"):
            await joining(manager, other.token(), tmp_path)
        assert not TlsFiles(tmp_path / "host2").exists()


async def test_a_rotated_token_is_refused(tmp_path: Path) -> None:
    async with running() as (cluster, manager):
        token = cluster.token()
        current = cluster.store.snapshot().cluster
        assert current is not None
        rotated = copy_of(current)
        rotated.join_secrets.worker = new_secret()
        await cluster.transactions.commit([Update(rotated)])
        with pytest.raises(Unauthenticated, match=r"not valid \(any more\): it may have been rotated"):
            await joining(manager, token, tmp_path)
        assert len(cluster.store.snapshot().nodes) == 1


async def test_a_malformed_token_goes_nowhere(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="malformed"):
        await joining("127.0.0.1:1", "SWMTKN-1-x", tmp_path)


async def test_an_address_without_a_manager_says_so(tmp_path: Path) -> None:
    async with running() as (cluster, _):
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(Unavailable, match=f"127.0.0.1:{port}"):
                await joining(f"127.0.0.1:{port}", cluster.token(), tmp_path)
        with pytest.raises(Unavailable, match="is not reachable"):
            await joining(f"127.0.0.1:{port}", cluster.token(), tmp_path)


async def test_addresses_are_tried_in_turn(tmp_path: Path) -> None:
    async with running() as (cluster, manager):
        joined = await join(
            cluster.token(),
            ["127.0.0.1:1", manager.address],
            files=TlsFiles(tmp_path),
            hostname="host2",
            advertise_address="10.1.0.2",
            request_id="r1",
        )
        assert joined.node_id in cluster.store.snapshot().nodes


async def test_a_malformed_request_leaves_no_half_made_node(tmp_path: Path) -> None:
    async with running() as (cluster, manager):
        with pytest.raises(InvalidArgument, match="not an address"):
            await join(
                cluster.token(),
                [manager.address],
                files=TlsFiles(tmp_path),
                hostname="host2",
                advertise_address="host:port",
                request_id="r1",
            )
        assert len(cluster.store.snapshot().nodes) == 1


async def test_a_host_that_others_could_not_reach_makes_no_node(tmp_path: Path) -> None:
    async with running() as (cluster, manager):
        mine = types_pb2.Network(id="n", spec=types_pb2.NetworkSpec(name="mine"), subnet="10.1.0.0/24")
        await cluster.transactions.commit([Create(mine)])
        with pytest.raises(FailedPrecondition, match='the subnet of network "mine"'):
            await joining(manager, cluster.token(), tmp_path)
        assert len(cluster.store.snapshot().nodes) == 1


async def test_a_follower_hands_a_join_and_a_renewal_to_the_leader(tmp_path: Path) -> None:
    async with running() as (cluster, _), AsyncExitStack() as stack:
        cluster.log.members["m2"] = Member("m2", "")
        await cluster.transactions.commit([Create(types_pb2.Node(id="m2", number=99, role=MANAGER))])
        follower = Manager(cluster, "m2", leads=False)
        await follower.start()
        stack.push_async_callback(follower.stop)
        joined = await joining(follower, cluster.token(), tmp_path)
        files = TlsFiles(tmp_path / "host2")
        before = files.read()
        peer = await renewal(files, cluster.addresses["m2"]).renew()
        assert (peer.name, peer.role) == (joined.node_id, Role.WORKER)
        assert files.read().key != before.key


def renewal(files: TlsFiles, *addresses: str) -> Renewal:
    async def ignore(peer: Peer) -> None: ...

    return Renewal(files, lambda: addresses, clock=SystemClock(), rng=random.Random(1), on_renewed=ignore)


async def want_role(cluster: Cluster, node_id: str, role: types_pb2.NodeRole.ValueType) -> None:
    node = copy_of(cluster.store.snapshot().nodes[node_id])
    node.spec.desired_role = role
    await cluster.transactions.commit([Update(node)])


async def test_promotion_and_demotion_travel_in_the_certificate(tmp_path: Path) -> None:
    async with running() as (cluster, manager):
        joined = await joining(manager, cluster.token(), tmp_path)
        files = TlsFiles(tmp_path / "host2")
        await want_role(cluster, joined.node_id, MANAGER)
        assert (await renewal(files, cluster.addresses["m1"]).renew()).role is Role.MANAGER
        node = cluster.store.snapshot().nodes[joined.node_id]
        assert (node.role, node.manager.address) == (MANAGER, "10.1.0.2:2378")
        await want_role(cluster, joined.node_id, WORKER)
        assert (await renewal(files, cluster.addresses["m1"]).renew()).role is Role.MANAGER  # still in the log
        await cluster.transactions.commit([Update(with_role(cluster.store.snapshot().nodes[joined.node_id], WORKER))])
        assert (await renewal(files, cluster.addresses["m1"]).renew()).role is Role.WORKER
        await want_role(cluster, joined.node_id, MANAGER)
        assert (await renewal(files, cluster.addresses["m1"]).renew()).role is Role.MANAGER


async def test_a_removed_node_gets_no_certificate(tmp_path: Path) -> None:
    async with running() as (cluster, manager):
        joined = await joining(manager, cluster.token(), tmp_path)
        await cluster.transactions.commit([Remove(Kind.NODE, joined.node_id)])
        renewing = renewal(TlsFiles(tmp_path / "host2"), cluster.addresses["m1"])
        with pytest.raises(Unauthenticated, match="was removed from the swarm"):
            await renewing.renew()
        renewing.request()
        with pytest.raises(Unauthenticated):
            await asyncio.wait_for(renewing.run(), TIMEOUT)
        assert isinstance(renewing.failed, Unauthenticated)


# ------------------------------------------------------------------------------------------------- the schedule, pure


def test_renewal_is_due_around_half_of_the_life() -> None:
    peer = Peer("n", Role.WORKER, "c", expires_at=1100.0, issued_at=100.0)
    assert renewal_time(peer, 0.0) == 550.0
    assert renewal_time(peer, 0.5) == 600.0
    assert renewal_time(peer, 0.999) < 650.0


class _Calls:
    """Stands for the managers: refuses as told, then signs."""

    def __init__(self, authority: RootAuthority, *failures: SwarmError) -> None:
        self.authority = authority
        self.failures = list(failures)
        self.asked: list[str] = []

    async def __call__(self, address: str, tls: TlsMaterial, csr_pem: bytes) -> enrolment_pb2.RenewResponse:
        self.asked.append(address)
        if self.failures:
            raise self.failures.pop(0)
        chain = self.authority.issue_node(csr_pem, tls.peer.name, WORKER, now=time.time(), validity=3600)
        return enrolment_pb2.RenewResponse(certificate_pem=chain, ca_pem=self.authority.certificate_pem, role=WORKER)


def member_files(authority: RootAuthority, directory: Path) -> TlsFiles:
    keys = new_key_and_request("n1")
    files = TlsFiles(directory)
    chain = authority.issue_node(keys.csr_pem, "n1", WORKER, now=time.time(), validity=3600)
    files.write(keys.key_pem, chain, authority.certificate_pem)
    return files


async def test_the_loop_renews_when_asked_and_tries_the_next_manager(tmp_path: Path) -> None:
    authority = RootAuthority.create("c1", time.time())
    files = member_files(authority, tmp_path)
    calls = _Calls(authority, Unavailable("down"))
    renewed: asyncio.Queue[Peer] = asyncio.Queue()
    clock = ManualClock(time.time())
    loop = Renewal(files, lambda: ["a:1", "b:1"], clock=clock, rng=random.Random(1), on_renewed=renewed.put, call=calls)
    before = files.read()
    async with asyncio.TaskGroup() as group:
        running_loop = group.create_task(loop.run())
        loop.request()
        await asyncio.wait_for(renewed.get(), TIMEOUT)
        running_loop.cancel()
    assert calls.asked == ["a:1", "b:1"]
    assert files.read().certificate != before.certificate
    assert loop.failed is None


@pytest.mark.parametrize("unreadable", [False, True])
async def test_the_loop_outlives_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unreadable: bool) -> None:
    """The node daemon ended, with all its tasks' services, because its certificate could not be written for a moment."""
    monkeypatch.setattr(renewal_module, "LONGEST_SLEEP", 0.01)
    authority = RootAuthority.create("c1", time.time())
    files = member_files(authority, tmp_path)
    clock = ManualClock(time.time())
    renewed: asyncio.Queue[Peer] = asyncio.Queue()
    loop = Renewal(
        files, lambda: ["a:1"], clock=clock, rng=random.Random(1), on_renewed=renewed.put, call=_Calls(authority)
    )
    failures = [OSError(errno.ENOSPC, "No space left on device")]
    make_directory, read_bytes = tempfile.mkdtemp, Path.read_bytes

    def full(**options: Any) -> str:
        if failures and not unreadable:
            raise failures.pop()
        return make_directory(**options)

    def short_of_descriptors(path: Path) -> bytes:
        if failures and unreadable:
            failures.pop()
            raise OSError(errno.EMFILE, "Too many open files")
        return read_bytes(path)

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    monkeypatch.setattr(Path, "read_bytes", short_of_descriptors)
    async with asyncio.TaskGroup() as group:
        running_loop = group.create_task(loop.run())
        loop.request()
        if not unreadable:
            async with asyncio.timeout(TIMEOUT):
                while loop.failed is None:  # noqa: ASYNC110 – nothing announces it
                    await asyncio.sleep(0.01)
            assert isinstance(loop.failed, ResourceExhausted)
            clock.advance(60)
        await asyncio.wait_for(renewed.get(), TIMEOUT)
        running_loop.cancel()
    assert not failures and loop.failed is None


@pytest.mark.parametrize(
    "error", [BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), RuntimeError("can't start new thread")]
)
async def test_a_host_that_can_start_no_process_for_a_moment_renews_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """swarmd ended, with a traceback, where its host had no process or descriptor left in the moment of a renewal: the key is
    made in a process of its own."""
    authority = RootAuthority.create("c1", time.time())
    clock = ManualClock(time.time())
    renewed: asyncio.Queue[Peer] = asyncio.Queue()
    loop = Renewal(
        member_files(authority, tmp_path), lambda: ["a:1"], clock=clock, rng=random.Random(1), on_renewed=renewed.put,
        call=_Calls(authority),
    )  # fmt: skip
    failures, start = [error], asyncio.create_subprocess_exec

    async def short(*words: str, **options: Any) -> asyncio.subprocess.Process:
        if failures:
            raise failures.pop()
        return await start(*words, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", short)
    monkeypatch.setattr(renewal_module, "LONGEST_SLEEP", 0.01)
    async with asyncio.TaskGroup() as group:
        running_loop = group.create_task(loop.run())
        loop.request()
        async with asyncio.timeout(TIMEOUT):
            while loop.failed is None:  # noqa: ASYNC110 – nothing announces it
                await asyncio.sleep(0.01)
        assert isinstance(loop.failed, ResourceExhausted)
        clock.advance(60)
        await asyncio.wait_for(renewed.get(), TIMEOUT)
        running_loop.cancel()


async def test_requests_that_follow_a_renewal_wait_a_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manager that is to be a worker asks again and again, until it has left the log."""
    monkeypatch.setattr(renewal_module, "LONGEST_SLEEP", 0.01)
    authority = RootAuthority.create("c1", time.time())
    calls = _Calls(authority)
    clock = ManualClock(time.time())
    renewed: asyncio.Queue[Peer] = asyncio.Queue()
    loop = Renewal(
        member_files(authority, tmp_path),
        lambda: ["a:1"],
        clock=clock,
        rng=random.Random(1),
        on_renewed=renewed.put,
        call=calls,
    )
    async with asyncio.TaskGroup() as group:
        running_loop = group.create_task(loop.run())
        loop.request()
        await asyncio.wait_for(renewed.get(), TIMEOUT)
        loop.request()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(renewed.get(), 0.1)
        clock.advance(renewal_module.REQUEST_INTERVAL)
        await asyncio.wait_for(renewed.get(), TIMEOUT)
        running_loop.cancel()
    assert len(calls.asked) == 2


async def test_the_loop_renews_when_it_is_time(tmp_path: Path) -> None:
    authority = RootAuthority.create("c1", time.time())
    renewed: asyncio.Queue[Peer] = asyncio.Queue()
    clock = ManualClock(time.time() + 2400)  # two thirds of the hour have gone
    loop = Renewal(
        member_files(authority, tmp_path),
        lambda: ["a:1"],
        clock=clock,
        rng=random.Random(1),
        on_renewed=renewed.put,
        call=_Calls(authority),
    )
    async with asyncio.TaskGroup() as group:
        running_loop = group.create_task(loop.run())
        await asyncio.wait_for(renewed.get(), TIMEOUT)
        running_loop.cancel()


async def test_a_certificate_of_another_ca_is_not_taken(tmp_path: Path) -> None:
    authority = RootAuthority.create("c1", time.time())
    files = member_files(authority, tmp_path)
    before = files.read()
    loop = Renewal(
        files,
        lambda: ["a:1"],
        clock=SystemClock(),
        rng=random.Random(1),
        on_renewed=asyncio.Queue[Peer]().put,
        call=_Calls(RootAuthority.create("c1", time.time())),
    )
    with pytest.raises(InternalError, match="another CA"):
        await loop.renew()
    assert files.read() == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("h", "h:2377"),
        ("h:1", "h:1"),
        ("10.0.0.1", "10.0.0.1:2377"),
        ("fd00::1", "[fd00::1]:2377"),
        ("[fd00::1]", "[fd00::1]:2377"),
        ("[fd00::1]:5", "[fd00::1]:5"),
    ],
)
def test_addresses_get_the_default_port(text: str, expected: str) -> None:
    assert with_default_port(text) == expected
