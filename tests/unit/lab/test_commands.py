"""The lab's commands as the program reads them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.cli import main
from orchestrator.lab import commands


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that were run, the name of the lab before each."""
    seen: list[list[str]] = []

    def layout(name: str) -> Any:
        return SimpleNamespace(host=lambda node: SimpleNamespace(namespace_path=Path("/")))

    def run(command: list[str], *, env: dict[str, str], check: bool) -> subprocess.CompletedProcess[bytes]:
        seen.append([env["SWARM_LAB"], *command])
        return subprocess.CompletedProcess(command, 5)

    monkeypatch.delenv("SWARM_LAB", raising=False)
    monkeypatch.setattr(commands, "_layout", layout)
    monkeypatch.setattr(subprocess, "run", run)
    return seen


@pytest.mark.parametrize("dashes", [[], ["--"]])
def test_exec_runs_the_words_after_the_dashes_and_ends_with_their_exit_code(
    ran: list[list[str]], dashes: list[str]
) -> None:
    assert main.run(["lab", "exec", "w1", *dashes, "ip", "-br", "link"]) == 5
    assert ran == [["default", "nsenter", "--net=/", "--", "ip", "-br", "link"]]


def test_the_programs_own_lab_option_names_the_lab(ran: list[list[str]]) -> None:
    main.run(["--lab", "other", "lab", "exec", "w1", "--", "true"])
    main.run(["--lab", "other", "lab", "exec", "--name", "third", "w1", "--", "true"])
    assert [line[0] for line in ran] == ["other", "third"]


def test_exec_without_a_command_is_a_usage_error(ran: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["lab", "exec", "w1", "--"]) == 2
    assert "no command" in capsys.readouterr().err
    assert not ran
