"""The dispatcher as the manager process runs it: the hub, both of its services, and the uplink that fits the leadership."""

from __future__ import annotations

import random
from collections.abc import Callable

import grpc
from swarm.channels import open_channel
from swarm.clock import Clock
from swarm.errors import Unavailable
from swarm.identity import TlsMaterial
from swarm.ids import IdSource
from swarm.servers import RpcServer
from swarm.v1 import dispatcher_pb2 as dispatcher
from swarm.v1.dispatcher_pb2_grpc import add_DispatcherRelayServicer_to_server

from orchestrator.consensus import Consensus, Leadership
from orchestrator.dispatcher.dispatcher import Dispatcher, Uplink
from orchestrator.dispatcher.leader import LeaderSide
from orchestrator.dispatcher.relay import RelayClient, RelayServicer
from orchestrator.dispatcher.sessions import SessionServicer
from orchestrator.store import Store, Transactions


class DispatcherService:
    """`register` on the cluster port's server before it starts, then `run` for as long as the manager lives."""

    def __init__(
        self,
        store: Store,
        consensus: Consensus,
        transactions: Transactions,
        *,
        node_id: str,
        tls: Callable[[], TlsMaterial],
        clock: Clock,
        ids: IdSource,
        rng: random.Random,
    ) -> None:
        self._consensus = consensus
        self._transactions = transactions
        self._node_id = node_id
        self._tls = tls
        self._rng = rng
        self._leader: LeaderSide | None = None
        self.hub = Dispatcher(
            store,
            node_id=node_id,
            leadership=consensus.leadership,
            make_uplink=self._make_uplink,
            clock=clock,
            ids=ids,
        )
        consensus.on_leadership(self.hub.leadership_changed)

    def register(self, server: RpcServer) -> None:
        SessionServicer(self.hub).add_to(server.server)
        add_DispatcherRelayServicer_to_server(RelayServicer(self.hub, self._leading), server.server)

    async def run(self) -> None:
        """Until cancelled."""
        await self.hub.run()

    @property
    def session_count(self) -> int:
        """Agents with a session at this manager."""
        return self.hub.session_count

    def shut_down(self) -> None:
        """Sends the agents to other managers."""
        self.hub.end_all(dispatcher.SESSION_END_REASON_SHUTTING_DOWN, "this manager shuts down; try another one")

    def _leading(self) -> LeaderSide | None:
        leadership = self._consensus.leadership()
        return self._leader if leadership.is_leader else None

    def _make_uplink(self, hub: Dispatcher, leadership: Leadership, previous_leader: str) -> Uplink | None:
        self._leader = None
        if leadership.is_leader:
            if not leadership.ready:
                return None
            self._leader = LeaderSide(hub, self._transactions, previous_leader=previous_leader)
            return self._leader
        if not leadership.leader_id:
            return None
        leader_id = leadership.leader_id
        return RelayClient(hub, lambda: self._channel_to(leader_id), rng=self._rng)

    def _channel_to(self, leader_id: str) -> grpc.aio.Channel:
        for status in self._consensus.status().members:
            if status.member.node_id == leader_id:
                return open_channel(status.member.address, self._tls(), leader_id)
        raise Unavailable(f"the address of the leader {leader_id} is not known")
