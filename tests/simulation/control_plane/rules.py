"""What must hold after each entry of the log, and what must hold once the cluster has come to rest."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from swarm.v1.types_pb2 import (
    AVAILABILITY_DRAIN,
    NODE_STATE_READY,
    PUBLISH_MODE_HOST,
    TASK_STATE_ASSIGNED,
    TASK_STATE_ORPHANED,
    TASK_STATE_RUNNING,
    UPDATE_ORDER_START_FIRST,
    UPDATE_STATE_PAUSED,
    UPDATE_STATE_ROLLBACK_PAUSED,
    Task,
)

from orchestrator.store import Kind, Snapshot, StoreObject
from orchestrator.store.tables import SlotKey, bare_address, slot_key

if TYPE_CHECKING:
    from tests.simulation.control_plane.world import World


class Rules:
    """The invariants. One object for each run: it remembers what it saw, to find objects that were changed in place."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[StoreObject, bytes]] = {}

    def after_entry(self, world: World, author: str, before: Snapshot, after: Snapshot) -> None:
        for task_id in {*before.tasks.ids(), *after.tasks.ids()}:
            old, new = before.tasks.get(task_id), after.tasks.get(task_id)
            if old is new:
                continue
            self._remember(new)
            if old is not None and new is not None:
                self._task_moved(author, old, new)
            elif new is None and old is not None:
                assert task_id not in world.containers() or old.node_id not in after.nodes, (
                    f"task {task_id} was forgotten while its container runs"
                )
        for kind in (Kind.SERVICE, Kind.NODE, Kind.NETWORK, Kind.REVISION):
            for obj in after.table(kind):
                self._remember(obj)
        self._unique(world, after)

    def _remember(self, obj: StoreObject | None) -> None:
        if obj is not None and id(obj) not in self.seen:
            self.seen[id(obj)] = obj, obj.SerializeToString(deterministic=True)

    def nothing_was_changed_in_place(self) -> None:
        for obj, data in self.seen.values():
            assert obj.SerializeToString(deterministic=True) == data, f"{obj} was changed in place"

    def _task_moved(self, author: str, old: Task, new: Task) -> None:
        assert new.status.state >= old.status.state, "an observed state went back"
        assert new.desired_state >= old.desired_state, "a desired state went back"
        for field in ("service_id", "revision_id", "slot", "service_name"):
            assert getattr(old, field) == getattr(new, field), f"{field} of a task changed"
        assert not old.node_id or old.node_id == new.node_id, "a task was moved"
        assert not old.attachments or old.attachments == new.attachments, "a task's addresses changed"
        if new.status.state != old.status.state:
            owned_by_core = new.status.state <= TASK_STATE_ASSIGNED or new.status.state == TASK_STATE_ORPHANED
            assert owned_by_core == (author == "core"), f"{author} moved a task to {new.status.state}"
        if new.desired_state != old.desired_state:
            assert author == "core", f"{author} changed a desired state"

    def _unique(self, world: World, after: Snapshot) -> None:
        """Addresses of whatever really runs, virtual IPs, ports, VNIs."""
        addresses: dict[tuple[str, str], str] = {}
        running = world.containers()
        for task_id in running:
            task = after.tasks.get(task_id)
            for attachment in task.attachments if task is not None else ():
                key = attachment.network_id, bare_address(attachment.address)
                assert addresses.setdefault(key, task_id) == task_id, f"{key} is used by two containers"
        for task in after.tasks:
            for attachment in task.attachments:
                key = attachment.network_id, bare_address(attachment.address)
                if after.tasks.addresses(key[0]).get(key[1]) == task.id:
                    assert addresses.setdefault(key, task.id) == task.id, f"{key} was given to two tasks"
        ports: dict[tuple[int, int], str] = {}
        for service in after.services:
            for vip in service.virtual_ips:
                key = vip.network_id, vip.address
                assert addresses.setdefault(key, service.id) == service.id, f"{key} is a virtual IP and something else"
            for port in service.published_ports if not service.removing else ():
                if port.mode == PUBLISH_MODE_HOST:
                    continue  # may be shared: the scheduler keeps the tasks apart
                owner = ports.setdefault((port.protocol, port.published_port), service.id)
                assert owner == service.id, f"port {port.published_port} is published twice"
        vnis = [network.vni for network in after.networks if network.vni]
        assert len(vnis) == len(set(vnis)), "a VNI was given twice"

    def started(self, world: World, task: Task) -> None:
        """A container starts: how many others of its slot run, on hosts that the managers can reach?"""
        service = world.snapshot.services.get(task.service_id)
        if service is None:
            return
        others = [
            other
            for other in world.snapshot.tasks.in_slot(task.service_id, slot_key(task))
            if other.id != task.id
            and other.node_id in world.agents
            and other.id in world.agents[other.node_id].running
            and world.agents[other.node_id].reachable
            and world.snapshot.nodes[other.node_id].status.state == NODE_STATE_READY
            and world.recently_back(other.node_id) is False
        ]
        allowed = 1 if service.spec.update.order == UPDATE_ORDER_START_FIRST else 0
        assert len(others) <= allowed, (
            f"slot {task.slot} of {task.service_name} has {len(others) + 1} containers: "
            f"{task.id} beside {[other.id for other in others]}"
        )

    def at_rest(self, world: World) -> None:
        """The cluster had time and no new faults: everything is as the specs say."""
        snapshot = world.snapshot
        usable = {
            node.id
            for node in snapshot.nodes
            if node.status.state == NODE_STATE_READY and node.spec.availability != AVAILABILITY_DRAIN
        }
        for service in snapshot.services:
            assert not service.removing, f"service {service.spec.name} is still being removed"
            paused = service.update_status.state in (UPDATE_STATE_PAUSED, UPDATE_STATE_ROLLBACK_PAUSED)
            current: dict[SlotKey, list[Task]] = defaultdict(list)
            for task in snapshot.tasks.of_service(service.id):
                if task.desired_state <= TASK_STATE_RUNNING:
                    current[slot_key(task)].append(task)
            if not usable:
                continue
            replicated = service.spec.mode.WhichOneof("mode") == "replicated"
            wanted_slots = service.spec.mode.replicated.replicas if replicated else len(usable)
            assert len(current) == wanted_slots, f"{service.spec.name}: {list(current)}"
            for slot, tasks in current.items():
                serving = [task for task in tasks if task.status.state == TASK_STATE_RUNNING]
                assert {task.node_id for task in serving} <= usable, f"slot {slot} runs on a drained or lost node"
                if paused:
                    continue
                assert len(tasks) == 1 and serving == tasks, f"{service.spec.name} slot {slot}: {tasks}"
                wanted = snapshot.revisions[service.revision_id].spec.task
                assert snapshot.revisions[tasks[0].revision_id].spec.task == wanted, f"slot {slot} was not updated"
            referenced = {service.revision_id, service.previous_revision_id}
            referenced |= {task.revision_id for task in snapshot.tasks.of_service(service.id)}
            assert {revision.id for revision in snapshot.revisions.of_service(service.id)} <= referenced
        for service_id in snapshot.tasks.service_ids():
            assert service_id in snapshot.services, "tasks of a removed service are left"
        for agent in world.agents.values():
            for task_id in agent.running:
                task = snapshot.tasks.get(task_id)
                assert task is not None and task.desired_state <= TASK_STATE_RUNNING, f"{task_id} runs unwanted"
