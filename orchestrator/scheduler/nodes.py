"""What the scheduler knows of a node while it places tasks: a mutable tally, made from a snapshot, used for one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from swarm.v1.types_pb2 import TASK_STATE_ASSIGNED, TASK_STATE_COMPLETE, Node, Resources, Task

from orchestrator.store import Snapshot
from orchestrator.store.tables import Load, PortKey, port_key


@dataclass
class NodeTally:
    """A node and what is on it: free resources, counts of tasks, host ports in use."""

    node: Node
    nano_cpus: int  # free
    memory_bytes: int  # free
    tasks: int
    by_service: dict[str, int] = field(default_factory=dict)  # live tasks
    by_revision: dict[str, int] = field(default_factory=dict)  # live tasks
    host_ports: dict[PortKey, str] = field(default_factory=dict)  # → the task that holds it

    def fits(self, wanted: Resources) -> bool:
        return wanted.nano_cpus <= self.nano_cpus and wanted.memory_bytes <= self.memory_bytes

    def take(self, task: Task, wanted: Resources) -> None:
        """Counts a task that was just placed here."""
        self.nano_cpus -= wanted.nano_cpus
        self.memory_bytes -= wanted.memory_bytes
        self.tasks += 1
        self.by_service[task.service_id] = self.by_service.get(task.service_id, 0) + 1
        self.by_revision[task.revision_id] = self.by_revision.get(task.revision_id, 0) + 1
        for port in task.host_ports:
            self.host_ports[port_key(port)] = task.id


def tally(snapshot: Snapshot, node: Node, *, with_ports: bool) -> NodeTally:
    """The tally of one node. Tasks that were told to end hold their resources until they have ended."""
    resources = node.description.resources
    made = NodeTally(node, resources.nano_cpus, resources.memory_bytes, 0)
    loads: Mapping[str, Load] = snapshot.tasks.loads(node.id)
    for revision_id, load in loads.items():
        made.tasks += load.live
        revision = snapshot.revisions.get(revision_id)
        if revision is None:
            continue
        if load.live:
            made.by_revision[revision_id] = load.live
            made.by_service[revision.service_id] = made.by_service.get(revision.service_id, 0) + load.live
        wanted = revision.spec.task.reservations
        made.nano_cpus -= wanted.nano_cpus * load.holding
        made.memory_bytes -= wanted.memory_bytes * load.holding
    if with_ports:
        for task in snapshot.tasks.on_node(node.id):
            # A global service's task names its node before it is assigned there: it would stand in its own way.
            if task.host_ports and TASK_STATE_ASSIGNED <= task.status.state < TASK_STATE_COMPLETE:
                for port in task.host_ports:
                    made.host_ports[port_key(port)] = task.id
    return made
