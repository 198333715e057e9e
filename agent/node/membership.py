"""How a node becomes part of a swarm and stops being one: init, join, leave; one at a time.

Whatever fails on the way in is undone, so that the next attempt finds a clean host. What a membership leaves on the host
is known by name here: `wipe` removes exactly that, and neither images nor volumes, which are the user's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace

from swarm.cancellation import cancelled, carried_through
from swarm.enrolment import join
from swarm.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    NodeRemoved,
    SwarmError,
    Unauthenticated,
    Unavailable,
    first_error,
    from_rpc,
)
from swarm.identity import Role, TlsFiles
from swarm.ids import id_source
from swarm.names import ENROLMENT_PORT
from swarm.process import run
from swarm.retry import Backoff
from swarm.servers import RpcServer
from swarm.tokens import parse_token
from swarm.v1 import control_pb2 as control
from swarm.v1 import node_pb2 as node
from swarm.v1 import types_pb2 as types
from swarm.version import VERSION

from agent.node import description
from agent.node.leaving import leave_managers
from agent.node.manager_process import ManagerProcess
from agent.node.member import Member, NodeParts, cluster_address
from agent.node.record import NodeFile, NodeRecord

log = logging.getLogger(__name__)

INIT_TIMEOUT = 30.0  # seconds for a new manager to lead
READY_TIMEOUT = 30.0  # seconds for the first session
_BACKOFF = Backoff(first=0.5, maximum=10.0)
# The membership's own record first: a daemon that is killed meanwhile takes up nothing of which a part is missing.
_LEFT_BEHIND = ("node.json", "manager", "certificates", "tasks", "containers", "assignments", "network")
_AVAILABILITY = {
    types.AVAILABILITY_PAUSE: "pause",
    types.AVAILABILITY_DRAIN: "drain",
}


class Membership:
    """The node's place in a swarm, or that it has none."""

    def __init__(self, parts: NodeParts, add_services: Callable[[RpcServer], None]) -> None:
        self._parts = parts
        self.options = self._options = parts.options
        self._add_services = add_services
        self._file = NodeFile(parts.options.state)
        self._changing = asyncio.Lock()
        self._running: asyncio.Task[None] | None = None
        self._pending = ""
        self._ids = id_source()
        self.member: Member | None = None
        self.problem = ""

    # ------------------------------------------------------------------------------------------------ daemon's life

    def resume(self) -> None:
        """At the daemon's start: goes on with the membership that is on the disk, at the address that the daemon was told.
        Raises FailedPrecondition, InvalidArgument."""
        record = self._file.load()
        if record is None:
            return
        if self._options.advertise_address:
            address = advertised_address(self._options.advertise_address)
            if address != record.address:
                log.warning("this node moves from %s to %s", record.address, address)
                record = moved(record, address)
        self._begin(record)

    async def close(self) -> None:
        """The daemon ends; the membership stays."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    def _begin(self, record: NodeRecord) -> Member:
        self.member = Member(self._parts, self._file, record, self._add_services)
        self.problem = ""
        self._running = asyncio.create_task(self._watch(self.member))
        return self.member

    async def _watch(self, member: Member) -> None:
        try:
            await member.run()
        except* NodeRemoved as errors:
            log.warning("this node is no longer part of the swarm: %s", errors.exceptions[0])
            self.problem = str(first_error(errors))
            self._removed = asyncio.create_task(self._drop_out())
        except* SwarmError as errors:
            self.problem = str(first_error(errors))
            log.error("the node stopped working in the swarm: %s", self.problem)
        except* Exception as errors:
            self.problem = f"the node daemon failed unexpectedly: {first_error(errors)!r}; its log says more"
            log.exception("the node stopped working in the swarm")

    async def _drop_out(self) -> None:
        """The managers removed this node: ends its tasks and forgets the swarm. Tried again where descriptors or memory are
        lacking for a moment: nobody else ends what runs here."""
        async with self._changing:
            member = self.member
            if member is None:
                return
            problem = self.problem
            for wait in _BACKOFF.delays(self._parts.rng):
                try:
                    await self._forget(member)
                    break
                except OSError as error:
                    log.error("what is left of the swarm cannot be removed and is tried again: %s", error)
                    await asyncio.sleep(wait)
            self.problem = problem

    # ------------------------------------------------------------------------------------------------------- views

    @property
    def state(self) -> str:
        if self._pending:
            return "pending"
        if self.member is None:
            return "inactive"
        if self._running is not None and self._running.done():
            return "error"
        return "active" if self.member.ready.is_set() or self.member.record.boot_counter > 1 else "pending"

    def local_state(self) -> node.LocalState:
        state = node.LocalState(state=self.state, message=self.problem or self._pending, version=VERSION)
        member = self.member
        if member is None:
            return state
        record = member.record
        state.node_id, state.cluster_id, state.address = record.node_id, record.cluster_id, record.address
        state.managers.extend(record.managers)
        state.tasks = len(member.tasks)
        failing = member.manager.problem if member.manager is not None else ""  # says more than that nobody answers
        refused = member.renewal.failed if isinstance(member.renewal.failed, Unauthenticated) else None
        state.message = (
            self.problem
            or member.problem
            or (f"the certificate was not renewed: {refused}" if refused is not None else "")
            or failing
            or member.session.problem
            or str(member.networks.error or "")
        )
        with contextlib.suppress(SwarmError):
            state.role = types.NODE_ROLE_MANAGER if member.role is Role.MANAGER else types.NODE_ROLE_WORKER
        if member.manager is not None:
            state.control_socket = str(member.manager.control_socket)
        return state

    # --------------------------------------------------------------------------------------------------- becoming one

    @contextlib.asynccontextmanager
    async def change(self, what: str):  # type: ignore[no-untyped-def]
        """One change at a time. Raises FailedPrecondition where another one is under way."""
        if self._changing.locked():
            raise FailedPrecondition("this node is just joining or leaving a swarm; wait for that to end")
        async with self._changing:
            self._pending = what
            try:
                yield
            finally:
                self._pending = ""

    def refuse_members(self) -> None:
        if self.member is not None:
            raise FailedPrecondition(
                "this node is already part of a swarm; leave that one first (`swarmctl swarm leave`)"
            )

    async def init(self, request: node.InitRequest) -> node.InitResponse:
        """Makes a new swarm with this node as its first manager. On failure nothing stays behind."""
        self.refuse_members()
        address = advertised_address(request.advertise_address)
        description.check_listening(request.listen_address)
        async with self.change("making a swarm"):
            self.refuse_members()
            try:
                async with asyncio.timeout(INIT_TIMEOUT + READY_TIMEOUT):
                    record = await self._found(request, address)
                    member = self._begin(record)
                    tokens = await self._join_tokens(member)
                    await self._until_ready(member)
            except TimeoutError as error:
                words = self.local_state().message
                await self._undo()
                raise DeadlineExceeded(f"the new swarm's manager does not serve in time: {words}") from error
            except BaseException:
                await self._undo()
                raise
        return node.InitResponse(
            node_id=record.node_id,
            cluster_id=record.cluster_id,
            worker_token=tokens.worker,
            manager_token=tokens.manager,
            address=f"{address}:{ENROLMENT_PORT}",
        )

    async def _found(self, request: node.InitRequest, address: str) -> NodeRecord:
        """Lets the manager make authority, certificate and first transaction."""
        options = self._options
        await self.wipe()
        with tempfile.NamedTemporaryFile(prefix="swarm-spec-") as spec:
            spec.write(request.spec.SerializeToString())
            spec.flush()
            done = await run(
                [
                    sys.executable, "-m", "orchestrator.manager", "init",
                    "--state-dir", options.state, "--run-dir", options.run,
                    "--advertise", address, "--hostname", options.hostname, "--spec", spec.name,
                    "--availability", _AVAILABILITY.get(request.availability, "active"),
                ],
                timeout=INIT_TIMEOUT,
                check=False,
            )  # fmt: skip
        if done.exit_code != 0:
            kind = InvalidArgument if done.exit_code == InvalidArgument.exit_code else FailedPrecondition
            raise kind(done.complaint.removeprefix("error: "))
        try:
            made = json.loads(done.stdout)
            node_id, cluster_id = str(made["node_id"]), str(made["cluster_id"])
        except (ValueError, KeyError, TypeError) as error:
            raise InternalError(f"the manager did not say which swarm it made: {done.text!r}") from error
        return NodeRecord(
            node_id,
            cluster_id,
            address,
            listen_address=request.listen_address or NodeRecord.listen_address,
            managers=(cluster_address(address),),
            availability=request.availability,
        )

    async def _join_tokens(self, member: Member) -> control.GetJoinTokensResponse:
        """Asks our own manager, as soon as it serves and leads."""
        from swarm.channels import open_local
        from swarm.v1.control_pb2_grpc import ControlStub

        manager = await self.manager_ready(member)
        async with open_local(manager.control_socket) as channel:
            stub = ControlStub(channel)
            while True:
                try:
                    return await stub.GetJoinTokens(control.GetJoinTokensRequest(), timeout=5.0)
                except Exception as error:
                    failure = _rpc(error)
                    if not isinstance(failure, Unavailable | DeadlineExceeded):
                        raise failure from error
                    await asyncio.sleep(0.05)  # bounded by the caller's deadline

    async def manager_ready(self, member: Member) -> ManagerProcess:
        """Once the manager process of this node serves. Raises FailedPrecondition where it ended."""
        while member.manager is None or not member.manager.ready.is_set():
            if self._running is not None and self._running.done():
                raise InternalError(self.problem or "the node stopped")
            if member.manager is not None and member.manager.restarts:
                raise FailedPrecondition(member.manager.problem or "the manager ended while it started")
            await asyncio.sleep(0.02)  # bounded by the caller's deadline
        return member.manager

    async def join(self, request: node.LocalJoinRequest) -> node.LocalState:
        """Makes this node a member of an existing swarm."""
        self.refuse_members()
        parse_token(request.token)
        if not request.addresses:
            raise InvalidArgument("joining needs the address of at least one manager, as HOST or HOST:PORT")
        address = advertised_address(request.advertise_address)
        description.check_listening(request.listen_address)
        async with self.change("joining a swarm"):
            self.refuse_members()
            await self.wipe()
            try:
                joined = await join(
                    request.token,
                    list(request.addresses),
                    files=TlsFiles(self._options.certificates),
                    hostname=self._options.hostname,
                    advertise_address=address,
                    request_id=self._ids(),
                    availability=request.availability or types.AVAILABILITY_ACTIVE,
                )
                member = self._begin(
                    NodeRecord(
                        joined.node_id,
                        joined.cluster_id,
                        address,
                        listen_address=request.listen_address or NodeRecord.listen_address,
                        managers=joined.managers,
                        availability=request.availability,
                    )
                )
            except BaseException:
                await self._undo()
                raise
            try:
                async with asyncio.timeout(READY_TIMEOUT):
                    if joined.role == types.NODE_ROLE_MANAGER:
                        await self.manager_ready(member)
                    await self._until_ready(member)
            except TimeoutError as error:
                words = self.local_state().message
                raise DeadlineExceeded(
                    f"this node has joined, but has no session with a manager after {READY_TIMEOUT:g} s ({words}); "
                    "it goes on trying"
                ) from error
        return self.local_state()

    async def begin_anew(self, record: NodeRecord) -> None:
        """Takes a membership up whose identity and state were just put on the disk; undone where it does not come up."""
        try:
            async with asyncio.timeout(INIT_TIMEOUT + READY_TIMEOUT):
                member = self._begin(record)
                await self.manager_ready(member)
                await self._until_ready(member)
        except TimeoutError as error:
            words = self.local_state().message
            await self._undo()
            raise DeadlineExceeded(f"the restored manager does not serve in time: {words}") from error
        except BaseException:
            await self._undo()
            raise

    async def _until_ready(self, member: Member) -> None:
        ready = asyncio.create_task(member.ready.wait())
        assert self._running is not None
        try:
            await asyncio.wait({ready, self._running}, return_when=asyncio.FIRST_COMPLETED)
            if not member.ready.is_set():
                raise FailedPrecondition(self.problem or "the node stopped while it joined")
        finally:
            ready.cancel()

    # ------------------------------------------------------------------------------------------------------- leaving

    async def leave(self, force: bool) -> node.LocalState:
        """Ends this node's membership. Raises FailedPrecondition where the swarm would lose its quorum and `force` is not
        set."""
        member = self.member
        if member is None:
            raise FailedPrecondition("this node is not part of a swarm")
        async with self.change("leaving the swarm"):
            if self._is_manager(member, force=force):
                await leave_managers(member, force=force)
            await self._stop_tasks(member, force=force)
            await carried_through(self._forget(member))  # whoever asked for it may be gone
        return self.local_state()

    async def _forget(self, member: Member) -> None:
        await self._end_member(member)
        await self.wipe()

    @staticmethod
    def _is_manager(member: Member, *, force: bool) -> bool:
        """Raises SwarmError where the certificate says nothing, or is not there: by force a node leaves without one as well."""
        try:
            return member.role is Role.MANAGER
        except SwarmError as error:
            if not force:
                raise
            log.warning("leaving although it is not known whether this node is a manager: %s", error)
            return False

    async def _stop_tasks(self, member: Member, *, force: bool) -> None:
        """For as long as the membership is at work. Where it ends meanwhile, as when the managers remove the node, nobody stops
        tasks any more: those that are left end with it."""
        assert self._running is not None
        stopping = asyncio.create_task(member.stop_tasks(force=force))
        try:
            await asyncio.wait({stopping, self._running}, return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                stopping.result()
        finally:
            await cancelled(stopping)

    async def _end_member(self, member: Member) -> None:
        """Ends everything that a membership runs. Tasks that are left are ended without ceremony."""
        if member.manager is not None:
            await member.stop_manager(member.manager)
        await self.close()
        if member.manager is None:  # one of an earlier daemon, that this one had not looked for yet, runs on
            await member.stop_manager(ManagerProcess(self._options, member.manager_arguments, self._parts.rng))
        with contextlib.suppress(SwarmError):
            for state in await self._parts.runtime.containers():
                await self._end_container(state.id)
        self.member, self._running = None, None

    async def _end_container(self, container_id: str) -> None:
        """One that does not end must not keep the others: nobody would know of them any more."""
        try:
            await self._parts.runtime.delete(container_id)
        except SwarmError as error:
            log.warning("a container of the swarm stays: %s", error)

    async def _undo(self) -> None:
        member = self.member
        if member is not None:
            await self._end_member(member)
        await self.wipe()

    async def wipe(self) -> None:
        """Removes what a membership leaves on this host."""
        parts = self._parts
        for forget in (self._forget_networks, self._forget_rootfs, parts.runtime.clear):
            try:
                await forget()
            except SwarmError as error:
                log.warning("not everything of the swarm could be removed: %s", error)
        parts.use_registry("")
        for name in _LEFT_BEHIND:
            path = self._options.state / name
            if path.is_dir():
                await asyncio.to_thread(shutil.rmtree, path, True)
            else:
                path.unlink(missing_ok=True)
        await asyncio.to_thread(shutil.rmtree, self._options.run / "etc", True)

    async def _forget_networks(self) -> None:
        if (self._options.run / "netns").exists():  # else no data plane was ever started here
            await self._parts.new_data_plane().stop(remove=True)

    async def _forget_rootfs(self) -> None:
        for task_id in await self._parts.images.mounted():
            await self._parts.images.unmount(task_id)


def moved(record: NodeRecord, address: str) -> NodeRecord:
    """The same membership at another address."""
    before = record.address
    managers = (cluster_address(address) if each == cluster_address(before) else each for each in record.managers)
    listen = address if record.listen_address == before else record.listen_address
    return replace(record, address=address, listen_address=listen, managers=tuple(managers))


def advertised_address(text: str) -> str:
    """The address of this host that IP[:PORT] means. Raises InvalidArgument, also for another port than managers have."""
    host, port = description.split_advertised(text)
    address = description.advertised(host)
    description.check_own(address)
    if port not in (None, ENROLMENT_PORT):
        raise InvalidArgument(f"managers are joined at port {ENROLMENT_PORT}; leave the port out of the address")
    return address


def _rpc(error: Exception) -> Exception:
    import grpc

    return from_rpc(error, "this node's manager") if isinstance(error, grpc.RpcError) else error
