"""From what people asked for to what a runtime needs: pure functions from specs and images to container settings.

Knows the defaults (PATH, grace period, health intervals) and how a service's words override the image's. It touches no file:
where volumes and the written `/etc` files lie is handed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from swarm.clock import seconds_of
from swarm.errors import InvalidArgument
from swarm.signals import parse_signal
from swarm.v1 import types_pb2 as types

from agent.images.interface import ImageConfig
from agent.runtime.interface import BindMount, ContainerSettings, TmpfsMount

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_GRACE_PERIOD = 10.0
ETC_FILES = ("hostname", "hosts", "resolv.conf")  # of each container's own, below /etc
HOSTNAME_LENGTH = 12  # of a task's id, as Docker takes of a container's


def hostname_of(task: types.Task, container: types.ContainerSpec) -> str:
    return container.hostname or task.id[:HOSTNAME_LENGTH]


def grace_period(container: types.ContainerSpec) -> float:
    """Seconds between the stop signal and SIGKILL."""
    return seconds_of(container.stop_grace_period) if container.HasField("stop_grace_period") else DEFAULT_GRACE_PERIOD


def stop_signal(container: types.ContainerSpec, image: ImageConfig | None) -> int:
    """The signal's number: the service's, else the image's, else SIGTERM. Raises InvalidArgument for an unknown name."""
    return parse_signal(container.stop_signal or (image.stop_signal if image else "") or "SIGTERM")


# ------------------------------------------------------------------------------------------------------------ health


@dataclass(frozen=True)
class HealthCheck:
    """A check that is run in the container; times in seconds."""

    arguments: tuple[str, ...]
    interval: float = 30.0
    timeout: float = 30.0
    start_period: float = 0.0
    start_interval: float = 5.0
    retries: int = 3


def health_check(container: types.ContainerSpec, image: ImageConfig) -> HealthCheck | None:
    """The service's check, else the image's; None where there is none or NONE was asked for."""
    spec = container.health
    test, settings = tuple(spec.test), _from_image(image.healthcheck or {})
    if not test:
        test = settings.test
    arguments = _check_arguments(test)
    if arguments is None:
        return None

    def chosen(name: str, default: float) -> float:
        own = seconds_of(getattr(spec, name)) if spec.HasField(name) else 0.0  # type: ignore[arg-type]
        return own or settings.seconds.get(name, 0.0) or default

    return HealthCheck(
        arguments,
        chosen("interval", 30.0),
        chosen("timeout", 30.0),
        chosen("start_period", 0.0),
        chosen("start_interval", 5.0),
        spec.retries or settings.retries or 3,
    )


def _check_arguments(test: tuple[str, ...]) -> tuple[str, ...] | None:
    if not test or test[0] == "NONE":
        return None
    if test[0] == "CMD" and len(test) > 1:
        return test[1:]
    if test[0] == "CMD-SHELL" and len(test) == 2:
        return ("/bin/sh", "-c", test[1])
    raise InvalidArgument(
        f"the health check {list(test)} is neither CMD with arguments, CMD-SHELL with a command nor NONE"
    )


@dataclass(frozen=True)
class _ImageHealth:
    test: tuple[str, ...]
    seconds: dict[str, float]
    retries: int


def _from_image(value: Mapping[str, object]) -> _ImageHealth:
    """An image's `Healthcheck`: durations are nanoseconds there."""
    test = value.get("Test")
    names = {
        "interval": "Interval",
        "timeout": "Timeout",
        "start_period": "StartPeriod",
        "start_interval": "StartInterval",
    }
    seconds = {name: _number(value.get(key)) / 1e9 for name, key in names.items()}
    words = tuple(str(word) for word in test) if isinstance(test, list | tuple) else ()
    return _ImageHealth(words, seconds, int(_number(value.get("Retries"))))


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


# --------------------------------------------------------------------------------------------------------- container


@dataclass(frozen=True)
class Places:
    """Where the files of one container lie on this host."""

    volumes: Path  # directory of the named volumes
    etc: Path  # holds hosts, hostname, resolv.conf of this container
    log: Path
    rootfs: Path
    network_namespace: Path


def arguments_of(container: types.ContainerSpec, image: ImageConfig) -> tuple[str, ...]:
    """A service's command replaces the image's entrypoint and command; its args replace the image's command."""
    if container.command:
        words = (*container.command, *container.args)
    else:
        words = (*image.entrypoint, *(container.args or image.command))
    if not words:
        raise InvalidArgument(f"the image {container.image} names no command; give one after the image")
    return tuple(words)


def environment_of(container: types.ContainerSpec, image: ImageConfig, hostname: str) -> tuple[str, ...]:
    """NAME=VALUE, later ones win: PATH, HOSTNAME, the image's, the service's."""
    merged: dict[str, str] = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if container.tty:
        merged["TERM"] = "xterm"
    for pair in (*image.environment, *container.env):
        name, _, value = pair.partition("=")
        merged[name] = value
    return tuple(f"{name}={value}" for name, value in merged.items())


def volume_names(task_id: str, container: types.ContainerSpec, image: ImageConfig) -> tuple[tuple[str, str, bool], ...]:
    """(volume, target, read only) of every named volume: the service's, then the image's own that nothing covers.

    An anonymous volume gets a name of the task's id and its place, so that it lives exactly as long as the task.
    """
    covered = {mount.target.rstrip("/") for mount in container.mounts}
    named = [
        (mount.source or anonymous_volume(task_id, position), mount.target, mount.read_only)
        for position, mount in enumerate(container.mounts)
        if mount.type == types.MOUNT_TYPE_VOLUME
    ]
    base = len(container.mounts)
    own = [
        (anonymous_volume(task_id, base + position), target, False)
        for position, target in enumerate(sorted(image.volumes))
        if target.rstrip("/") not in covered
    ]
    return tuple(named + own)


def anonymous_volume(task_id: str, position: int) -> str:
    return f"anonymous.{task_id}.{position}"


def mounts_of(
    task_id: str, container: types.ContainerSpec, image: ImageConfig, places: Places
) -> tuple[BindMount | TmpfsMount, ...]:
    """Everything that is mounted into the container, outer targets first so that inner ones land on top."""
    mounts: list[BindMount | TmpfsMount] = []
    for mount in container.mounts:
        if mount.type in (types.MOUNT_TYPE_BIND, types.MOUNT_TYPE_UNSPECIFIED):
            mounts.append(BindMount(Path(mount.source), mount.target, mount.read_only))
        elif mount.type == types.MOUNT_TYPE_TMPFS:
            mounts.append(TmpfsMount(mount.target, mount.tmpfs_size_bytes, mount.tmpfs_mode or 0o1777))
    for name, target, read_only in volume_names(task_id, container, image):
        mounts.append(BindMount(places.volumes / name, target, read_only))
    covered = {mount.target.rstrip("/") for mount in mounts}
    for name in ETC_FILES:
        if f"/etc/{name}" not in covered:
            mounts.append(BindMount(places.etc / name, f"/etc/{name}"))
    return tuple(sorted(mounts, key=lambda mount: mount.target.rstrip("/").count("/")))


def container_settings(
    task: types.Task, spec: types.ServiceSpec, image: ImageConfig, places: Places
) -> ContainerSettings:
    """The settings of a task's container. Raises InvalidArgument where the words make no container."""
    container = spec.task.container
    hostname = hostname_of(task, container)
    return ContainerSettings(
        id=task.id,
        rootfs=places.rootfs,
        arguments=arguments_of(container, image),
        environment=environment_of(container, image, hostname),
        directory=container.directory or image.directory or "/",
        user=container.user or image.user,
        hostname=hostname,
        network_namespace=places.network_namespace,
        log_path=places.log,
        groups=tuple(container.groups),
        mounts=mounts_of(task.id, container, image, places),
        nano_cpus=spec.task.limits.nano_cpus,
        memory_bytes=spec.task.limits.memory_bytes,
        pids=spec.task.limits.pids,
        cpu_shares_nano=spec.task.reservations.nano_cpus,
        read_only=container.read_only,
        terminal=container.tty,
        init=container.init,
        capabilities_add=tuple(container.capabilities_add),
        capabilities_drop=tuple(container.capabilities_drop),
        sysctls=dict(container.sysctls),
        ulimits=tuple((limit.name, limit.soft, limit.hard) for limit in container.ulimits),
        labels=_labels(task, container.labels.items()),
    )


def _labels(task: types.Task, own: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {
        **dict(own),
        "swarm.task": task.id,
        "swarm.service": task.service_name,
        "swarm.slot": str(task.slot),
        "swarm.node": task.node_id,
    }
