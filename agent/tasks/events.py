"""What a task's state machine hears and what it asks for: the vocabulary between `machine` and `worker`.

Events are facts that a shell observed; commands are work for it to do. Both are frozen and carry no callbacks, so that a
history of events replays a task's life exactly.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from swarm.v1 import types_pb2 as types


class Phase(enum.Enum):
    """Where the agent stands with a task. Finer than the observed state that managers see."""

    NEW = "new"  # known, nothing done, nothing on disk
    PREPARING = "preparing"
    READY = "ready"  # container created, not yet wanted
    STARTING = "starting"  # its start was asked for
    PROBING = "probing"  # runs, health not known yet
    RUNNING = "running"
    DRAINING = "draining"  # withdrawn from names and virtual IPs, open connections end
    STOPPING = "stopping"  # the stop signal was sent
    CLEANING = "cleaning"  # container and network are being removed
    DONE = "done"  # finished, its last status is kept
    FORGOTTEN = "forgotten"  # nothing of it is left


class Found(enum.Enum):
    """What a restarted agent found of a task's container."""

    NOTHING = "nothing"
    CREATED = "created"
    RUNNING = "running"
    ENDED = "ended"  # or the host restarted before it was started: the container itself does not tell


# ----------------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True)
class Assigned:
    """A task that this node did not know."""

    desired: types.TaskState.ValueType


@dataclass(frozen=True)
class Recovered:
    """A task that an earlier agent process wrote down, and what is left of its container."""

    state: types.TaskState.ValueType
    desired: types.TaskState.ValueType
    found: Found
    has_health: bool


@dataclass(frozen=True)
class DesiredChanged:
    desired: types.TaskState.ValueType


@dataclass(frozen=True)
class Unassigned:
    """The managers no longer know the task."""


@dataclass(frozen=True)
class Progress:
    """Something to show while the task is prepared: "preparing image", and what keeps it from getting on, if anything."""

    message: str
    trouble: str = ""


@dataclass(frozen=True)
class Prepared:
    image_digest: str
    has_health: bool


@dataclass(frozen=True)
class PrepareFailed:
    error: str


@dataclass(frozen=True)
class Started:
    pid: int


@dataclass(frozen=True)
class StartFailed:
    error: str


@dataclass(frozen=True)
class Exited:
    exit_code: int
    last_output: str = ""
    out_of_memory: bool = False
    reason: str = ""  # why it ended, where the exit code alone would mislead


@dataclass(frozen=True)
class BecameHealthy:
    pass


@dataclass(frozen=True)
class BecameUnhealthy:
    output: str


@dataclass(frozen=True)
class Drained:
    """Nobody is sent to the task any more and its connections have ended, or the time for that has passed."""


@dataclass(frozen=True)
class CleanedUp:
    pass


Event = (
    Assigned
    | Recovered
    | DesiredChanged
    | Unassigned
    | Progress
    | Prepared
    | PrepareFailed
    | Started
    | StartFailed
    | Exited
    | BecameHealthy
    | BecameUnhealthy
    | Drained
    | CleanedUp
)

# --------------------------------------------------------------------------------------------------------- commands


@dataclass(frozen=True)
class Report:
    """Write the status down, then tell the managers. `urgent`: somebody waits for it."""

    state: types.TaskState.ValueType
    message: str = ""
    error: str = ""
    health: types.HealthState.ValueType = types.HEALTH_STATE_UNSPECIFIED
    exit_code: int | None = None
    last_output: str = ""
    pid: int = 0
    image_digest: str = ""
    urgent: bool = False


@dataclass(frozen=True)
class Prepare:
    """Image, network, root filesystem, container → Prepared or PrepareFailed."""


@dataclass(frozen=True)
class Start:
    """→ Started or StartFailed."""


@dataclass(frozen=True)
class WatchExit:
    """→ Exited."""


@dataclass(frozen=True)
class WatchHealth:
    """→ BecameHealthy, BecameUnhealthy, as often as it changes. `known_healthy`: it was, before the agent restarted."""

    known_healthy: bool = False


@dataclass(frozen=True)
class Drain:
    """Its withdrawal reaches all nodes, its connections end → Drained."""


@dataclass(frozen=True)
class Stop:
    """Stop signal, grace period, SIGKILL; the end arrives as Exited."""


@dataclass(frozen=True)
class CleanUp:
    """End what is under way, remove the container and its network → CleanedUp."""


@dataclass(frozen=True)
class ReleaseRootfs:
    """Remove the root filesystem; nobody waits for it."""


@dataclass(frozen=True)
class Forget:
    """Remove what is written about the task."""


Command = Report | Prepare | Start | WatchExit | WatchHealth | Drain | Stop | CleanUp | ReleaseRootfs | Forget
