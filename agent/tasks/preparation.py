"""Everything between an accepted task and a container that can start: image, network, root filesystem, mounts, create.

What does not depend on one another runs side by side. A failure leaves pieces behind on purpose: the task's clean-up
removes them, as it does after a crash, so there is one way of cleaning and not two.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from swarm.errors import InvalidArgument, ResourceExhausted, first_error
from swarm.process import run
from swarm.templates import expand_container, has_placeholders, values_of
from swarm.v1 import types_pb2 as types

from agent.disk import remove_tree
from agent.images.interface import Image
from agent.network.interface import ContainerNetwork
from agent.tasks import settings
from agent.tasks.host import TaskHost

NETWORK_TIMEOUT = 20.0  # seconds for the node's networks to be programmed
COPY_TIMEOUT = 600.0
LOOK_TIMEOUT = 10.0  # seconds to find out whether there is what is to be mounted


@dataclass(frozen=True)
class PreparedContainer:
    image: Image
    stop_signal: int
    health: settings.HealthCheck | None


async def prepare(
    task: types.Task, spec: types.ServiceSpec, host: TaskHost, progress: Callable[[str, str], None]
) -> PreparedContainer:
    """Creates the task's container; `progress` hears what is done and what trouble there is ("" for none). Raises SwarmError
    with the sentence that `service ps` shows.

    The container is made in an empty network namespace while that gets its interfaces: making it takes longest of all, and
    its first process waits until it is told to start.
    """
    spec = _filled_in(task, spec, host)
    container = spec.task.container
    if await host.runtime.state(task.id) is not None:
        await host.runtime.delete(task.id)  # an earlier agent process had not finished it
    namespace = await host.data_plane.reserve(task.id)
    try:
        async with asyncio.TaskGroup() as group:
            network_job = group.create_task(_attach(task, container, host))
            container_job = group.create_task(_create(task, spec, host, namespace, progress))
    except BaseExceptionGroup as errors:
        raise first_error(errors) from errors
    hostname = settings.hostname_of(task, container)
    await asyncio.to_thread(_write_etc, host.directories.etc(task.id), hostname, network_job.result())
    return container_job.result()


async def _create(
    task: types.Task,
    spec: types.ServiceSpec,
    host: TaskHost,
    namespace: Path,
    progress: Callable[[str, str], None],
) -> PreparedContainer:
    container = spec.task.container
    image, rootfs = await _rootfs(task, container, host, progress)
    prepared = PreparedContainer(
        image, settings.stop_signal(container, image.config), settings.health_check(container, image.config)
    )
    places = settings.Places(
        host.directories.volumes,
        host.directories.etc(task.id),
        host.directories.log(task.id),
        rootfs,
        namespace,
    )
    wanted = settings.container_settings(task, spec, image.config, places)
    await _provide_mounts(task, container, image, places, host)  # may copy for minutes: others can start meanwhile
    async with host.starts:
        await asyncio.to_thread(_reserve_etc, places.etc)
        await host.runtime.create(wanted)
    return prepared


def _filled_in(task: types.Task, spec: types.ServiceSpec, host: TaskHost) -> types.ServiceSpec:
    """The spec with what its placeholders stand for in this task."""
    if not has_placeholders(spec.task.container):
        return spec
    filled = types.ServiceSpec()
    filled.CopyFrom(spec)
    filled.task.container.CopyFrom(expand_container(spec.task.container, values_of(task, spec, host.node())))
    return filled


async def _attach(task: types.Task, container: types.ContainerSpec, host: TaskHost) -> ContainerNetwork:
    await host.networks.holds(frozenset(each.network_id for each in task.attachments), NETWORK_TIMEOUT)
    return await host.data_plane.attach(
        task.id,
        tuple(task.attachments),
        hostname=settings.hostname_of(task, container),
        extra_hosts=tuple(container.hosts),
        dns=container.dns if container.HasField("dns") else None,
        sysctls=dict(container.sysctls) or None,
    )


async def _rootfs(
    task: types.Task, container: types.ContainerSpec, host: TaskHost, progress: Callable[[str, str], None]
) -> tuple[Image, Path]:
    message = f"preparing image {container.image}"
    progress(message, "")
    async with host.images.holding():
        image = await host.images.ensure(
            container.image, container.image_digest, tell=lambda trouble: progress(message, trouble)
        )
        async with host.starts:
            return image, await host.images.mount(task.id, image)


def _reserve_etc(directory: Path) -> None:
    """The files that are mounted into the container, to be filled in place."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in settings.ETC_FILES:
        path = directory / name
        path.touch()
        path.chmod(0o644)


def _write_etc(directory: Path, hostname: str, network: ContainerNetwork) -> None:
    """In place: the container may have them mounted already."""
    contents = (f"{hostname}\n", network.hosts, network.resolv_conf)
    for name, text in zip(settings.ETC_FILES, contents, strict=True):
        (directory / name).write_text(text)


async def _provide_mounts(
    task: types.Task, container: types.ContainerSpec, image: Image, places: settings.Places, host: TaskHost
) -> None:
    """Makes named volumes and refuses bind mounts of what does not exist."""
    for mount in container.mounts:
        if mount.type in (types.MOUNT_TYPE_BIND, types.MOUNT_TYPE_UNSPECIFIED):
            await _check_bind(mount.source)
    for name, target, _ in settings.volume_names(task.id, container, image.config):
        volume = places.volumes / name
        lock = host.volume_locks.setdefault(volume, asyncio.Lock())
        async with lock:  # replicas may share it: one fills it, the others find it
            await _provide_volume(volume, places.rootfs, target)


async def _check_bind(source: str) -> None:
    """Raises InvalidArgument where there is nothing to mount. Whoever looks below a mount whose file server is gone is held for
    ever: that is a thread of its own, which nobody waits for."""
    found: Future[bool] = Future()
    found.set_running_or_notify_cancel()

    def look() -> None:
        try:
            found.set_result(Path(source).exists())
        except OSError as error:
            found.set_exception(error)

    threading.Thread(target=look, daemon=True).start()
    try:
        async with asyncio.timeout(LOOK_TIMEOUT):
            there = await asyncio.wrap_future(found)
    except TimeoutError as error:
        raise InvalidArgument(
            f"the bind mount {source} could not be looked at within {LOOK_TIMEOUT:g} s on this node; is its file server gone?"
        ) from error
    except OSError as error:
        raise InvalidArgument(f"the bind mount {source} cannot be used on this node: {error.strerror}") from error
    if not there:
        raise InvalidArgument(
            f"the bind mount {source} does not exist on this node; create it there or constrain the placement"
        )


async def _provide_volume(volume: Path, rootfs: Path, target: str) -> None:
    """A new volume starts with what the image holds at its place, with that directory's owner and mode. The caller holds
    the volume's lock: a tree that two write to would be no copy of either image."""
    if volume.exists():
        return
    filling = volume.with_name(f".{volume.name}.new")
    try:
        if filling.exists():  # a copy that was interrupted; a program is ended with us, a thread would go on removing
            await run(["rm", "-rf", filling], timeout=COPY_TIMEOUT)
        filling.mkdir(parents=True, mode=0o755)
        source = _within(rootfs, target)
        if source is not None:
            await run(["cp", "-a", f"{source}/.", filling], timeout=COPY_TIMEOUT)
            shutil.copystat(source, filling)
        filling.rename(volume)
    except OSError as error:
        raise ResourceExhausted(f"the volume {volume.name} cannot be made: {error}") from error


def _within(rootfs: Path, target: str) -> Path | None:
    """The directory of the image at `target`; None where there is none, or where a link could lead outside."""
    path = rootfs
    for part in Path(target).parts:
        if part == "/":
            continue
        path = path / part
        if part == ".." or path.is_symlink() or not path.is_dir():
            return None
    return path


async def release_files(task_id: str, host: TaskHost) -> None:
    """Removes what `prepare` wrote besides container, network and root filesystem. Raises SwarmError, OSError."""
    await remove_tree(host.directories.etc(task_id))
    if host.directories.volumes.is_dir():
        for volume in host.directories.volumes.glob(f"anonymous.{task_id}.*"):
            await remove_tree(volume)
