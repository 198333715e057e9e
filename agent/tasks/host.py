"""What a task's shell needs of its host, handed in: runtime, images, networks, files, clock, and limits shared by all tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

from swarm.clock import Clock
from swarm.v1 import types_pb2 as types

from agent.images.interface import ImageStore
from agent.network.interface import DataPlane
from agent.runtime.interface import Runtime
from agent.session.gates import Gate
from agent.tasks.records import TaskRecords


class NetworkGate(Protocol):
    async def holds(self, network_ids: frozenset[str], timeout: float) -> None:
        """Waits until the networks are programmed on this node."""
        ...


class StatusSink(Protocol):
    def status(self, task_id: str, status: types.TaskStatus, *, urgent: bool) -> None:
        """Takes a status that is already on disk."""
        ...

    def forgotten(self, task_id: str) -> None: ...


@dataclass(frozen=True)
class Directories:
    """Where things of containers lie on this host."""

    state: Path
    run: Path

    @property
    def volumes(self) -> Path:
        return self.state / "volumes"

    def container(self, task_id: str) -> Path:
        return self.state / "containers" / task_id

    def log(self, task_id: str) -> Path:
        return self.container(task_id) / "log"

    def etc(self, task_id: str) -> Path:
        """hosts, hostname and resolv.conf of a container: gone after a reboot, as the container is."""
        return self.run / "etc" / task_id


@dataclass(frozen=True)
class TaskHost:
    runtime: Runtime
    images: ImageStore
    data_plane: DataPlane
    networks: NetworkGate
    records: TaskRecords
    sink: StatusSink
    clock: Clock
    directories: Directories
    watermark: Gate
    starts: asyncio.Semaphore  # bounds what starts at once, not what is pulled
    node: Callable[[], types.NodeDescription]  # as the managers know it
    last_line: Callable[[Path], Awaitable[str]]  # the last line of a container's log
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    on_started: Callable[[float], None] = field(default=lambda _: None)  # seconds from assignment to running
    # One for each volume, as long as somebody holds it or waits for it: held while the volume is looked for and filled.
    volume_locks: WeakValueDictionary[Path, asyncio.Lock] = field(default_factory=WeakValueDictionary)
