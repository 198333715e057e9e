"""A manager's API without a network: the service over a one-member log, called as its handlers are."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from swarm.clock import ManualClock
from swarm.ids import id_source
from swarm.v1 import types_pb2

from orchestrator.api.control import ControlService
from orchestrator.api.forwarding import Forwarder
from orchestrator.identity.authority import RootAuthority
from orchestrator.identity.membership import bootstrap_objects
from orchestrator.store import Snapshot, Store, Transactions
from tests.support.consensus import LocalConsensus

DIGEST = "sha256:" + "a" * 64
CONTEXT: Any = None  # the handlers do not look at it


def no_agents(node: types_pb2.Node) -> grpc.aio.Channel:
    raise AssertionError("no agent is to be asked")


async def no_snapshot() -> AsyncIterator[bytes]:
    raise AssertionError("no snapshot is to be saved")
    yield b""


class Api:
    """`service` is the Control service; `images` maps references to digests or to the error that asking raises."""

    def __init__(
        self, agent_channel: Callable[[types_pb2.Node], grpc.aio.Channel] = no_agents, *, enrolment_port: int = 2377
    ) -> None:
        self.clock = ManualClock(1_700_000_000.0)
        self.ids = id_source(random.Random(7))
        self.store = Store()
        self.log = LocalConsensus(self.store, node_id="m1", address="127.0.0.1:2378")
        self.transactions = Transactions(self.log, self.store, proposer="m1", clock=self.clock)
        self.authority = RootAuthority.create("cluster1", self.clock.wall())
        self.images: dict[str, str | Exception] = {}
        self.asked: list[str] = []
        self.service = ControlService(
            self.store,
            self.transactions,
            self.log,
            Forwarder(self.log, _no_channel, rng=random.Random(1)),
            resolve=self._resolve,
            agent_channel=agent_channel,
            clock=self.clock,
            ids=self.ids,
            rng=random.Random(2),
            node_id="m1",
            version="test",
            save_snapshot=no_snapshot,
            enrolment_port=enrolment_port,
        )

    async def start(self) -> Api:
        await self.transactions.commit(
            bootstrap_objects(
                types_pb2.ClusterSpec(name="default"),
                cluster_id="cluster1",
                authority=self.authority,
                node_id="m1",
                hostname="host1",
                address="10.1.0.1",
                availability=types_pb2.AVAILABILITY_ACTIVE,
                ids=self.ids,
                rng=random.Random(3),
            )
        )
        return self

    @property
    def snapshot(self) -> Snapshot:
        return self.store.snapshot()

    async def _resolve(self, reference: str) -> str:
        self.asked.append(reference)
        answer = self.images.get(reference, DIGEST)
        if isinstance(answer, Exception):
            raise answer
        return answer


def _no_channel(member: object) -> grpc.aio.Channel:
    raise AssertionError("nothing is to be forwarded")


def web(name: str = "web", *, image: str = "nginx:1", replicas: int = 2) -> types_pb2.ServiceSpec:
    """A small valid spec."""
    return types_pb2.ServiceSpec(
        name=name,
        mode=types_pb2.ServiceMode(replicated=types_pb2.ReplicatedMode(replicas=replicas)),
        task=types_pb2.TaskSpec(container=types_pb2.ContainerSpec(image=image)),
    )


async def first(answers: AsyncIterator[Any], *, timeout: float = 20.0) -> Any:
    async with asyncio.timeout(timeout):
        return await anext(answers)
