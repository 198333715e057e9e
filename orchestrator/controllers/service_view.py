"""What the service controllers look at: one service in one snapshot, and the words in which they decide.

Slots: a task is *current* while it is wanted (desired READY or RUNNING), also after it ended and until it is replaced; a
slot is *claimed* while it has a current task. Two current tasks mean a replacement under way: the newest is to take over
from the older one. A task is *leaving* from the moment that it is told to end until nothing of it runs.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from swarm.clock import timestamp
from swarm.v1.types_pb2 import (
    AVAILABILITY_DRAIN,
    NODE_STATE_DOWN,
    TASK_STATE_NEW,
    TASK_STATE_PENDING,
    TASK_STATE_RUNNING,
    TASK_STATE_SHUTDOWN,
    PortConfig,
    Service,
    ServiceRevision,
    Task,
    TaskState,
    TaskStatus,
)

from orchestrator.allocator.ports import has_ingress_ports, is_ingress
from orchestrator.controllers.losses import ReplacementBudget
from orchestrator.store import Change, Create, SetDesiredState, Snapshot
from orchestrator.store.states import is_confirmed_stopped, is_ended
from orchestrator.store.tables import SlotKey, port_key


class Place(enum.Enum):
    """How a task's node stands."""

    FINE = enum.auto()  # or the task has no node yet
    DRAINING = enum.auto()
    LOST = enum.auto()  # down: it may still run there, but nobody knows
    GONE = enum.auto()  # removed from the swarm, its certificate revoked


@dataclass
class Slot:
    """One place of a service and its tasks, oldest first."""

    key: SlotKey
    tasks: tuple[Task, ...]
    current: list[Task] = field(default_factory=list)
    leaving: list[Task] = field(default_factory=list)

    @property
    def newest(self) -> Task:
        return self.current[-1]

    @property
    def older(self) -> list[Task]:
        return self.current[:-1]


@dataclass
class ServiceView:
    """One service, for one decision."""

    snapshot: Snapshot
    service: Service
    revision: ServiceRevision
    now: float
    new_id: Callable[[], str]
    budget: ReplacementBudget
    _dirty: dict[str, bool] = field(default_factory=dict)
    _places: dict[str, Place] = field(default_factory=dict)

    @cached_property
    def _host_ports(self) -> list[PortConfig]:
        return [port for port in self.service.spec.ports if not is_ingress(port)]

    @cached_property
    def _ingress_id(self) -> str:
        """The ingress network, where the service's tasks need an address on it."""
        ingress = self.snapshot.networks.ingress() if has_ingress_ports(self.service) else None
        return "" if ingress is None else ingress.id

    def slots(self) -> list[Slot]:
        """All slots that have tasks, in order."""
        found = [self._slot(key, tasks) for key, tasks in self.snapshot.tasks.slots(self.service.id)]
        found.sort(key=lambda slot: slot.key)
        return found

    def _slot(self, key: SlotKey, tasks: tuple[Task, ...]) -> Slot:
        slot = Slot(key, tasks)
        if len(tasks) == 1 and tasks[0].desired_state <= TASK_STATE_RUNNING:
            slot.current.append(tasks[0])  # nearly all slots, nearly always
            return slot
        for task in tasks:
            if task.desired_state <= TASK_STATE_RUNNING:
                slot.current.append(task)
            elif not self.is_released(task):
                slot.leaving.append(task)
        return slot

    def place(self, task: Task) -> Place:
        node_id = task.node_id
        found = self._places.get(node_id)
        if found is None:
            found = self._places[node_id] = self._place_of(node_id)
        return found

    def _place_of(self, node_id: str) -> Place:
        if not node_id:
            return Place.FINE
        node = self.snapshot.nodes.get(node_id)
        if node is None:
            return Place.GONE
        if node.status.state == NODE_STATE_DOWN:
            return Place.LOST
        return Place.DRAINING if node.spec.availability == AVAILABILITY_DRAIN else Place.FINE

    def is_released(self, task: Task) -> bool:
        """Whether a successor may start: the task is confirmed stopped, or nobody can say because its node is lost."""
        return is_confirmed_stopped(task) or is_ended(task) or self.place(task) in (Place.LOST, Place.GONE)

    def spec_is_old(self, revision_id: str) -> bool:
        """Whether tasks of a revision are something else than the service's current revision says."""
        if revision_id == self.revision.id:
            return False
        known = self._dirty.get(revision_id)
        if known is None:
            other = self.snapshot.revisions.get(revision_id)
            known = self._dirty[revision_id] = other is None or other.spec.task != self.revision.spec.task
        return known

    def is_dirty(self, task: Task) -> bool:
        """Whether the task must be replaced by one of the current revision."""
        return self.spec_is_old(task.revision_id) or self._ports_moved(task)

    def _ports_moved(self, task: Task) -> bool:
        """Ports are no part of the task's spec, but of its wiring: host ports, and an address on the ingress network."""
        wanted, has_ports = self._host_ports, task.host_ports
        if not (wanted or has_ports or self._ingress_id) or task.status.state < TASK_STATE_PENDING:
            return False
        if len(wanted) != len(has_ports):
            return True
        for want, has in zip(wanted, has_ports, strict=True):
            same_number = want.published_port in (0, has.published_port)
            if not same_number or want.target_port != has.target_port or port_key(want)[0] != port_key(has)[0]:
                return True
        return bool(self._ingress_id) and all(at.network_id != self._ingress_id for at in task.attachments)

    def new_task(
        self,
        key: SlotKey,
        *,
        revision_id: str = "",
        desired: TaskState.ValueType = TASK_STATE_RUNNING,
        consecutive_failures: int = 0,
    ) -> Create:
        """A new task for a slot; of the service's revision where none is named."""
        return Create(
            Task(
                id=self.new_id(),
                service_id=self.service.id,
                revision_id=revision_id or self.revision.id,
                slot=key if isinstance(key, int) else 0,
                node_id=key if isinstance(key, str) else "",
                desired_state=desired,
                status=TaskStatus(state=TASK_STATE_NEW, at=timestamp(self.now)),
                service_name=self.service.spec.name,
                consecutive_failures=consecutive_failures,
            )
        )


def stop(task: Task) -> Change:
    """The task is to end; its agent drains and stops it."""
    return SetDesiredState(task.id, TASK_STATE_SHUTDOWN)


def runs_current_spec(snapshot: Snapshot, service: Service, task: Task) -> bool:
    """Whether a task is what the service says now: of its revision, or of another one with the same words (an update that was
    taken back by another update). Only the words count for whether it is replaced."""
    if task.revision_id == service.revision_id:
        return True
    own, wanted = snapshot.revisions.get(task.revision_id), snapshot.revisions.get(service.revision_id)
    return own is not None and wanted is not None and own.spec.task == wanted.spec.task
