"""A host of memory: a runtime, an image store and a data plane that keep their state in dictionaries.

What they hold survives the agent objects of a test, as the real ones' state survives the agent process.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from swarm.clock import ManualClock
from swarm.errors import NotFound, SwarmError
from swarm.v1 import dispatcher_pb2 as dispatcher
from swarm.v1 import types_pb2 as types

from agent.images.interface import Image, ImageConfig, ImageDetails, Pruned, StoredImage
from agent.network.interface import ContainerNetwork, NetworkView
from agent.runtime.interface import (
    ContainerPhase,
    ContainerSettings,
    ContainerState,
    ContainerStats,
    ExecResult,
)
from agent.session.gates import Gate
from agent.session.mirror import Mirror
from agent.tasks.host import Directories, TaskHost
from agent.tasks.records import TaskRecords
from agent.tasks.supervisor import TaskSupervisor

IMAGE = Image("sha256:id", "sha256:digest", "docker.io/library/web:latest", ImageConfig(command=("serve",)))


@dataclass
class FakeContainer:
    settings: ContainerSettings
    phase: ContainerPhase = ContainerPhase.CREATED
    exit_code: int | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    signals: list[int] = field(default_factory=list)


class FakeRuntime:
    """`obeys`: containers end on the stop signal; else only on SIGKILL."""

    def __init__(self) -> None:
        self.held: dict[str, FakeContainer] = {}
        self.obeys = True
        self.create_error: SwarmError | None = None
        self.start_error: SwarmError | None = None
        self.delete_errors: list[SwarmError] = []
        self.probe_results: list[int] = []
        self.log: list[str] = []

    async def create(self, settings: ContainerSettings) -> None:
        await asyncio.sleep(0)
        if self.create_error is not None:
            raise self.create_error
        assert settings.id not in self.held, "created twice"
        self.held[settings.id] = FakeContainer(settings)
        self.log.append(f"create {settings.id}")

    async def start(self, container_id: str) -> ContainerState:
        await asyncio.sleep(0)
        if self.start_error is not None:
            raise self.start_error
        container = self.held[container_id]
        if container.phase is ContainerPhase.CREATED:
            container.phase = ContainerPhase.RUNNING
        self.log.append(f"start {container_id}")
        return self._state(container_id)

    async def signal(self, container_id: str, signal_number: int) -> None:
        container = self.held.get(container_id)
        if container is None:
            raise NotFound(container_id)
        container.signals.append(signal_number)
        self.log.append(f"signal {container_id} {signal_number}")
        if self.obeys or signal_number == 9:
            self.end(container_id, 128 + signal_number)

    def end(self, container_id: str, exit_code: int) -> None:
        container = self.held[container_id]
        container.phase, container.exit_code = ContainerPhase.EXITED, exit_code
        container.ended.set()

    async def wait(self, container_id: str) -> ContainerState:
        if container_id not in self.held:
            raise NotFound(f"there is no container {container_id}")
        await self.held[container_id].ended.wait()
        return self._state(container_id)

    def _state(self, container_id: str) -> ContainerState:
        container = self.held[container_id]
        return ContainerState(container_id, container.phase, 4711, container.exit_code)

    async def state(self, container_id: str) -> ContainerState | None:
        return self._state(container_id) if container_id in self.held else None

    async def delete(self, container_id: str) -> None:
        await asyncio.sleep(0)
        if self.delete_errors:
            raise self.delete_errors.pop()
        self.held.pop(container_id, None)
        self.log.append(f"delete {container_id}")

    async def exec(self, container_id: str, arguments: tuple[str, ...], *, timeout: float) -> ExecResult:
        return ExecResult(self.probe_results.pop(0) if self.probe_results else 0, b"probed")

    async def stats(self, container_id: str) -> ContainerStats:
        return ContainerStats(0.0, 0, 0)

    async def clear(self) -> None:
        self.log.append("clear")

    async def containers(self) -> list[ContainerState]:
        return [self._state(container_id) for container_id in self.held]


class FakeImages:
    def __init__(self) -> None:
        self.image = IMAGE
        self.error: SwarmError | None = None
        self.troubles: list[str] = []  # what `ensure` tells
        self.pulling: asyncio.Event | None = None  # what `ensure` waits for
        self.rootfs: set[str] = set()
        self.held = 0
        self.calls: list[str] = []

    async def ensure(
        self, reference: str, digest: str = "", auth: str = "", tell: Callable[[str], None] = lambda _: None
    ) -> Image:
        self.calls.append(f"ensure {reference} {digest}".strip())
        for trouble in self.troubles:
            tell(trouble)
        if self.pulling is not None:
            await self.pulling.wait()
        if self.error is not None:
            raise self.error
        return self.image

    @asynccontextmanager
    async def holding(self) -> AsyncIterator[None]:
        self.held += 1
        try:
            yield
        finally:
            self.held -= 1

    async def mount(self, container_id: str, image: Image) -> Path:
        assert self.held, "an image that nobody holds may be pruned before a container stands on it"
        self.rootfs.add(container_id)
        return Path("/nonexistent") / container_id

    async def unmount(self, container_id: str) -> None:
        self.rootfs.discard(container_id)

    async def mounted(self) -> set[str]:
        return set(self.rootfs)

    async def resolve(self, reference: str, auth: str = "") -> tuple[str, str]:
        return reference, self.image.digest

    async def build(
        self, context: Path, *, tags: list[str], file: str, build_args: dict[str, str], target: str, no_cache: bool
    ) -> AsyncIterator[str]:
        self.calls.append(f"build {sorted(path.name for path in context.iterdir())} {tags}")
        yield "STEP 1"

    async def pull(self, reference: str, auth: str = "") -> AsyncIterator[str]:
        yield f"pulling {reference}"

    async def push(self, reference: str, auth: str = "") -> AsyncIterator[str]:
        self.calls.append(f"push {reference}")
        yield f"pushing {reference}"
        yield "sha256:in-the-registry"

    async def images(self) -> list[StoredImage]:
        return []

    async def remove(self, reference: str, *, force: bool) -> str:
        return self.image.id

    async def prune(self, *, every: bool) -> Pruned:
        self.calls.append(f"prune every={every}")
        return Pruned((StoredImage(self.image.id, ("web",), self.image.digest, 5, 1.0),), 7)

    async def import_archive(self, archive: Path, reference: str, changes: list[str]) -> str:
        self.calls.append(f"import {reference} {archive.read_bytes()!r} {changes}")
        return self.image.id

    async def inspect(self, reference: str) -> ImageDetails:
        stored = StoredImage(self.image.id, (reference,), self.image.digest, 5, 1.0)
        return ImageDetails(stored, "amd64", "linux", ("sha256:l",), {"Cmd": ["sh"]})

    async def tag(self, source: str, target: str) -> tuple[str, str]:
        self.calls.append(f"tag {source} {target}")
        return self.image.id, f"docker.io/library/{target}:latest"

    async def load(self, archive: Path) -> list[str]:
        return [f"loaded:{archive.stat().st_size}"]

    async def save(self, references: list[str], archive: Path) -> None:
        archive.write_bytes(b"x" * 3_000_000)


class FakeDataPlane:
    def __init__(self) -> None:
        self.attaching: asyncio.Event | None = None  # what an attachment waits for
        self.namespaces: set[str] = set()
        self.views: list[NetworkView] = []
        self.errors: list[SwarmError] = []
        self.open_connections: list[int] = []
        self.removed = False

    async def start(self) -> None:
        pass

    async def apply(self, view: NetworkView) -> None:
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop()
        self.views.append(view)

    async def reserve(self, task_id: str) -> Path:
        await asyncio.sleep(0)
        self.namespaces.add(task_id)
        return Path("/nonexistent/netns") / task_id

    async def attach(
        self, task_id: str, attachments: tuple[types.NetworkAttachment, ...], **_: object
    ) -> ContainerNetwork:
        await (self.attaching.wait() if self.attaching is not None else asyncio.sleep(0))
        self.namespaces.add(task_id)
        return ContainerNetwork(
            Path("/nonexistent/netns") / task_id, "nameserver 127.0.0.53\n", "127.0.0.1 localhost\n", ()
        )

    async def detach(self, task_id: str) -> None:
        await asyncio.sleep(0)
        self.namespaces.discard(task_id)

    async def attached(self) -> set[str]:
        return set(self.namespaces)

    async def connections(self, task_id: str) -> int:
        return self.open_connections.pop(0) if self.open_connections else 0

    async def stop(self, *, remove: bool = False) -> None:
        self.removed |= remove


class Sink:
    """Remembers every status that was reported."""

    def __init__(self) -> None:
        self.reported: list[tuple[str, types.TaskStatus]] = []
        self.gone: set[str] = set()
        self.changed = asyncio.Event()

    def status(self, task_id: str, status: types.TaskStatus, *, urgent: bool) -> None:
        self.reported.append((task_id, status))
        self.changed.set()

    def forgotten(self, task_id: str) -> None:
        self.gone.add(task_id)
        self.changed.set()

    def states(self, task_id: str) -> list[str]:
        return [
            types.TaskState.Name(status.state).removeprefix("TASK_STATE_")
            for each, status in self.reported
            if each == task_id
        ]

    def last(self, task_id: str) -> types.TaskStatus:
        return next(status for each, status in reversed(self.reported) if each == task_id)

    async def until(self, task_id: str, state: types.TaskState.ValueType) -> types.TaskStatus:
        async with asyncio.timeout(10):
            while not any(each == task_id and status.state == state for each, status in self.reported):
                self.changed.clear()
                await self.changed.wait()
        return self.last(task_id)

    async def until_gone(self, task_id: str) -> None:
        async with asyncio.timeout(10):
            while task_id not in self.gone:
                self.changed.clear()
                await self.changed.wait()


class AllNetworks:
    async def holds(self, network_ids: frozenset[str], timeout: float) -> None:
        pass


class FakeHost:
    """The host outlives the agents that a test starts on it."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.runtime = FakeRuntime()
        self.images = FakeImages()
        self.data_plane = FakeDataPlane()
        self.clock = ManualClock()
        self.sink = Sink()
        self.watermark = Gate()
        self.slept: list[float] = []
        self.starts = 4  # at once

    async def sleep(self, seconds: float) -> None:
        """Time passes at once."""
        self.slept.append(seconds)
        self.clock.advance(seconds)
        await asyncio.sleep(0)

    async def last_line(self, path: Path) -> str:
        return "cannot bind"

    def supervisor(self) -> TaskSupervisor:
        """A new agent process on this host."""
        return TaskSupervisor(
            TaskHost(
                runtime=self.runtime,
                images=self.images,
                data_plane=self.data_plane,
                networks=AllNetworks(),
                records=TaskRecords(self.state / "tasks"),
                sink=self.sink,
                clock=self.clock,
                directories=Directories(self.state, self.state / "run"),
                watermark=self.watermark,
                starts=asyncio.Semaphore(self.starts),
                node=lambda: types.NodeDescription(hostname="host", os="linux", architecture="amd64"),
                last_line=self.last_line,
                sleep=self.sleep,
            ),
            random.Random(7),
        )


def make_task(
    task_id: str = "t1", desired: types.TaskState.ValueType = types.TASK_STATE_RUNNING, *, attached: bool = False
) -> types.Task:
    task = types.Task(
        id=task_id,
        service_id="s1",
        revision_id="r1",
        slot=1,
        node_id="n1",
        desired_state=desired,
        service_name="web",
        status=types.TaskStatus(state=types.TASK_STATE_ASSIGNED),
    )
    if attached:
        task.attachments.add(network_id="net", address="10.0.0.5/20", mac="02:42:0a:00:00:05")
    return task


def make_revision(container: types.ContainerSpec | None = None) -> types.ServiceRevision:
    spec = types.ServiceSpec(name="web", task=types.TaskSpec(container=container or types.ContainerSpec(image="web")))
    return types.ServiceRevision(id="r1", service_id="s1", number=1, spec=spec)


def assignments(
    index: int, *objects: object, epoch: int = 1, complete: bool = False, more: bool = False
) -> dispatcher.Assignments:
    message = dispatcher.Assignments(epoch=epoch, index=index, complete=complete, more=more)
    names: dict[type, str] = {
        types.Task: "task",
        types.ServiceRevision: "revision",
        types.Network: "network",
        dispatcher.Endpoint: "endpoint",
        dispatcher.ServiceEndpoint: "service",
        dispatcher.NodePeer: "peer",
    }
    for each in objects:
        if isinstance(each, dispatcher.AssignedKey):
            message.removals.append(each)
        else:
            message.changes.append(dispatcher.AssignedObject(**{names[type(each)]: each}))
    return message


def mirror_of(*objects: object, index: int = 1) -> Mirror:
    mirror = Mirror()
    mirror.receive(assignments(index, *objects, complete=True))
    return mirror
