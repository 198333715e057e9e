"""Tasks as `service ps` and `node ps` show them: those that are wanted in each slot, and below them, indented, what they
replaced."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swarm.v1 import control_pb2 as control
from swarm.v1 import types_pb2 as types

from orchestrator.cli import output, words
from orchestrator.cli.invocation import PAGE_SIZE, pages
from orchestrator.cli.messages import as_json
from orchestrator.cli.output import Cell, ListOptions
from orchestrator.cli.parsing import ports
from orchestrator.cli.task_words import problem_of

if TYPE_CHECKING:
    from swarm.v1.control_pb2_grpc import ControlStub

    from orchestrator.cli.caller import Caller

COLUMNS = ("ID", "NAME", "IMAGE", "NODE", "DESIRED STATE", "CURRENT STATE", "ERROR", "PORTS")
MAX_ERROR = 80  # characters of an error in a table; --no-trunc shows it whole
_BAD = (types.TASK_STATE_FAILED, types.TASK_STATE_REJECTED, types.TASK_STATE_ORPHANED)


@dataclass(frozen=True)
class Line:
    """A task, the names that go with it, and whether it is history."""

    task: types.Task
    names: control.TaskNames
    history: bool


def print_tasks(managers: Caller[ControlStub], wanted: list[control.Filter], options: ListOptions) -> None:
    """Fetches and prints the tasks that match."""
    found: list[tuple[types.Task, control.TaskNames]] = []
    for page in pages(
        lambda token: managers.call(
            lambda stub: stub.ListTasks,
            control.ListTasksRequest(filters=wanted, page_size=PAGE_SIZE, page_token=token),
        )
    ):
        found.extend(zip(page.tasks, page.names, strict=True))
    now = time.time()
    output.print_list(
        options,
        COLUMNS,
        in_order(found),
        row=lambda line: task_row(line, options.no_trunc, now),
        identity=lambda line: words.short_id(line.task.id, options.no_trunc),
        document=_document,
    )


def in_order(found: Iterable[tuple[types.Task, control.TaskNames]]) -> list[Line]:
    """By service and slot (or node): first who is wanted to run, then who is to take over, then the others, each kind with the
    newest first. The others are history, but for the one that is the first of its slot."""
    ordered = sorted(found, key=lambda pair: _created(pair[0]), reverse=True)
    ordered.sort(key=lambda pair: (_place(pair[0]), _standing(pair[0])))
    lines = []
    before: tuple[Any, ...] | None = None
    for task, names in ordered:
        place = _place(task)
        lines.append(Line(task, names, history=place == before and _standing(task) == _GONE))
        before = place
    return lines


_SERVING, _NEXT, _GONE = range(3)


def _standing(task: types.Task) -> int:
    """A newer task is not always the one that serves: an update that is prepared, or was taken back, left one behind."""
    if task.desired_state > types.TASK_STATE_RUNNING:
        return _GONE
    return _SERVING if task.desired_state == types.TASK_STATE_RUNNING else _NEXT


def _place(task: types.Task) -> tuple[str, int, str]:
    return task.service_name or task.service_id, task.slot, "" if task.slot else task.node_id


def _created(task: types.Task) -> tuple[int, int]:
    return task.meta.created_index, task.meta.created_at.ToNanoseconds()


def task_row(line: Line, whole: bool, now: float) -> list[str | Cell]:
    """A line of the table."""
    task, names = line.task, line.names
    name = names.task or f"{task.service_name}.{task.slot or task.node_id}"
    state = words.enum_word(types.TaskState.DESCRIPTOR, task.status.state)
    age = f" {words.ago(output.since(task.status.at, now))}" if task.status.HasField("at") else ""
    return [
        words.short_id(task.id, whole),
        Cell(f" \\_ {name}" if line.history else name, "dim" if line.history else "bold"),
        names.image,
        names.node or words.short_id(task.node_id, whole),
        words.enum_word(types.TaskState.DESCRIPTOR, task.desired_state).capitalize(),
        Cell(f"{state.capitalize()}{age}{_health(task)}", _style(line)),
        Cell(words.shorten(problem_of(task) or names.node_problem, MAX_ERROR, whole), "red"),
        ports.describe(task.host_ports if _has_ports(task) else ()),
    ]


def _has_ports(task: types.Task) -> bool:
    """Whether its host keeps the ports for it: no host does before it is placed, nor after it ended."""
    return types.TASK_STATE_ASSIGNED <= task.status.state <= types.TASK_STATE_RUNNING


def _health(task: types.Task) -> str:
    if task.status.state != types.TASK_STATE_RUNNING or task.status.health in (0, types.HEALTH_STATE_HEALTHY):
        return ""
    return f" ({words.enum_word(types.HealthState.DESCRIPTOR, task.status.health)})"


def _style(line: Line) -> str:
    state = line.task.status.state
    if state in _BAD:
        return "red"
    if line.history:
        return "dim"
    return "green" if state == types.TASK_STATE_RUNNING else "yellow"


def _document(line: Line) -> dict[str, Any]:
    return {**as_json(line.task), "names": as_json(line.names)}
