"""Tables in a terminal, which may be narrower than they are: nothing of a cell is lost."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from swarm.v1 import control_pb2 as control
from swarm.v1 import types_pb2 as types

from orchestrator.cli import output
from orchestrator.cli.output import Cell
from tests.unit.cli.conftest import Result, Script
from tests.unit.cli.test_services import summary, task

Run = Callable[..., Result]
WIDTHS = [60, 80, 100, 120, 200]
ERROR = "the image registry.example:5000/team/web:1 cannot be pulled: the registry does not answer"


@pytest.fixture(params=WIDTHS)
def width(request: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(output, "is_terminal", lambda stream=None: True)
    return int(request.param)


def bare(text: str) -> str:
    return re.sub(r"\033\[[0-9;]*m", "", text)


def test_a_list_of_nodes_is_whole_at_every_width(script: Script, swarmctl: Run, width: int) -> None:
    node = types.Node(id="e6azsttk9i4tegsin4gf8lxyc", role=types.NODE_ROLE_MANAGER)
    node.description.hostname, node.description.address = "a-host-with-a-long-name.example", "198.18.100.101"
    node.status.state = types.NODE_STATE_READY
    script.answers["ListNodes"] = control.ListNodesResponse(nodes=[node], leader_id=node.id)
    script.answers["GetInfo"] = control.GetInfoResponse(node_id=node.id)
    heading, row = bare(swarmctl("node", "ls").out).splitlines()
    assert re.split(r" {3,}", heading)[-1] == "ADDRESS"
    assert re.split(r" {3,}", row) == [
        f"{node.id} *", "a-host-with-a-long-name.example", "Ready", "Active", "Leader", "198.18.100.101",
    ]  # fmt: skip


@pytest.mark.parametrize("flags", [(), ("--no-trunc",)])
def test_a_list_of_tasks_is_whole_at_every_width(
    script: Script, swarmctl: Run, width: int, flags: tuple[str, ...]
) -> None:
    failed = task(1, types.TASK_STATE_REJECTED)
    failed.status.error = ERROR
    names = control.TaskNames(task="web.1", node="m1", image="nginx:1")
    script.answers["GetService"] = control.GetServiceResponse(summary=summary())
    script.answers["ListTasks"] = control.ListTasksResponse(tasks=[failed], names=[names])
    lines = bare(swarmctl("service", "ps", *flags, "web").out).splitlines()
    column = lines[0].index("ERROR")
    assert (failed.id if flags else failed.id[:12]) in lines[1]
    assert "Rejected 5 seconds ago" in lines[1]
    assert " ".join(line[column:].strip() for line in lines[1:]) == (ERROR if flags else f"{ERROR[:79]}…")
    if len(lines) > 2:  # folded: then it must have been worth it
        assert all(len(line) <= width for line in lines)
        assert width - column >= output.LEAST_FOLD
        assert not any(line[:column].strip() for line in lines[2:])


def test_only_explanations_fold_and_only_where_they_can_be_read() -> None:
    columns = ("ID", "ERROR", "PORTS")
    rows = [[Cell("a" * 20), Cell("one two three four five six seven eight", "red"), Cell("80")]]
    assert [bare(line) for line in output.terminal_table(columns, rows, 61)] == [
        "ID                     ERROR                            PORTS",
        "aaaaaaaaaaaaaaaaaaaa   one two three four five six      80",
        "                       seven eight",
    ]
    assert [bare(line) for line in output.terminal_table(columns, rows, 60)] == output.plain_table(columns, rows)


def test_styles_do_not_move_columns() -> None:
    rows = [[Cell("x", "bold green"), Cell("ready", "red"), Cell("")], [Cell("longer"), Cell("no"), Cell("z")]]
    shown = output.terminal_table(("A", "B", "C"), rows, 80)
    assert shown[1] == "\033[1;32mx\033[0m        \033[31mready\033[0m"
    assert [bare(line) for line in shown] == output.plain_table(("A", "B", "C"), rows)
