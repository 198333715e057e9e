"""What the agent writes down about each task: STATE/tasks/ID, one line of JSON.

A record holds what cannot be found out again after a restart of the agent: the observed status (it never goes back), and
what the image had to say about the container's end and health. That the task exists at all, and what it is made of, is in
the mirror of the assignments.

Steps on the way are written in place, in one write and without a sync: that survives the end of our process, and after the
end of the host a record that cannot be read is made up from what the managers remember. The final state is synced and
renamed into place: it may be the only witness that a job has finished.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
from dataclasses import asdict, dataclass
from pathlib import Path

from swarm.clock import seconds_of, timestamp
from swarm.errors import ResourceExhausted
from swarm.identity import write_atomically
from swarm.v1 import types_pb2 as types

from agent.tasks.events import Report
from agent.tasks.machine import is_final
from agent.tasks.settings import HealthCheck

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
_MOMENTARY = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@dataclass(frozen=True)
class TaskRecord:
    """One task as it was last reported. The status message is not modified after it is in a record."""

    task_id: str
    status: types.TaskStatus
    stop_signal: int = signal.SIGTERM
    health: HealthCheck | None = None


def next_status(before: types.TaskStatus, report: Report, now: float, container_id: str) -> types.TaskStatus:
    """The status after `report`; what the report does not mention stays as it was."""
    status = types.TaskStatus()
    status.CopyFrom(before)
    status.state = report.state
    status.at.CopyFrom(timestamp(now))
    status.message, status.error = report.message, report.error
    if report.health:
        status.health = report.health
    if report.state >= types.TASK_STATE_STARTING or report.image_digest:
        status.container.container_id = container_id
    if report.pid:
        status.container.pid = report.pid
    if report.image_digest:
        status.container.image_digest = report.image_digest
    if report.exit_code is not None:
        status.container.exit_code = report.exit_code
    if report.last_output:
        status.container.last_output = report.last_output
    if is_final(report.state):
        status.container.pid = 0
    if report.state == types.TASK_STATE_RUNNING and not before.HasField("running_since"):
        status.running_since.CopyFrom(status.at)
    return status


class TaskRecords:
    """The directory of records."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def write(self, record: TaskRecord) -> None:
        """Raises ResourceExhausted where the disk refuses."""
        path = self._directory / record.task_id
        data = json.dumps(_encode(record), separators=(",", ":")).encode() + b"\n"
        try:
            if is_final(record.status.state):
                write_atomically(path, data)
            else:
                _overwrite(path, data)
        except OSError as error:
            raise ResourceExhausted(
                f"the state of task {record.task_id} cannot be written to {path}: {error}"
            ) from error

    def remove(self, task_id: str) -> None:
        (self._directory / task_id).unlink(missing_ok=True)

    def load(self) -> dict[str, TaskRecord]:
        """All records; one that is damaged is logged and left out, its task is then treated as new. Raises OSError where the
        host lacks descriptors or memory for a moment: a new task would begin by removing the container that runs."""
        found: dict[str, TaskRecord] = {}
        for path in sorted(self._directory.iterdir()):
            if path.name.startswith("."):
                path.unlink(missing_ok=True)
                continue
            try:
                record = _decode(json.loads(path.read_bytes().partition(b"\n")[0]))
            except (OSError, ValueError, KeyError, TypeError) as error:
                if isinstance(error, OSError) and error.errno in _MOMENTARY:
                    raise
                log.error("the record %s cannot be read and is ignored: %s", path, error)
                continue
            found[record.task_id] = record
        return found


def _overwrite(path: Path, data: bytes) -> None:
    """What a longer record left behind the first line means nothing, so nobody sees a mixture of two records."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(descriptor, data, 0)
        os.ftruncate(descriptor, len(data))
    finally:
        os.close(descriptor)


def _encode(record: TaskRecord) -> dict[str, object]:
    status = record.status
    return {
        "schema": SCHEMA_VERSION,
        "task": record.task_id,
        "state": types.TaskState.Name(status.state).removeprefix("TASK_STATE_").lower(),
        "at": seconds_of(status.at),
        "message": status.message,
        "error": status.error,
        "health": int(status.health),
        "stop_signal": int(record.stop_signal),
        "check": asdict(record.health) if record.health else None,
        "running_since": seconds_of(status.running_since) if status.HasField("running_since") else None,
        "container": {
            "id": status.container.container_id,
            "pid": status.container.pid,
            "exit_code": status.container.exit_code,
            "last_output": status.container.last_output,
            "image_digest": status.container.image_digest,
        },
    }


def _decode(value: dict[str, object]) -> TaskRecord:
    if value["schema"] != SCHEMA_VERSION:
        raise ValueError(f"schema version {value['schema']} is not {SCHEMA_VERSION}")
    container = value["container"]
    if not isinstance(container, dict):
        raise ValueError("container is not an object")
    status = types.TaskStatus(
        state=types.TaskState.Value(f"TASK_STATE_{str(value['state']).upper()}"),
        at=timestamp(_seconds(value["at"])),
        message=str(value["message"]),
        error=str(value["error"]),
        health=types.HealthState.ValueType(int(_seconds(value["health"]))),
        container=types.ContainerStatus(
            container_id=container["id"],
            pid=container["pid"],
            exit_code=container["exit_code"],
            last_output=container["last_output"],
            image_digest=container["image_digest"],
        ),
    )
    if value["running_since"] is not None:
        status.running_since.CopyFrom(timestamp(_seconds(value["running_since"])))
    check = value["check"]
    health = HealthCheck(**{**check, "arguments": tuple(check["arguments"])}) if isinstance(check, dict) else None
    return TaskRecord(str(value["task"]), status, int(_seconds(value["stop_signal"])), health)


def _seconds(value: object) -> float:
    if not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number")
    return float(value)
