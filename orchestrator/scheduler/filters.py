"""Why a node cannot take a task, and how that is told to people.

Each filter refuses for one reason. The first that refuses counts; `explain` turns the counts into the sentence that
`service ps` shows.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from swarm.v1.types_pb2 import (
    AVAILABILITY_DRAIN,
    AVAILABILITY_PAUSE,
    NODE_STATE_READY,
    Node,
    Resources,
    Task,
)

from orchestrator.scheduler.constraints import Constraint
from orchestrator.scheduler.nodes import NodeTally
from orchestrator.store.tables import port_key

MIB = 1024 * 1024


class Reason(enum.Enum):
    """Why a node was refused; the value completes "1 node …" (singular, plural)."""

    DOWN = ("is not ready", "are not ready")
    DRAINED = ("is drained", "are drained")
    PAUSED = ("is paused", "are paused")
    CONSTRAINT = ("does not meet the constraint", "do not meet the constraints")
    PLATFORM = ("has another platform", "have another platform")
    CPU = ("has too little CPU", "have too little CPU")
    MEMORY = ("has too little memory", "have too little memory")
    HOST_PORT = ("uses the host port already", "use the host port already")
    REPLICAS = ("has the maximum of replicas", "have the maximum of replicas")


@dataclass
class Refusals:
    """Counts of refused nodes by reason, and what is needed to explain them."""

    counts: dict[Reason, int] = field(default_factory=dict)
    most_memory: int = 0
    most_cpus: int = 0
    constraints: dict[str, None] = field(default_factory=dict)

    def add(self, reason: Reason) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1

    def copy(self) -> Refusals:
        return Refusals(dict(self.counts), self.most_memory, self.most_cpus, dict(self.constraints))


@dataclass(frozen=True)
class Demand:
    """What all tasks of a group want of a node: they are of one revision, so one filter run serves them all."""

    constraints: Sequence[Constraint]
    resources: Resources
    max_replicas_per_node: int

    def static_refusal(self, node: Node, refusals: Refusals) -> Reason | None:
        """Whatever does not change while tasks are placed."""
        if node.status.state != NODE_STATE_READY:
            return Reason.DOWN
        if node.spec.availability == AVAILABILITY_DRAIN:
            return Reason.DRAINED
        if node.spec.availability == AVAILABILITY_PAUSE:
            return Reason.PAUSED
        for constraint in self.constraints:
            if not constraint.allows(node):
                refusals.constraints[f"{constraint.key} {'==' if constraint.equal else '!='} {constraint.value}"] = None
                return Reason.CONSTRAINT
        if node.description.os not in ("", "linux"):
            return Reason.PLATFORM
        return None

    def dynamic_refusal(self, tally: NodeTally, task: Task, refusals: Refusals) -> Reason | None:
        """Whatever placing tasks uses up. Once refused, a node stays refused for every task of the group."""
        if self.resources.nano_cpus > tally.nano_cpus:
            refusals.most_cpus = max(refusals.most_cpus, tally.nano_cpus)
            return Reason.CPU
        if self.resources.memory_bytes > tally.memory_bytes:
            refusals.most_memory = max(refusals.most_memory, tally.memory_bytes)
            return Reason.MEMORY
        if any(port_key(port) in tally.host_ports for port in task.host_ports):
            return Reason.HOST_PORT
        if self.max_replicas_per_node and tally.by_service.get(task.service_id, 0) >= self.max_replicas_per_node:
            return Reason.REPLICAS
        return None


def explain(refusals: Refusals, demand: Demand) -> str:
    """`no suitable node: 2 nodes are drained, 1 node has too little memory (512 MiB free of 1 GiB wanted)`."""
    if not refusals.counts:
        return "no suitable node: the swarm has no nodes"
    parts = []
    for reason, count in sorted(refusals.counts.items(), key=lambda item: (-item[1], item[0].name)):
        words = f"1 node {reason.value[0]}" if count == 1 else f"{count} nodes {reason.value[1]}"
        parts.append(words + _detail(reason, count, refusals, demand))
    return f"no suitable node: {', '.join(parts)}"


def _detail(reason: Reason, count: int, refusals: Refusals, demand: Demand) -> str:
    most = "" if count == 1 else "at most "
    match reason:
        case Reason.MEMORY:
            free, wanted = max(0, refusals.most_memory), demand.resources.memory_bytes
            return f" ({most}{format_bytes(free)} free of {format_bytes(wanted)} wanted)"
        case Reason.CPU:
            free, wanted = max(0, refusals.most_cpus), demand.resources.nano_cpus
            return f" ({most}{free / 1e9:g} free of {wanted / 1e9:g} wanted)"
        case Reason.CONSTRAINT:
            return f" ({', '.join(refusals.constraints)})"
        case Reason.REPLICAS:
            return f" ({demand.max_replicas_per_node})"
    return ""


def format_bytes(count: int) -> str:
    """`512 MiB`, `1.5 GiB`."""
    units: Mapping[str, int] = {"GiB": 1024 * MIB, "MiB": MIB, "KiB": 1024}
    for unit, size in units.items():
        if count >= size:
            return f"{round(count / size, 1):g} {unit}"
    return f"{count} B"
