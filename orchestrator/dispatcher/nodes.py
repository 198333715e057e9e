"""What the dispatcher writes about nodes: READY with what the agent said of its host, DOWN, and a cloned state directory.

Intents are collected by node, the newest wins, and become updates only where the store says something else. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from swarm.clock import timestamp
from swarm.v1 import types_pb2 as types

from orchestrator.store import Snapshot, Update, copy_of


@dataclass(frozen=True)
class Ready:
    """The node's agent holds a session."""

    boot_id: str
    description: types.NodeDescription


@dataclass(frozen=True)
class Down:
    """The node was silent for too long."""

    message: str


@dataclass(frozen=True)
class Cloned:
    """Two hosts claim to be the node."""

    message: str


NodeIntent = Ready | Down | Cloned


class NodeIntents:
    """What is to be written, by node: of READY and DOWN the newer one, and apart from it the report of a clone."""

    def __init__(self) -> None:
        self._states: dict[str, Ready | Down] = {}
        self._clones: dict[str, Cloned] = {}

    def __bool__(self) -> bool:
        return bool(self._states or self._clones)

    def put(self, node_id: str, intent: NodeIntent) -> None:
        if isinstance(intent, Cloned):
            self._clones[node_id] = intent
        else:
            self._states[node_id] = intent

    def take(self) -> NodeIntents:
        """All of it; nothing is left here."""
        taken = NodeIntents()
        taken._states, self._states = self._states, {}
        taken._clones, self._clones = self._clones, {}
        return taken

    def give_back(self, other: NodeIntents) -> None:
        """`other` could not be written: it waits again, where nothing newer does."""
        self._states = {**other._states, **self._states}
        self._clones = {**other._clones, **self._clones}

    def changes(self, snapshot: Snapshot, now: float) -> list[Update]:
        """The updates that make the store say so. `now` in seconds since the epoch."""
        changes = []
        for node_id in sorted({*self._states, *self._clones}):
            node = snapshot.nodes.get(node_id)
            if node is not None:
                wanted = self._wanted(node, now)
                if wanted != node:
                    changes.append(Update(wanted))
        return changes

    def _wanted(self, node: types.Node, now: float) -> types.Node:
        wanted = copy_of(node)
        match self._states.get(node.id):
            case Ready(boot_id, description):
                if node.status.state != types.NODE_STATE_READY or node.status.boot_id != boot_id:
                    wanted.status.message = ""
                wanted.status.state = types.NODE_STATE_READY
                wanted.status.boot_id = boot_id
                wanted.description.CopyFrom(description)
                if not wanted.description.address:
                    wanted.description.address = node.description.address
            case Down(message):
                wanted.status.state = types.NODE_STATE_DOWN
                wanted.status.message = message
        if node.id in self._clones:
            wanted.status.message = self._clones[node.id].message
        if wanted.status.state != node.status.state:
            wanted.status.since.CopyFrom(timestamp(now))
        return wanted
