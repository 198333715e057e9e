"""The library as shipped, in a harness of three members under a hand-moved clock, for the tests that expect it to fail."""

from __future__ import annotations

import copy
from collections import defaultdict, deque
from typing import Any

from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from orchestrator.raft.engine import prepare_library, ticking

prepare_library()  # the library asks for the time where `ticking` can answer

LEADER = 2


class _StockTransport(Transport):  # type: ignore[misc]
    def __init__(self, cluster: StockCluster, name: str, others: list[str]) -> None:
        super().__init__(None, None, [])
        self.cluster, self.name = cluster, name
        self.nodes = {other: Node(other) for other in others}

    def addNode(self, node: Node) -> None:
        self.nodes[node.id] = node
        self._onNodeConnected(node)

    def dropNode(self, node: Node) -> None:
        if self.nodes.pop(node.id, None):
            self._onNodeDisconnected(node)

    def send(self, node: Node, message: dict[str, Any]) -> bool:
        if (self.name, node.id) in self.cluster.cut:
            return False
        self.cluster.links[self.name, node.id].append(copy.deepcopy(message))
        return True


class Register(SyncObj):  # type: ignore[misc]
    """Keys and values, and the order in which they were applied."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.values: dict[Any, Any] = {}
        self.applied: list[tuple[Any, Any]] = []

    @replicated
    def put(self, key: Any, value: Any) -> None:
        self.values[key] = value
        self.applied.append((key, value))


class Answers(list[str]):
    """The answers that a proposal got."""

    def __call__(self, _: object, reason: int) -> None:
        names = {value: name for name, value in vars(FAIL_REASON).items() if not name.startswith("_")}
        self.append(names[reason])


class StockCluster:
    """Members named by letters; nothing moves but by `tick`, `deliver` and `elect`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.members: dict[str, Register] = {}
        self.transports: dict[str, _StockTransport] = {}
        self.links: dict[tuple[str, str], deque[dict[str, Any]]] = defaultdict(deque)
        self.cut: set[tuple[str, str]] = set()

    def add(self, name: str, others: str, **options: Any) -> Register:
        transport = self.transports[name] = _StockTransport(self, name, list(others))
        conf = SyncObjConf(autoTick=False, useFork=False, **{"logCompactionMinEntries": 10**9, **options})
        with ticking(lambda: self.now):
            member = self.members[name] = Register(
                Node(name), [Node(other) for other in others], conf, nodeClass=Node, transport=transport
            )
        for other in others:
            transport._onNodeConnected(transport.nodes[other])
        self.rest(name)
        return member

    def rest(self, *names: str) -> None:
        """These start no election by themselves."""
        for name in names or tuple(self.members):
            self.members[name]._SyncObj__raftElectionDeadline = self.now + 1e9

    def tick(self, *names: str, seconds: float = 0.11) -> None:
        self.now += seconds
        with ticking(lambda: self.now):
            for name in names:
                self.members[name].doTick(0)

    def deliver(self, source: str, target: str, count: int | None = None) -> int:
        link, done = self.links[source, target], 0
        with ticking(lambda: self.now):
            while link and (count is None or done < count):
                transport = self.transports[target]
                node = transport.nodes.get(source, Node(source))
                transport._onMessageReceived(node, link.popleft())
                done += 1
        return done

    def flush(self) -> None:
        while any(self.deliver(*pair) for pair in list(self.links)):
            pass

    def separate(self, one: str, other: str) -> None:
        for source, target in ((one, other), (other, one)):
            self.cut.add((source, target))
            self.links[source, target].clear()
            if target in self.transports[source].nodes:
                self.transports[source]._onNodeDisconnected(self.transports[source].nodes[target])

    def join(self, one: str, other: str) -> None:
        for source, target in ((one, other), (other, one)):
            self.cut.discard((source, target))
            if target in self.transports[source].nodes:
                self.transports[source]._onNodeConnected(self.transports[source].nodes[target])

    def elect(self, name: str, *others: str) -> None:
        self.members[name]._SyncObj__raftElectionDeadline = 0
        self.run(name, *others)
        assert self.members[name]._SyncObj__raftState == LEADER

    def run(self, *names: str, rounds: int = 5) -> None:
        for _ in range(rounds):
            self.tick(*names)
            self.flush()
            self.rest(*[name for name in names if self.members[name]._SyncObj__raftState != 1])

    def log(self, name: str) -> list[tuple[int, int]]:
        return [(index, term) for _, index, term in self.members[name]._SyncObj__raftLog]

    def last(self, name: str) -> tuple[int, int]:
        return self.log(name)[-1]


def trio(**options: Any) -> StockCluster:
    """a leads b and c."""
    cluster = StockCluster()
    for name, others in (("a", "bc"), ("b", "ac"), ("c", "ab")):
        cluster.add(name, others, **options)
    cluster.elect("a", "b", "c")
    return cluster
