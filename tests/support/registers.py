"""Clients that write and read through the managers of a lab, and remember what they saw for the linearizability checker.

A register is a service without replicas; its value is a label. A client reads it, and then swaps the value for a new one by
naming the version that it read. A client stays with a manager, through its local socket (so that a fault of the network never
comes between the two), until a call fails, and moves to another now and then.

What an error says is taken at its word: a write is unknown only where the manager says so, or where the connection to it or the
deadline ended first; every other refusal promises that nothing was written, and the checker holds the managers to that.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import random
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from swarm.channels import open_local
from swarm.errors import KIND_METADATA_KEY, DeadlineExceeded, OutcomeUnknown, SwarmError, from_rpc
from swarm.v1 import control_pb2, types_pb2
from swarm.v1.control_pb2_grpc import ControlStub

from tests.support.linearizability import Operation

if TYPE_CHECKING:
    from swarm.v1.control_pb2_grpc import ControlAsyncStub

LABEL = "value"
CALL_TIMEOUT = 5.0  # seconds: longer than a manager looks for a leader
PAUSE = 0.02  # seconds after a refusal
SWAPS = 0.7  # how often a client that has read writes
RESTLESS = 0.05  # how often a client goes to another manager without a reason


@dataclass(frozen=True)
class Plan:
    sockets: dict[str, Path]
    keys: tuple[str, ...]
    clients: int
    seed: int


class Registers:
    """The side of the test. The clients are a process of their own: gRPC and the forks of a test do not go together."""

    def __init__(self, sockets: Mapping[str, Path], keys: Sequence[str], *, clients: int, seed: int) -> None:
        self.history: list[Operation] = []
        self.outcomes: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self._context = multiprocessing.get_context("spawn")
        self._done = self._context.Value("l", 0)
        self._stop = self._context.Event()
        self._plan = Plan(dict(sockets), tuple(keys), clients, seed)

    @property
    def done(self) -> int:
        """How many operations were answered."""
        return int(self._done.value)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Makes the registers; then the clients work for the length of the block."""
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=_serve, args=(self._plan, self._done, self._stop, theirs), name="registers", daemon=True
        )
        process.start()
        theirs.close()
        try:
            yield
            self._stop.set()
            self.history, self.outcomes, self.refusals = ours.recv()
        finally:
            process.kill()
            process.join()


def _serve(plan: Plan, done: Any, stop: Any, result: Any) -> None:
    """The process: until `stop` is set; sends what the clients saw."""
    work = _Clients(plan, done, stop)
    asyncio.run(work.run(plan.clients))
    result.send((work.history, work.outcomes, work.refusals))


class _Clients:
    """The clients, on one event loop."""

    def __init__(self, plan: Plan, done: Any, stop: Any) -> None:
        self.history: list[Operation] = []
        self.outcomes: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self._sockets, self._keys, self._rng = plan.sockets, plan.keys, random.Random(plan.seed)
        self._done, self._stop = done, stop
        self._values = itertools.count()

    async def run(self, clients: int) -> None:
        await self._create()
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._client())

    async def _create(self) -> None:
        async with open_local(next(iter(self._sockets.values()))) as channel:
            for key in self._keys:
                spec = types_pb2.ServiceSpec(name=key, labels={LABEL: f"first of {key}"})
                spec.task.container.image = "registers"
                spec.mode.replicated.replicas = 0
                called = time.monotonic()
                request = control_pb2.CreateServiceRequest(
                    spec=spec, no_resolve_image=True, request_id=uuid.uuid4().hex
                )
                await ControlStub(channel).CreateService(request, timeout=20)
                self.history.append(Operation(key, "write", spec.labels[LABEL], called, time.monotonic()))

    async def _client(self) -> None:
        channels = {name: open_local(path) for name, path in self._sockets.items()}
        stubs = [ControlStub(channel) for channel in channels.values()]
        try:
            stub, content = self._rng.choice(stubs), True
            while not self._stop.is_set():
                if not content or self._rng.random() < RESTLESS:
                    stub = self._rng.choice(stubs)
                key = self._rng.choice(self._keys)
                service = await self._read(stub, key)
                content = service is not None
                if service is not None and self._rng.random() < SWAPS:
                    content = await self._swap(stub, key, service)
        finally:
            for channel in channels.values():
                await channel.close()

    async def _read(self, stub: ControlAsyncStub, key: str) -> types_pb2.Service | None:
        called = time.monotonic()
        try:
            answer = await stub.GetService(control_pb2.GetRequest(reference=key), timeout=CALL_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            await self._refused("read", error)
            return None
        service = answer.summary.service
        self.history.append(Operation(key, "read", service.spec.labels[LABEL], called, time.monotonic()))
        self._count("read")
        return service

    async def _swap(self, stub: ControlAsyncStub, key: str, service: types_pb2.Service) -> bool:
        value, expected = f"v{next(self._values)}", service.spec.labels[LABEL]
        request = control_pb2.UpdateServiceRequest(
            reference=key, spec=service.spec, version=service.meta.version, request_id=uuid.uuid4().hex,
            no_resolve_image=True,
        )  # fmt: skip
        request.spec.labels[LABEL] = value
        operation = Operation(key, "swap", value, time.monotonic(), known=False, expected=expected)
        self.history.append(operation)
        try:
            await stub.UpdateService(request, timeout=CALL_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            if not await self._refused("swap", error):
                self.history.remove(operation)
            return False
        operation.known, operation.returned = True, time.monotonic()
        self._count("swap")
        return True

    def _count(self, what: str) -> None:
        self.outcomes[f"{what}: done"] += 1
        self._done.value += 1

    async def _refused(self, what: str, error: grpc.aio.AioRpcError) -> bool:
        """Notes a refusal; whether the call may have had its effect all the same."""
        refusal = from_rpc(error)
        said = any(key == KIND_METADATA_KEY for key, _ in error.trailing_metadata() or ())
        unknown = not said or isinstance(refusal, OutcomeUnknown | DeadlineExceeded)
        self.outcomes[f"{what}: {_kind(refusal, said)}"] += 1
        self.refusals[str(refusal)] += 1
        if refusal.kind != "Conflict":
            await asyncio.sleep(PAUSE)
        return unknown


def _kind(refusal: SwarmError, said: bool) -> str:
    return refusal.kind if said else "connection lost"
