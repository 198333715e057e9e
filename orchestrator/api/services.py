"""What creating, updating, rolling back and removing a service changes: pure decisions over a snapshot.

A new revision is made only where the task spec changed: that is what makes tasks be replaced. Everything else (replicas,
labels, ports, how to update) changes the service in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from swarm.clock import timestamp
from swarm.errors import AlreadyExists, Conflict, FailedPrecondition, InvalidArgument, NotFound
from swarm.ids import IdSource
from swarm.v1 import types_pb2

from orchestrator.api.lookup import find_network
from orchestrator.store import Change, Create, Snapshot, Update, copy_of
from orchestrator.store.states import is_paused
from orchestrator.store.tables import PortKey, port_key


def create_service(snapshot: Snapshot, spec: types_pb2.ServiceSpec, *, ids: IdSource) -> list[Change]:
    """`spec` is checked by itself already. Raises AlreadyExists, NotFound (network), InvalidArgument."""
    _check_name_free(snapshot, spec.name)
    stored = with_network_ids(snapshot, spec)
    check_published_ports(snapshot, stored, service_id="")
    service_id, revision_id = ids(), ids()
    return [
        Create(types_pb2.ServiceRevision(id=revision_id, service_id=service_id, number=1, spec=stored)),
        Create(types_pb2.Service(id=service_id, spec=stored, revision_id=revision_id)),
    ]


def update_service(
    snapshot: Snapshot, service: types_pb2.Service, spec: types_pb2.ServiceSpec, version: int, *, ids: IdSource
) -> list[Change]:
    """`spec` is checked by itself already. Raises Conflict (another version), FailedPrecondition (being removed),
    InvalidArgument (name or mode changed), AlreadyExists (port), NotFound (network)."""
    check_updatable(service, version)
    if spec.name != service.spec.name:
        raise InvalidArgument(f'name: service "{service.spec.name}" cannot be renamed to "{spec.name}"; create another')
    if spec.mode.WhichOneof("mode") != service.spec.mode.WhichOneof("mode"):
        raise InvalidArgument(
            f'mode: service "{spec.name}" is {service.spec.mode.WhichOneof("mode")} and cannot change that; create another'
        )
    stored = with_network_ids(snapshot, spec)
    check_published_ports(snapshot, stored, service_id=service.id)
    current = snapshot.revisions.get(service.revision_id)
    changed = copy_of(service)
    changed.spec.CopyFrom(stored)
    if current is not None and current.spec.task == stored.task:
        if stored.ports != service.spec.ports and is_paused(service):
            changed.ClearField("update_status")  # ports reach the tasks by an update, which a paused one would hold up
        return [Update(changed)] if changed != service else []
    number = 1 + max((revision.number for revision in snapshot.revisions.of_service(service.id)), default=0)
    revision = types_pb2.ServiceRevision(id=ids(), service_id=service.id, number=number, spec=stored)
    changed.previous_revision_id = service.revision_id
    changed.revision_id = revision.id
    changed.ClearField("update_status")  # a new update begins, also where the last one was paused
    return [Create(revision), Update(changed)]


def _check_name_free(snapshot: Snapshot, name: str) -> None:
    """Names are told apart without regard to case: DNS, where tasks look services up, knows none. Services that differ in
    case only may be there from before this was asked for, so the store's own rule is about equal names."""
    folded = name.lower()
    for service in snapshot.services:
        if service.removing or service.spec.name.lower() != folded:
            continue
        if service.spec.name == name:
            raise AlreadyExists(f'service "{name}" exists already; choose another name, or update it')
        raise AlreadyExists(
            f'service "{name}": service "{service.spec.name}" exists already, and DNS does not tell upper from lower case; '
            "choose another name"
        )


def scaled_spec(service: types_pb2.Service, spec: types_pb2.ServiceSpec) -> types_pb2.ServiceSpec:
    """The service's own spec with the replicas of `spec`: what an update without a version may change."""
    if service.spec.mode.HasField("global") and spec.mode.HasField("replicated"):
        raise InvalidArgument(
            f'service "{service.spec.name}" is global: it has one task on each node and no number of replicas; '
            "constraints say on which nodes"
        )
    if not service.spec.mode.HasField("replicated") or not spec.mode.HasField("replicated"):
        raise InvalidArgument(
            f'version: an update of service "{service.spec.name}" must name the version that it read; '
            "without one only the replicas of a replicated service can change"
        )
    scaled = copy_of(service).spec
    scaled.mode.replicated.replicas = spec.mode.replicated.replicas
    return scaled


def roll_back_service(snapshot: Snapshot, service: types_pb2.Service, version: int, now: float) -> list[Change]:
    """Back to the task spec of the revision before, as a failed update goes back. The rest stays: replicas, labels and ports
    change without a revision, so that the one before is out of date about them. Raises FailedPrecondition, Conflict."""
    check_updatable(service, version or service.meta.version)
    previous = snapshot.revisions.get(service.previous_revision_id)
    if previous is None:
        raise FailedPrecondition(
            f'service "{service.spec.name}" has no previous version to return to; update it to what it should be'
        )
    changed = copy_of(service)
    changed.spec.task.CopyFrom(previous.spec.task)
    if not snapshot.networks.has_all_of(previous.spec.task):
        raise FailedPrecondition(
            f'service "{service.spec.name}" cannot return to its previous version: a network that it used was removed; '
            "update the service to what it should be"
        )
    changed.revision_id, changed.previous_revision_id = service.previous_revision_id, service.revision_id
    changed.update_status.CopyFrom(
        types_pb2.UpdateStatus(
            state=types_pb2.UPDATE_STATE_ROLLBACK_STARTED,
            started_at=timestamp(now),
            message="rolling back, as was asked for",
        )
    )
    return [Update(changed)]


def remove_service(service: types_pb2.Service) -> list[Change]:
    """Its tasks stop, and then it goes: the reaper does both. Nothing to do where that is under way."""
    if service.removing:
        return []
    changed = copy_of(service)
    changed.removing = True
    return [Update(changed)]


def check_updatable(service: types_pb2.Service, version: int) -> None:
    if service.removing:
        raise FailedPrecondition(f'service "{service.spec.name}" is being removed and cannot change any more')
    if version != service.meta.version:
        raise Conflict(
            f'service "{service.spec.name}" changed since it was read (it is at version {service.meta.version}, '
            f"not {version}); read it again and repeat"
        )


def with_network_ids(snapshot: Snapshot, spec: types_pb2.ServiceSpec) -> types_pb2.ServiceSpec:
    """A copy of `spec` that names its networks by id. Raises NotFound, InvalidArgument."""
    stored = types_pb2.ServiceSpec()
    stored.CopyFrom(spec)
    seen: set[str] = set()
    for attachment in stored.task.networks:
        try:
            network = find_network(snapshot, attachment.network)
        except NotFound:
            raise NotFound(
                f'service "{spec.name}": network "{attachment.network}" was not found; '
                f"create it with `swarmctl network create -d overlay {attachment.network}`"
            ) from None
        if network.spec.ingress:
            raise InvalidArgument(
                f'task.networks: service "{spec.name}" cannot be attached to "{network.spec.name}", the network of published '
                "ports; publish a port instead"
            )
        if network.id in seen:
            raise InvalidArgument(f'task.networks: service "{spec.name}" names network "{network.spec.name}" twice')
        seen.add(network.id)
        attachment.network = network.id
    return stored


def check_published_ports(snapshot: Snapshot, spec: types_pb2.ServiceSpec, *, service_id: str) -> None:
    """Raises AlreadyExists, naming the service that has a port already. A port of the mesh is taken on every node: by one
    service, and not beside a port in host mode. Ports in host mode may be shared; the scheduler keeps them apart."""
    wanted = [port for port in spec.ports if port.published_port]
    for port in wanted:
        key = port_key(port)
        holder = snapshot.services.publishing(key)
        if (holder is None or holder.id == service_id) and port.mode != types_pb2.PUBLISH_MODE_HOST:
            holder = _host_mode_holder(snapshot, key, service_id)
        if holder is not None and holder.id != service_id:
            raise AlreadyExists(
                f'service "{spec.name}": port {key[1]}/{key[0]} is already published by service "{holder.spec.name}"; '
                "choose another port or remove that one"
            )


def _host_mode_holder(snapshot: Snapshot, key: PortKey, service_id: str) -> types_pb2.Service | None:
    for service in snapshot.services:
        if service.id == service_id or service.removing:
            continue
        if key in _host_ports(service.spec.ports) or key in _host_ports(service.published_ports):  # as asked, as chosen
            return service
    return None


def _host_ports(ports: Iterable[types_pb2.PortConfig]) -> Sequence[PortKey]:
    return [port_key(port) for port in ports if port.published_port and port.mode == types_pb2.PUBLISH_MODE_HOST]
