"""The lab's commands as the program reads them, and what they say of labs and hosts that are not there."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from swarm import labs
from swarm.errors import FailedPrecondition, NotFound

from orchestrator.cli import main
from orchestrator.lab import lab, layout
from orchestrator.lab.layout import LabHost, LabLayout


class Machine:
    """Stands for this machine: labs that are described, hosts whose daemons listen."""

    def __init__(self, root: Path, open_sockets: ExitStack) -> None:
        self.root, self._open = root, open_sockets

    def lab(self, name: str, *running: str, managers: int = 1, workers: int = 1) -> LabLayout:
        made = layout.plan(name, managers, workers, [])
        made.save()
        for host in running:
            self.boot(made.host(host))
        return made

    def boot(self, host: LabHost) -> None:
        host.run_directory.mkdir(parents=True)
        listener = self._open.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(host.node_socket))
        listener.listen()


@pytest.fixture
def machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    monkeypatch.setattr(labs, "RUN_ROOT", tmp_path)
    monkeypatch.setattr(layout, "RUN_ROOT", tmp_path)
    monkeypatch.setattr(layout, "STATE_ROOT", tmp_path_factory.mktemp("state"))
    monkeypatch.setattr("orchestrator.cli.target.LAB_DIRECTORY", tmp_path)
    with ExitStack() as stack:
        yield Machine(tmp_path, stack)


@pytest.fixture
def ran(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that were run, the name of the lab before each."""
    seen: list[list[str]] = []

    def run(command: list[str], *, env: dict[str, str], check: bool) -> subprocess.CompletedProcess[bytes]:
        seen.append([env["SWARM_LAB"], *command])
        return subprocess.CompletedProcess(command, 5)

    for name in ("default", "other", "third"):
        machine.lab(name)
    monkeypatch.setattr(LabHost, "namespace_path", Path("/"))
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


# -------------------------------------------------------------------------------------------------------- which lab is meant


def test_the_only_lab_is_found_whatever_its_name(machine: Machine) -> None:
    assert labs.implied() is None
    machine.lab("only")
    assert labs.implied() == "only"


def test_the_only_lab_that_runs_comes_before_those_that_do_not(machine: Machine) -> None:
    machine.lab("dead")
    machine.lab("alive", "w1")
    assert labs.implied() == "alive"


def test_the_default_lab_comes_first_even_when_it_is_dead(machine: Machine) -> None:
    """`lab kill m1 w1` and then `lab start m1` are about one and the same lab."""
    machine.lab("alive", "w1")
    machine.lab("default")
    assert labs.implied() == "default"


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["node", "ls"], "--lab NAME"),
        (["--node", "m1", "node", "ls"], "--lab NAME"),
        (["lab", "status"], "--name NAME"),
    ],
)
def test_several_labs_are_told_and_how_to_say_which(
    machine: Machine, arguments: list[str], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.lab("a", "m1")
    machine.lab("b", "m1")
    assert main.run(arguments) == FailedPrecondition.exit_code
    assert capsys.readouterr().err == (
        f"Error: there are several labs on this machine: a, b; say which with {flag} or SWARM_LAB\n"
    )


def test_the_programs_version_is_known_whichever_lab_is_meant(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.lab("a", "m1")
    machine.lab("b", "m1")
    assert main.run(["version"]) == 0
    assert capsys.readouterr().out.startswith("Client:")


def test_a_lab_that_is_not_there_is_answered_with_those_that_are(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.lab("a")
    for arguments in (["--lab", "x", "node", "ls"], ["lab", "status", "--name", "x"]):
        assert main.run(arguments) == NotFound.exit_code
        assert capsys.readouterr().err == (
            "Error: there is no lab 'x' on this machine (there is a); `swarmctl lab up --name x` builds it\n"
        )


# ------------------------------------------------------------------------------------------------------------ lab ls


def test_labs_are_listed_with_what_runs_of_them(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.lab("b", "m1", "w1", workers=2)
    machine.lab("a")
    assert main.run(["lab", "ls"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "NAME   RUNNING   ADDRESSES",
        "a      0 of 2    198.18.0.1 to 198.18.0.2",
        "b      2 of 3    198.18.0.1 to 198.18.0.3",
    ]
    assert main.run(["lab", "ls", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["name"], one["subnet"]) for one in found] == [("a", "198.18.0.0/24"), ("b", "198.18.0.0/24")]
    assert found[1]["hosts"][2] == {"name": "w2", "role": "worker", "address": "198.18.0.3", "running": False}
    assert main.run(["lab", "ls", "-q"]) == 0
    assert capsys.readouterr().out == "a\nb\n"


def test_no_labs_are_an_empty_list(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["lab", "ls", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


# ------------------------------------------------------------------------------------------------------------ hosts


@pytest.mark.parametrize(
    "arguments",
    [
        ["lab", "exec", "w1", "--", "true"],
        ["lab", "cut", "w1"],
        ["lab", "heal", "w1"],
        ["lab", "kill", "w1"],
        ["--node", "w1", "image", "ls"],
        ["--node", "w1", "node", "ls"],
        ["--node", "w1", "swarm", "leave"],
    ],
)
def test_a_host_without_power_is_told_in_one_way(
    machine: Machine, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Found by a newcomer: exit code 3 or 10, and from `image ls` the advice to build a lab."""
    machine.lab("t-off", "m1")
    assert main.run(arguments) == FailedPrecondition.exit_code
    assert capsys.readouterr().err == (
        "Error: host 'w1' of lab 't-off' is not running; boot it with `swarmctl lab start --name t-off w1`\n"
    )


@pytest.mark.parametrize(
    "arguments", [["lab", "exec", "x", "true"], ["lab", "kill", "x"], ["--node", "x", "node", "ls"]]
)
def test_an_unknown_host_is_told_in_one_way(
    machine: Machine, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    machine.lab("t-off")
    assert main.run(arguments) == NotFound.exit_code
    assert capsys.readouterr().err == "Error: lab 't-off' has no host 'x'; its hosts are m1, w1\n"


def test_several_hosts_are_each_tried(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed: list[str] = []

    async def kill(of: LabLayout, host: LabHost) -> None:
        killed.append(host.name)

    monkeypatch.setattr(lab, "kill", kill)
    machine.lab("t", managers=2)
    assert main.run(["lab", "kill", "m1", "x", "w1"]) == NotFound.exit_code
    assert killed == ["m1", "w1"]
    assert "no host 'x'" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ lab up


@pytest.mark.parametrize(
    ("arguments", "size"),
    [([], (3, 2)), (["--name", "small"], (1, 1)), (["--name", "small", "--workers", "3"], (1, 3))],
)
def test_a_lab_that_is_there_keeps_its_size(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, arguments: list[str], size: tuple[int, int]
) -> None:
    asked: list[tuple[int, int]] = []

    async def up(name: str, managers: int, workers: int, say: object, *, log_level: str) -> LabLayout:
        asked.append((managers, workers))
        return layout.plan(name, managers, workers, [])

    monkeypatch.setattr(lab, "up", up)
    machine.lab("small")
    assert main.run(["lab", "up", *arguments]) == 0
    assert asked == [size]


@pytest.mark.parametrize("command", ["up", "ls", "status", "exec", "cut", "heal", "kill", "start", "down"])
def test_help_names_what_options_take(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["lab", command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "<str>" not in shown
    assert "<int>" not in shown
