"""What a service may be told: name, mode, ports, resources, restarts, placement, networks, updates."""

from __future__ import annotations

from collections.abc import Sequence

from swarm.errors import InvalidArgument
from swarm.v1 import types_pb2

from orchestrator.allocator.ports import SWARM_PORTS
from orchestrator.api.validation.containers import check_container
from orchestrator.api.validation.fields import (
    check_count,
    check_duration,
    check_enum,
    check_labels,
    check_name,
    check_range,
    check_text,
    first_duplicate,
    refuse,
)
from orchestrator.scheduler.constraints import check_key, parse_constraint
from orchestrator.store.tables import port_key

MAX_REPLICAS = 20_000
MAX_PORTS = 1024
MAX_NETWORKS = 64
MAX_ALIASES = 256
MAX_CONSTRAINTS = 256
MAX_PREFERENCES = 64  # each is a level of the scheduler's tree
SMALLEST_MEMORY = 4 << 20  # bytes; less and no container starts (Docker refuses the same)
SMALLEST_CPU = 1_000_000  # nano CPUs: 0.001
LARGEST_CPU = 10_000 * 1_000_000_000
MAX_SPEC_BYTES = 512 << 10  # a transaction is at most 1 MiB and holds the spec twice (service and revision)
HIGHEST_PORT = 65535


def check_service_spec(spec: types_pb2.ServiceSpec) -> None:
    """Raises InvalidArgument for the first thing that is wrong."""
    # Says more than the size of a spec that a range of ports made large.
    check_count("ports", len(spec.ports), MAX_PORTS)
    if spec.ByteSize() > MAX_SPEC_BYTES:
        raise refuse("spec", f"is {spec.ByteSize()} bytes large; at most {MAX_SPEC_BYTES} are allowed")
    check_name("name", spec.name)
    check_labels("labels", spec.labels)
    _check_mode(spec)
    _check_task("task", spec.task)
    check_ports("ports", spec.ports, spec.endpoint_mode)
    check_enum(
        "endpoint_mode",
        types_pb2.EndpointMode.Name(spec.endpoint_mode)
        if spec.endpoint_mode in types_pb2.EndpointMode.values()
        else None,
        spec.endpoint_mode,
    )
    for name, update in (("update", spec.update), ("rollback", spec.rollback)):
        _check_update(name, update)
    if spec.rollback.failure_action == types_pb2.FAILURE_ACTION_ROLLBACK:
        raise refuse("rollback.failure_action", "a rollback cannot roll back; say pause or continue")


def _check_mode(spec: types_pb2.ServiceSpec) -> None:
    mode = spec.mode.WhichOneof("mode")
    if mode is None:
        raise refuse("mode", "say replicated (with a number of replicas) or global")
    if mode == "replicated":
        if spec.mode.replicated.replicas > MAX_REPLICAS:
            raise refuse(
                "mode.replicated.replicas",
                f"{spec.mode.replicated.replicas} replicas are too many; at most {MAX_REPLICAS} are allowed",
            )
    elif spec.task.placement.max_replicas_per_node:
        raise refuse(
            "task.placement.max_replicas_per_node", "is for replicated services; a global one has one task per node"
        )


def _check_task(field: str, task: types_pb2.TaskSpec) -> None:
    check_container(f"{field}.container", task.container)
    _check_resources(task)
    restart = task.restart
    check_enum(
        f"{field}.restart.condition",
        types_pb2.RestartCondition.Name(restart.condition)
        if restart.condition in types_pb2.RestartCondition.values()
        else None,
        restart.condition,
    )
    check_duration(f"{field}.restart.delay", restart.delay)
    check_duration(f"{field}.restart.window", restart.window)
    _check_placement(f"{field}.placement", task.placement)
    _check_networks(f"{field}.networks", task.networks)


def _check_placement(field: str, placement: types_pb2.Placement) -> None:
    """The grammar is the scheduler's."""
    check_count(f"{field}.constraints", len(placement.constraints), MAX_CONSTRAINTS)
    for text in placement.constraints:
        _check_one_line(f"{field}.constraints", text)
        try:
            constraint = parse_constraint(text)
        except InvalidArgument as error:
            raise refuse(f"{field}.constraints", str(error)) from None
        if constraint.key == "node.role" and constraint.value.casefold() not in ("manager", "worker"):
            raise refuse(f"{field}.constraints", f"{text!r}: a role is manager or worker")
    check_count(f"{field}.spread", len(placement.spread), MAX_PREFERENCES)
    for key in placement.spread:
        _check_one_line(f"{field}.spread", key)
        try:
            check_key(key)
        except InvalidArgument as error:
            raise refuse(f"{field}.spread", str(error)) from None


def _check_one_line(field: str, text: str) -> None:
    """Sentences about what people wrote repeat it as it is: it must not break or colour a terminal's line, nor be endless (each
    task that finds no place says so)."""
    check_text(field, text)
    if not text.isprintable():
        raise refuse(field, f"{text!r} must not contain line breaks or control characters")


def _check_resources(task: types_pb2.TaskSpec) -> None:
    limits, reserved = task.limits, task.reservations
    for name, resources in (("limits", limits), ("reservations", reserved)):
        field = f"task.{name}"
        if resources.nano_cpus and not SMALLEST_CPU <= resources.nano_cpus <= LARGEST_CPU:
            raise refuse(
                f"{field}.nano_cpus", f"{resources.nano_cpus / 1e9:g} CPUs are out of range; give 0.001 to 10000"
            )
        if resources.memory_bytes and resources.memory_bytes < SMALLEST_MEMORY:
            raise refuse(
                f"{field}.memory_bytes", f"{resources.memory_bytes} bytes are too little; give at least 4 MiB (4m)"
            )
        if resources.pids < 0:
            raise refuse(f"{field}.pids", f"{resources.pids} is negative; 0 means unlimited")
    if reserved.pids:
        raise refuse("task.reservations.pids", "processes can be limited, but not reserved")
    if limits.nano_cpus and reserved.nano_cpus > limits.nano_cpus:
        raise refuse("task.reservations.nano_cpus", "reserves more CPUs than its limit allows to use")
    if limits.memory_bytes and reserved.memory_bytes > limits.memory_bytes:
        raise refuse("task.reservations.memory_bytes", "reserves more memory than its limit allows to use")


def _check_networks(field: str, networks: Sequence[types_pb2.NetworkAttachmentConfig]) -> None:
    check_count(field, len(networks), MAX_NETWORKS)
    for attachment in networks:
        if not attachment.network:
            raise refuse(field, "a network's name is empty")
        check_count(f"{field}.aliases", len(attachment.aliases), MAX_ALIASES)
        for alias in attachment.aliases:
            check_name(f"{field}.aliases", alias, dots=True)


def check_ports(
    field: str, ports: Sequence[types_pb2.PortConfig], endpoint_mode: types_pb2.EndpointMode.ValueType
) -> None:
    for port in ports:
        if not 1 <= port.target_port <= HIGHEST_PORT:
            raise refuse(f"{field}.target_port", f"{port.target_port} is not a port; give a number from 1 to 65535")
        if port.published_port > HIGHEST_PORT:
            raise refuse(
                f"{field}.published_port",
                f"{port.published_port} is not a port; give a number from 1 to 65535, or none to have one chosen",
            )
        if port_key(port) in SWARM_PORTS:
            protocol, number = port_key(port)
            raise refuse(
                f"{field}.published_port",
                f"{number}/{protocol} is the swarm's own port, for {SWARM_PORTS[protocol, number]}; choose another",
            )
        if port.protocol not in types_pb2.PortProtocol.values():
            raise refuse(f"{field}.protocol", f"the protocol {port.protocol} is not known; say tcp or udp")
        if port.mode not in types_pb2.PublishMode.values():
            raise refuse(f"{field}.mode", f"the mode {port.mode} is not known; say ingress or host")
        if endpoint_mode == types_pb2.ENDPOINT_MODE_DNSRR and port.mode != types_pb2.PUBLISH_MODE_HOST:
            raise refuse(
                field,
                f"port {port.published_port or port.target_port} cannot be published in ingress mode by a service with "
                "endpoint mode dnsrr; publish it in host mode, or use endpoint mode vip",
            )
    twice = first_duplicate(
        (port.protocol == types_pb2.PORT_PROTOCOL_UDP, port.published_port) for port in ports if port.published_port
    )
    if isinstance(twice, tuple):
        raise refuse(field, f"port {twice[1]}/{'udp' if twice[0] else 'tcp'} is published twice")


def _check_update(field: str, update: types_pb2.UpdateConfig) -> None:
    check_duration(f"{field}.delay", update.delay)
    check_duration(f"{field}.monitor", update.monitor)
    check_range(f"{field}.max_failure_ratio", update.max_failure_ratio, 0, 1)
    if update.parallelism > MAX_REPLICAS:
        raise refuse(f"{field}.parallelism", f"{update.parallelism} is too many at once; give at most {MAX_REPLICAS}")
    if update.all_at_once and update.parallelism:
        raise refuse(f"{field}.all_at_once", "cannot be combined with a parallelism")
    if update.failure_action not in types_pb2.FailureAction.values():
        raise refuse(f"{field}.failure_action", "is not known; say pause, continue or rollback")
    if update.order not in types_pb2.UpdateOrder.values():
        raise refuse(f"{field}.order", "is not known; say stop-first or start-first")
