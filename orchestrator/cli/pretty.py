"""Objects for people: what `inspect --pretty` prints. Pure: each function returns lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from google.protobuf.duration_pb2 import Duration
from swarm.clock import seconds_of
from swarm.v1 import control_pb2 as control
from swarm.v1 import types_pb2 as types

from orchestrator.cli import words
from orchestrator.cli.messages import rfc3339

_WIDTH = 20


def _field(name: str, value: str, indent: int = 0) -> str:
    return f"{' ' * indent}{name + ':':<{max(1, _WIDTH - indent)}} {value}".rstrip()


def _span(value: Duration) -> str:
    return words.duration(seconds_of(value))


def _labels(labels: Mapping[str, str], name: str = "Labels") -> Iterator[str]:
    if labels:
        yield f"{name}:"
        for key in sorted(labels):
            yield f" {key}={labels[key]}"


def service_lines(summary: control.ServiceSummary, network_names: Mapping[str, str]) -> Iterator[str]:
    """A service; `network_names` by id."""
    service, spec = summary.service, summary.service.spec
    yield _field("ID", service.id)
    yield _field("Name", spec.name)
    yield from _labels(spec.labels)
    mode = spec.mode.WhichOneof("mode") or "replicated"
    yield _field("Mode", mode.capitalize())
    if mode == "replicated":
        yield _field("Replicas", str(spec.mode.replicated.replicas), 1)
    yield _field("Running", f"{summary.running} of {summary.desired}, {summary.healthy} healthy")
    if service.update_status.state:
        yield "Update status:"
        yield _field("State", words.enum_word(types.UpdateState.DESCRIPTOR, service.update_status.state), 1)
        if service.update_status.HasField("started_at"):
            yield _field("Started", _moment(service.update_status.started_at), 1)
        if service.update_status.HasField("completed_at"):
            yield _field("Completed", _moment(service.update_status.completed_at), 1)
        if service.update_status.message:
            yield _field("Message", service.update_status.message, 1)
    yield from _placement(spec.task.placement)
    yield from _restart(spec.task.restart)
    for title, policy in (("Update config", spec.update), ("Rollback config", spec.rollback)):
        yield f"{title}:"
        yield from _policy(policy)
    yield from _container(spec.task.container)
    yield from _resources(spec.task)
    networks = [network_names.get(one.network, one.network) for one in spec.task.networks]
    if networks:
        yield _field("Networks", ", ".join(networks))
    for address in service.virtual_ips:
        yield _field("Virtual IP", f"{address.address} ({network_names.get(address.network_id, address.network_id)})")
    yield _field("Endpoint mode", words.enum_word(types.EndpointMode.DESCRIPTOR, spec.endpoint_mode) or "vip")
    yield from _ports(service.published_ports or spec.ports)


def _moment(value: object) -> str:
    return rfc3339(value.seconds, 0)  # type: ignore[attr-defined]


def _placement(placement: types.Placement) -> Iterator[str]:
    if not (placement.constraints or placement.spread or placement.max_replicas_per_node):
        return
    yield "Placement:"
    if placement.constraints:
        yield _field("Constraints", ", ".join(placement.constraints), 1)
    if placement.spread:
        yield _field("Spread over", ", ".join(placement.spread), 1)
    if placement.max_replicas_per_node:
        yield _field("Max per node", str(placement.max_replicas_per_node), 1)


def _restart(policy: types.RestartPolicy) -> Iterator[str]:
    yield "Restart policy:"
    yield _field("Condition", words.enum_word(types.RestartCondition.DESCRIPTOR, policy.condition) or "any", 1)
    yield _field("Delay", _span(policy.delay) if policy.HasField("delay") else "growing with each failure", 1)
    window = f" within {_span(policy.window)}" if seconds_of(policy.window) else ""
    yield _field("Max attempts", f"{policy.max_attempts}{window}" if policy.max_attempts else "unlimited", 1)


def _policy(policy: types.UpdateConfig) -> Iterator[str]:
    yield _field("Parallelism", "all" if policy.all_at_once else str(policy.parallelism or 1), 1)
    if policy.HasField("delay"):
        yield _field("Delay", _span(policy.delay), 1)
    yield _field("On failure", words.enum_word(types.FailureAction.DESCRIPTOR, policy.failure_action) or "pause", 1)
    yield _field("Monitor", _span(policy.monitor) if policy.HasField("monitor") else "5s", 1)
    yield _field("Max failure ratio", f"{policy.max_failure_ratio:g}", 1)
    yield _field("Order", words.enum_word(types.UpdateOrder.DESCRIPTOR, policy.order) or "stop-first", 1)


def _container(container: types.ContainerSpec) -> Iterator[str]:
    yield "Container:"
    image = container.image + (f"@{container.image_digest}" if container.image_digest else "")
    texts = (
        ("Image", image),
        ("Entrypoint", " ".join(container.command)),
        ("Args", " ".join(container.args)),
        ("Env", " ".join(container.env)),
        ("Dir", container.directory),
        ("User", container.user),
        ("Groups", " ".join(container.groups)),
        ("Hostname", container.hostname),
        ("Stop signal", container.stop_signal),
        ("Stop grace", _span(container.stop_grace_period) if container.HasField("stop_grace_period") else ""),
        ("Hosts", ", ".join(container.hosts)),
        ("Name servers", " ".join(container.dns.nameservers)),
        ("Health check", " ".join(container.health.test)),
        ("Capabilities", " ".join([f"+{c}" for c in container.capabilities_add] + _minus(container.capabilities_drop))),
        ("Sysctls", " ".join(f"{key}={container.sysctls[key]}" for key in sorted(container.sysctls))),
        ("Ulimits", " ".join(map(_ulimit, container.ulimits))),
        ("Labels", " ".join(f"{key}={container.labels[key]}" for key in sorted(container.labels))),
        ("Options", " ".join(name for name in ("read_only", "tty", "init") if getattr(container, name))),
    )
    for name, text in texts:
        if text:
            yield _field(name, text, 1)
    for mount in container.mounts:
        yield _field("Mount", _mount(mount), 1)


def _mount(mount: types.Mount) -> str:
    kind = words.enum_word(types.MountType.DESCRIPTOR, mount.type) or "volume"
    parts = [f"{kind} {mount.source or '-'} on {mount.target}"]
    if mount.read_only:
        parts.append("ro")
    if mount.tmpfs_size_bytes:
        parts.append(f"size {words.memory(mount.tmpfs_size_bytes)}")
    if mount.tmpfs_mode:
        parts.append(f"mode {mount.tmpfs_mode:04o}")
    return " ".join(parts)


def _ulimit(limit: types.Ulimit) -> str:
    soft, hard = ("unlimited" if value == -1 else str(value) for value in (limit.soft, limit.hard))
    return f"{limit.name}={soft}:{hard}"


def _minus(names: Iterable[str]) -> list[str]:
    return [f"-{name}" for name in names]


def _resources(task: types.TaskSpec) -> Iterator[str]:
    amounts = []
    for title, resources in (("Reserved", task.reservations), ("Limit", task.limits)):
        parts = []
        if resources.nano_cpus:
            parts.append(f"{words.cpus(resources.nano_cpus)} CPUs")
        if resources.memory_bytes:
            parts.append(words.memory(resources.memory_bytes))
        if resources.pids:
            parts.append(f"{resources.pids} processes")
        if parts:
            amounts.append(_field(title, ", ".join(parts), 1))
    if amounts:
        yield "Resources:"
        yield from amounts


def _ports(ports: Iterable[types.PortConfig]) -> Iterator[str]:
    for port in ports:
        mode = words.enum_word(types.PublishMode.DESCRIPTOR, port.mode) or "ingress"
        protocol = words.enum_word(types.PortProtocol.DESCRIPTOR, port.protocol) or "tcp"
        yield _field("Port", f"{port.published_port or 'to be chosen'} -> {port.target_port}/{protocol} ({mode})")


def node_lines(node: types.Node, manager_status: str = "") -> Iterator[str]:
    """A node; `manager_status`: Leader, Reachable or Unreachable where it is a manager."""
    description = node.description
    yield _field("ID", node.id)
    if node.spec.name:
        yield _field("Name", node.spec.name)
    yield from _labels(node.spec.labels)
    yield _field("Hostname", description.hostname)
    if node.meta.HasField("created_at"):
        yield _field("Joined at", _moment(node.meta.created_at))
    yield "Status:"
    yield _field("State", words.enum_word(types.NodeState.DESCRIPTOR, node.status.state).capitalize(), 1)
    if node.status.message:
        yield _field("Message", node.status.message, 1)
    availability = words.enum_word(types.Availability.DESCRIPTOR, node.spec.availability) or "active"
    yield _field("Availability", availability.capitalize(), 1)
    yield _field("Role", words.enum_word(types.NodeRole.DESCRIPTOR, node.role), 1)
    yield _field("Address", description.address, 1)
    if node.HasField("manager"):
        yield "Manager:"
        if manager_status:
            yield _field("Status", manager_status, 1)
        yield _field("Raft address", node.manager.address, 1)
    yield "Platform:"
    yield _field("System", f"{description.os} {description.architecture}, kernel {description.kernel}", 1)
    yield _field("Version", description.engine_version, 1)
    yield "Resources:"
    yield _field("CPUs", words.cpus(description.resources.nano_cpus), 1)
    yield _field("Memory", words.memory(description.resources.memory_bytes), 1)
    yield from _labels(description.engine_labels, "Engine labels")


def network_lines(answer: control.GetNetworkResponse) -> Iterator[str]:
    """A network and who is attached to it."""
    network = answer.network
    yield _field("ID", network.id)
    yield _field("Name", network.spec.name)
    yield from _labels(network.spec.labels)
    yield _field("Driver", network.spec.driver or "overlay")
    yield _field("Subnet", network.subnet)
    yield _field("Gateway", network.gateway)
    yield _field("VXLAN id", str(network.vni))
    flags = [name for name in ("internal", "attachable", "ingress") if getattr(network.spec, name)]
    if flags:
        yield _field("Flags", ", ".join(flags))
    if answer.tasks:
        yield "Tasks:"
    for task in answer.tasks:
        address = next((one.address for one in task.attachments if one.network_id == network.id), "")
        yield _field(f"{task.service_name}.{task.slot or task.node_id[:12]}", address, 1)
