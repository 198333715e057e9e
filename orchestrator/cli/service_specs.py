"""From flags to service specs: a new one, or a change of one that was read. Pure.

Only what a flag names is set. Both functions work on a spec of their own and hand it back; the one they were given stays
as it was. Whether the result makes sense as a whole is the API's to judge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message
from swarm.errors import FailedPrecondition, InvalidArgument
from swarm.v1 import types_pb2 as types

from orchestrator.cli.parsing import fields, ports
from orchestrator.cli.parsing import quantities as q
from orchestrator.cli.service_flags import CreateFlags, SettingFlags

if TYPE_CHECKING:
    from orchestrator.cli.update_flags import UpdateFlags

_CONDITIONS = {
    "none": types.RESTART_CONDITION_NONE,
    "on-failure": types.RESTART_CONDITION_ON_FAILURE,
    "any": types.RESTART_CONDITION_ANY,
}
_ACTIONS = {
    "pause": types.FAILURE_ACTION_PAUSE,
    "continue": types.FAILURE_ACTION_CONTINUE,
    "rollback": types.FAILURE_ACTION_ROLLBACK,
}
_ROLLBACK_ACTIONS = {name: action for name, action in _ACTIONS.items() if name != "rollback"}
_ORDERS = {"stop-first": types.UPDATE_ORDER_STOP_FIRST, "start-first": types.UPDATE_ORDER_START_FIRST}
_ENDPOINT_MODES = {"vip": types.ENDPOINT_MODE_VIP, "dnsrr": types.ENDPOINT_MODE_DNSRR}
_MAX_UINT32 = 2**32 - 1


def new_spec(
    image: str,
    arguments: Iterable[str],
    flags: CreateFlags,
    *,
    environment: Mapping[str, str],
    read_text: Callable[[str], str],
) -> types.ServiceSpec:
    """The spec of `service create`. `environment` is ours, `read_text` reads an --env-file."""
    spec = types.ServiceSpec(name=flags.name if flags.name is not None else name_of_image(image))
    container = spec.task.container
    container.image = image
    container.args.extend(arguments)
    _set_mode(spec, flags)
    spec.labels.update(fields.labels(flags.label or (), "--label"))
    container.labels.update(fields.labels(flags.container_label or (), "--container-label"))
    lines = [line for path in flags.env_file or () for line in fields.environment_file(read_text(path), path)]
    container.env.extend(fields.environment([*lines, *(flags.env or ())], environment))
    for text in flags.publish or ():
        spec.ports.extend(ports.published(text))
    spec.task.networks.extend(fields.network(text) for text in flags.network or ())
    spec.task.placement.constraints.extend(flags.constraint or ())
    spec.task.placement.spread.extend(fields.spread(text) for text in flags.placement_pref or ())
    container.mounts.extend(fields.mount(text) for text in flags.mount or ())
    container.groups.extend(flags.group or ())
    container.hosts.extend(fields.host(text) for text in flags.host or ())
    if flags.dns or flags.dns_search or flags.dns_option:
        container.dns.nameservers.extend(flags.dns or ())
        container.dns.search.extend(flags.dns_search or ())
        container.dns.options.extend(flags.dns_option or ())
    container.capabilities_add.extend(fields.capability(text, "--cap-add") for text in flags.cap_add or ())
    container.capabilities_drop.extend(fields.capability(text, "--cap-drop") for text in flags.cap_drop or ())
    container.sysctls.update(fields.assignments(flags.sysctl or (), "--sysctl"))
    container.ulimits.extend(fields.ulimit(text) for text in flags.ulimit or ())
    _apply_settings(spec, flags)
    return spec


def updated_spec(
    read: types.ServiceSpec, flags: UpdateFlags, *, environment: Mapping[str, str], network_ids: Mapping[str, str]
) -> types.ServiceSpec:
    """The spec of `service update`. `network_ids` has the id of each network that the flags name."""
    spec = types.ServiceSpec()
    spec.CopyFrom(read)
    container = spec.task.container
    if flags.image is not None:
        container.image = flags.image
        container.ClearField("image_digest")  # the API resolves the new reference
    if flags.args is not None:
        container.args[:] = fields.shell_words(flags.args, "--args")
    if flags.replicas is not None:
        if spec.mode.HasField("global"):
            raise InvalidArgument(f'--replicas: service "{spec.name}" is global, it has one task on each node')
        spec.mode.replicated.replicas = q.count(flags.replicas, "--replicas")
    if flags.force:
        spec.task.force_update += 1
    _change_maps(spec, flags)
    _change_lists(spec, flags, environment)
    _change_networks(spec.task, flags, network_ids)
    _change_ports(spec, flags)
    _change_capabilities(container, flags)
    _apply_settings(spec, flags)
    return spec


def networks_named(flags: UpdateFlags) -> list[str]:
    """The names (or ids) of networks that an update needs the ids of."""
    added = [fields.network(text, "--network-add").network for text in flags.network_add or ()]
    return list(dict.fromkeys([*added, *(flags.network_rm or ())]))


def name_of_image(image: str) -> str:
    """`web` from `registry:5000/team/web:1.2@sha256:…`."""
    name = image.partition("@")[0].rpartition("/")[2].partition(":")[0]
    if not name:
        raise InvalidArgument(f"{image!r} is not an image; write NAME[:TAG], as in nginx:1.27")
    return name


def _set_mode(spec: types.ServiceSpec, flags: CreateFlags) -> None:
    if flags.mode == "global":
        if flags.replicas is not None:
            raise InvalidArgument("--replicas belongs to --mode replicated: a global service has one task on each node")
        getattr(spec.mode, "global").SetInParent()  # the name is a word of Python
    elif flags.mode == "replicated":
        spec.mode.replicated.replicas = q.count(flags.replicas, "--replicas") if flags.replicas is not None else 1
    else:
        job = "; a job is such a service with --restart-condition none or on-failure" if "job" in flags.mode else ""
        raise InvalidArgument(f"--mode {flags.mode!r} is not known; write replicated or global{job}")


def _apply_settings(spec: types.ServiceSpec, flags: SettingFlags) -> None:
    task, container = spec.task, spec.task.container
    _set(task.placement, "max_replicas_per_node", flags.replicas_max_per_node, q.count, "--replicas-max-per-node")
    _set(task.limits, "nano_cpus", flags.limit_cpu, q.nano_cpus, "--limit-cpu")
    _set(task.limits, "memory_bytes", flags.limit_memory, q.byte_count, "--limit-memory")
    _set(task.limits, "pids", flags.limit_pids, q.count, "--limit-pids")
    _set(task.reservations, "nano_cpus", flags.reserve_cpu, q.nano_cpus, "--reserve-cpu")
    _set(task.reservations, "memory_bytes", flags.reserve_memory, q.byte_count, "--reserve-memory")
    _set(task.restart, "condition", flags.restart_condition, _one_of(_CONDITIONS), "--restart-condition")
    _set(task.restart, "delay", flags.restart_delay, q.duration, "--restart-delay")
    _set(task.restart, "max_attempts", flags.restart_max_attempts, q.count, "--restart-max-attempts")
    _set(task.restart, "window", flags.restart_window, q.duration, "--restart-window")
    _apply_policy(spec.update, "update", flags, _ACTIONS)
    _apply_policy(spec.rollback, "rollback", flags, _ROLLBACK_ACTIONS)
    _set(container, "stop_grace_period", flags.stop_grace_period, q.duration, "--stop-grace-period")
    _set(container, "stop_signal", flags.stop_signal, _as_is, "--stop-signal")
    _set(container, "user", flags.user, _as_is, "--user")
    _set(container, "directory", flags.workdir, _as_is, "--workdir")
    _set(container, "hostname", flags.hostname, _as_is, "--hostname")
    _set(spec, "endpoint_mode", flags.endpoint_mode, _one_of(_ENDPOINT_MODES), "--endpoint-mode")
    if flags.entrypoint is not None:
        container.command[:] = fields.shell_words(flags.entrypoint, "--entrypoint")
    for name in ("read_only", "tty", "init"):
        chosen = getattr(flags, name)
        if chosen is not None:
            setattr(container, name, chosen)
    _apply_health(container, flags)


def _apply_policy(policy: types.UpdateConfig, kind: str, flags: SettingFlags, actions: Mapping[str, int]) -> None:
    """The --update-… or --rollback-… flags."""

    def set_one(field: str, parse: Callable[[str, str], Any]) -> None:
        _set(policy, field, getattr(flags, f"{kind}_{field}"), parse, f"--{kind}-{field.replace('_', '-')}")

    set_one("parallelism", q.count)
    if getattr(flags, f"{kind}_parallelism") is not None:
        policy.all_at_once = policy.parallelism == 0
    set_one("delay", q.duration)
    set_one("failure_action", _one_of(actions))
    set_one("monitor", q.duration)
    set_one("max_failure_ratio", _ratio)
    set_one("order", _one_of(_ORDERS))


def _apply_health(container: types.ContainerSpec, flags: SettingFlags) -> None:
    settings = ("cmd", "interval", "timeout", "retries", "start_period", "start_interval")
    named = [name for name in settings if getattr(flags, f"health_{name}") is not None]
    if flags.no_healthcheck:
        if named:
            raise InvalidArgument(f"--no-healthcheck and --health-{named[0].replace('_', '-')} exclude each other")
        container.health.CopyFrom(types.HealthConfig(test=["NONE"]))
        return
    if not named:
        return
    if list(container.health.test) == ["NONE"]:
        container.health.ClearField("test")
    if flags.health_cmd is not None:
        container.health.test[:] = ["CMD-SHELL", flags.health_cmd] if flags.health_cmd else []
    _set(container.health, "interval", flags.health_interval, q.duration, "--health-interval")
    _set(container.health, "timeout", flags.health_timeout, q.duration, "--health-timeout")
    _set(container.health, "start_period", flags.health_start_period, q.duration, "--health-start-period")
    _set(container.health, "start_interval", flags.health_start_interval, q.duration, "--health-start-interval")
    if flags.health_retries is not None:
        container.health.retries = q.count(flags.health_retries, "--health-retries", _MAX_UINT32)


def _change_maps(spec: types.ServiceSpec, flags: UpdateFlags) -> None:
    container = spec.task.container
    _change_map(spec.labels, fields.labels(flags.label_add or (), "--label-add"), flags.label_rm)
    added = fields.labels(flags.container_label_add or (), "--container-label-add")
    _change_map(container.labels, added, flags.container_label_rm)
    _change_map(container.sysctls, fields.assignments(flags.sysctl_add or (), "--sysctl-add"), flags.sysctl_rm)


def _change_map(held: MutableMapping[str, str], added: Mapping[str, str], removed: Iterable[str] | None) -> None:
    for key in removed or ():
        held.pop(key, None)
    held.update(added)


def _change_lists(spec: types.ServiceSpec, flags: UpdateFlags, environment: Mapping[str, str]) -> None:
    container, placement = spec.task.container, spec.task.placement
    added_env = fields.environment(flags.env_add or (), environment, "--env-add")
    _change(container.env, added_env, flags.env_rm, key=lambda line: line.partition("=")[0])
    _change(placement.constraints, flags.constraint_add, flags.constraint_rm, key=_without_spaces)
    spreads = [fields.spread(text, "--placement-pref-add") for text in flags.placement_pref_add or ()]
    no_spreads = [fields.spread(text, "--placement-pref-rm") for text in flags.placement_pref_rm or ()]
    _change(placement.spread, spreads, no_spreads)
    mounts = [fields.mount(text, "--mount-add") for text in flags.mount_add or ()]
    _change(container.mounts, mounts, flags.mount_rm, key=lambda mount: mount.target)
    _change(container.groups, flags.group_add, flags.group_rm)
    _change_hosts(container, flags)
    _change(container.dns.nameservers, flags.dns_add, flags.dns_rm)
    _change(container.dns.search, flags.dns_search_add, flags.dns_search_rm)
    _change(container.dns.options, flags.dns_option_add, flags.dns_option_rm)
    ulimits = [fields.ulimit(text, "--ulimit-add") for text in flags.ulimit_add or ()]
    _change(container.ulimits, ulimits, flags.ulimit_rm, key=lambda limit: limit.name)


def _change(held: Any, added: Any, removed: Iterable[str] | None, key: Callable[[Any], str] = str) -> None:
    """Removes by key, replaces in place what has the key of something added, appends the rest."""
    if not added and not removed:
        return
    # The words of --…-rm are keys already, but may be written with spaces where the key has none.
    gone = {key(word) if key is _without_spaces else word for word in removed or ()}
    fresh = {key(item): item for item in added or ()}
    kept = [fresh.pop(key(item), item) for item in held if key(item) not in gone or key(item) in fresh]
    del held[:]
    held.extend([*kept, *fresh.values()])


def _change_hosts(container: types.ContainerSpec, flags: UpdateFlags) -> None:
    kept = list(container.hosts)
    for text in flags.host_rm or ():
        name, colon, address = text.partition(":")
        kept = [line for line in kept if not (line.split()[-1] == name and (not colon or line.split()[0] == address))]
    for text in flags.host_add or ():
        added = fields.host(text, "--host-add")
        if added not in kept:
            kept.append(added)
    container.hosts[:] = kept


def _change_networks(task: types.TaskSpec, flags: UpdateFlags, network_ids: Mapping[str, str]) -> None:
    gone = {network_ids.get(name, name) for name in flags.network_rm or ()}
    held = {attachment.network for attachment in task.networks}
    for name in flags.network_rm or ():
        if network_ids.get(name, name) not in held:
            raise FailedPrecondition(f"--network-rm {name}: the service does not use this network")
    fresh: dict[str, types.NetworkAttachmentConfig] = {}
    for text in flags.network_add or ():
        attachment = fields.network(text, "--network-add")
        attachment.network = network_ids.get(attachment.network, attachment.network)
        fresh[attachment.network] = attachment
    kept = [one for one in task.networks if one.network not in gone and one.network not in fresh]
    if gone or fresh:
        attachments = [*kept, *fresh.values()]
        del task.networks[:]
        task.networks.extend(attachments)


def _change_ports(spec: types.ServiceSpec, flags: UpdateFlags) -> None:
    kept = list(spec.ports)
    for text in flags.publish_rm or ():
        for pattern in ports.patterns(text):
            left = [port for port in kept if not pattern.matches(port)]
            if len(left) == len(kept):
                published = ", ".join(f"{port.published_port or '*'}:{port.target_port}" for port in kept)
                raise FailedPrecondition(
                    f"--publish-rm {text}: the service publishes no port of its containers like that"
                    + (f"; write one of {published}, or its target alone" if published else "")
                )
            kept = left
    for text in flags.publish_add or ():
        for port in ports.published(text, "--publish-add"):
            # A port has one way in by default: publishing it anew replaces the number that the swarm chose.
            kept = [one for one in kept if not _same_way(one, port)]
            kept.append(port)
    if flags.publish_rm or flags.publish_add:
        del spec.ports[:]
        spec.ports.extend(kept)


def _same_way(one: types.PortConfig, other: types.PortConfig) -> bool:
    tcp = types.PORT_PROTOCOL_TCP
    return (
        one.target_port == other.target_port
        and (one.protocol or tcp) == (other.protocol or tcp)
        and one.published_port in (0, other.published_port)
    )


def _change_capabilities(container: types.ContainerSpec, flags: UpdateFlags) -> None:
    """Adding what was dropped, or dropping what was added, first takes that back."""
    for text in flags.cap_add or ():
        _move(fields.capability(text, "--cap-add"), container.capabilities_drop, container.capabilities_add)
    for text in flags.cap_drop or ():
        _move(fields.capability(text, "--cap-drop"), container.capabilities_add, container.capabilities_drop)


def _move(word: str, out_of: Any, into: Any) -> None:
    if word in out_of:
        out_of.remove(word)
    elif word not in into:
        into.append(word)


def _set(message: Message, field: str, text: str | None, parse: Callable[[str, str], Any], where: str) -> None:
    if text is None:
        return
    value = parse(text, where)
    if isinstance(value, Message):
        getattr(message, field).CopyFrom(value)
    else:
        setattr(message, field, value)


def _one_of(known: Mapping[str, int]) -> Callable[[str, str], int]:
    def parse(text: str, where: str) -> int:
        if text not in known:
            raise InvalidArgument(f"{where} {text!r} is not known; write one of {', '.join(known)}")
        return known[text]

    return parse


def _ratio(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise InvalidArgument(f"{where} {text!r} is not a ratio; write a number from 0 to 1, as 0.25")
    return value


def _as_is(text: str, where: str) -> str:
    return text


def _without_spaces(text: str) -> str:
    return "".join(text.split())
