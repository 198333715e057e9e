"""Raises the cluster's feature level, on the leader: when every manager supports more than the managers write now.

Each manager says what it supports when it is asked (`RaftMembership.List`). The level never sinks, and a manager that
supports less than the level is not let in (`raft.admission`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from swarm.cancellation import raise_if_cancelled
from swarm.errors import SwarmError

from orchestrator.consensus import Member
from orchestrator.identity.membership import require_cluster
from orchestrator.store import Store, Transactions, Update, copy_of, features

log = logging.getLogger(__name__)

LOOK_AGAIN = 3.0  # seconds: a manager may have been updated meanwhile

AskLevel = Callable[[Member], Awaitable[int]]


class FeatureKeeper:
    """`ask` says which level a member supports, or raises SwarmError where it does not answer."""

    def __init__(
        self,
        store: Store,
        transactions: Transactions,
        members: Callable[[], Sequence[Member]],
        ask: AskLevel,
        own_id: str,
        *,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._transactions = transactions
        self._members = members
        self._ask = ask
        self._own_id = own_id
        self._pause = pause

    async def run(self) -> None:
        """Until the level is the highest that this leader supports."""
        while features.level_of(self._store.snapshot().cluster) < features.SUPPORTED:
            try:
                if await self._raise():
                    continue
            except SwarmError as error:
                raise_if_cancelled()
                log.info("the feature level stays for now: %s", error)
            await self._pause(LOOK_AGAIN)

    async def _raise(self) -> bool:
        """Whether the level was raised."""
        members = tuple(self._members())
        levels = [features.SUPPORTED if each.node_id == self._own_id else await self._ask(each) for each in members]
        cluster = copy_of(require_cluster(self._store.snapshot()))
        common = min(levels, default=features.FIRST)
        if common <= max(cluster.feature_level, features.FIRST) or members != tuple(self._members()):
            return False
        cluster.feature_level = common
        await self._transactions.commit([Update(cluster)])
        log.info("all managers support feature level %d, which is written from now on", common)
        return True
