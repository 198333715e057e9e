"""What the agent asks of a container runtime. Small on purpose: images, networks and the task's life lie elsewhere."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class BindMount:
    source: Path
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class TmpfsMount:
    target: str
    size_bytes: int = 0
    mode: int = 0o1777


@dataclass(frozen=True)
class ContainerSettings:
    """Everything that the runtime needs, already resolved: no references to images, networks or secrets."""

    id: str  # the task's id
    rootfs: Path  # mounted, writable
    arguments: tuple[str, ...]  # entrypoint and command
    environment: tuple[str, ...]
    directory: str
    user: str  # "", "name", "uid", "uid:gid", "name:group"
    hostname: str
    network_namespace: Path
    log_path: Path  # where the monitor writes the container's output
    groups: tuple[str, ...] = ()
    mounts: tuple[BindMount | TmpfsMount, ...] = ()
    nano_cpus: int = 0  # limit; 0: none
    memory_bytes: int = 0  # limit; 0: none
    pids: int = 0  # limit; 0: none
    cpu_shares_nano: int = 0  # reservation, as a weight
    read_only: bool = False
    terminal: bool = False
    init: bool = False
    capabilities_add: tuple[str, ...] = ()
    capabilities_drop: tuple[str, ...] = ()
    sysctls: dict[str, str] = field(default_factory=dict)
    ulimits: tuple[tuple[str, int, int], ...] = ()
    labels: dict[str, str] = field(default_factory=dict)


class ContainerPhase(enum.Enum):
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"


@dataclass(frozen=True)
class ContainerState:
    id: str
    phase: ContainerPhase
    pid: int = 0
    exit_code: int | None = None  # 128 + signal where a signal ended it
    out_of_memory: bool = False
    reason: str = ""  # why it ended, where the exit code alone would mislead


@dataclass(frozen=True)
class ExecResult:
    exit_code: int
    output: bytes  # both streams, at most the last 64 KiB


@dataclass(frozen=True)
class ContainerStats:
    cpu_seconds: float
    memory_bytes: int
    pids: int


class Runtime(Protocol):
    """All methods take the container's id; all raise SwarmError with a sentence that `service ps` can show."""

    async def create(self, settings: ContainerSettings) -> None:
        """Sets the container up, its first process not yet executed. On failure nothing stays behind."""
        ...

    async def start(self, container_id: str) -> ContainerState: ...

    async def signal(self, container_id: str, signal_number: int) -> None:
        """To the first process; SIGKILL to all of them. Not an error where it has ended meanwhile."""
        ...

    async def wait(self, container_id: str) -> ContainerState:
        """Waits for the end, also of a container that an earlier agent process started."""
        ...

    async def state(self, container_id: str) -> ContainerState | None:
        """None where there is no such container."""
        ...

    async def delete(self, container_id: str) -> None:
        """Kills what still runs and removes everything but the log. Not an error where it is gone already."""
        ...

    async def exec(self, container_id: str, arguments: tuple[str, ...], *, timeout: float) -> ExecResult: ...

    async def stats(self, container_id: str) -> ContainerStats: ...

    async def containers(self) -> list[ContainerState]: ...

    async def clear(self) -> None:
        """Removes what all containers of the node share, when the node leaves; there are none any more."""
        ...
