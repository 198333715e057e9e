"""How the program starts and ends: help, errors, exit codes, pipes, speed of what must not be imported."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import swarm.errors
import typer
from swarm.errors import SwarmError, Unavailable
from swarm.v1 import control_pb2 as control
from swarm.v1 import types_pb2 as types

from orchestrator.cli import completion
from orchestrator.cli import main as program
from orchestrator.cli.lazy import load
from tests.unit.cli.conftest import Result, Script, Served

Run = Callable[..., Result]
ENTRIES = [
    *((group, name, entry) for group, made in program.GROUPS.items() for name, entry in made.commands.items()),
    *(("", name, entry) for name, entry in program.COMMANDS.items()),
]


def spawn(
    *words: str, code: str = "from orchestrator.cli.main import main; main()", **more: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60, check=False, **more
    )


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: "")
def test_every_entry_of_the_table_has_a_command_with_help(entry: Any) -> None:
    group, name, found = entry
    assert load(name, found).name == name
    assert program.run([*([group] if group else []), name, "--help"]) == 0


@pytest.mark.parametrize(
    ("words", "usage"),
    [
        (["service", "rm"], "swarmctl service rm [OPTIONS] SERVICE…"),
        (["node", "ps"], "swarmctl node ps [OPTIONS] [NODE]…"),
        (["service", "create"], "swarmctl service create [OPTIONS] IMAGE [COMMAND] [ARG]…"),
        (["swarm", "join-token"], "swarmctl swarm join-token [OPTIONS] worker|manager"),
        (["swarm", "snapshot", "save"], "swarmctl swarm snapshot save [OPTIONS] FILE"),
        (["lab", "exec"], "swarmctl lab exec [OPTIONS] HOST [--] CMD…"),
    ],
)
def test_usage_lines_are_written_as_everywhere(
    words: list[str], usage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.run([*words, "--help"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"Usage: {usage}"


@pytest.mark.parametrize("group", ["service", "node", "network", "image", "swarm", "swarm snapshot", "lab"])
def test_no_line_of_a_groups_help_is_cut_off(
    group: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert program.run([*group.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Commands:" in shown
    assert "..." not in shown


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: "")
def test_no_word_of_a_help_is_broken(
    entry: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    group, name, found = entry
    assert program.run([*([group] if group else []), name, "--help"]) == 0
    shown = capsys.readouterr().out.split()
    explained = [parameter.help or "" for parameter in load(name, found).params if hasattr(parameter, "help")]
    assert [word for text in explained for word in text.split() if word not in shown] == []


def test_help_lists_groups_without_importing_them() -> None:
    code = (
        "import sys; from orchestrator.cli import main; main.run(['service', '--help']); "
        "print([name for name in ('grpc', 'rich', 'google.protobuf', 'asyncio', 'pydantic') if name in sys.modules])"
    )
    result = spawn(code=code)
    assert "rollback" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"


def test_a_plain_list_does_not_import_rich(script: Script, swarmctl: Run) -> None:
    code = "import sys, orchestrator.cli.commands.services as _; print('rich' in sys.modules)"
    assert spawn(code=code).stdout == "False\n"


def test_usage_errors_are_exit_code_2_with_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.run(["servic"]) == 2
    assert "'service'" in capsys.readouterr().err
    assert program.run(["service", "ls", "--nonsense"]) == 2
    assert program.run(["service", "create"]) == 2
    assert "IMAGE" in capsys.readouterr().err


def test_a_certificate_is_for_a_manager_that_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A lab of the environment is not silently taken instead."""
    monkeypatch.setenv("SWARM_LAB", "a")
    assert program.run(["--tls", "/etc/mine", "node", "ls"]) == 2
    assert "--host HOST:PORT" in capsys.readouterr().err
    monkeypatch.setenv("SWARM_HOST", "127.0.0.1:1")
    assert program.run(["--tls", "/etc/mine", "node", "ls"]) == Unavailable.exit_code
    assert "127.0.0.1:1" in capsys.readouterr().err


def test_each_error_has_its_exit_code_and_one_sentence(script: Script, swarmctl: Run) -> None:
    kinds = [kind for kind in vars(swarm.errors).values() if isinstance(kind, type) and issubclass(kind, SwarmError)]
    for kind in kinds:
        if kind.exit_code in (5, 9) or kind is SwarmError:
            continue  # those are repeated: see test_session
        script.answers["RemoveNetwork"] = kind("this happened; do that")
        result = swarmctl("network", "rm", "x")
        assert (result.code, result.err) == (kind.exit_code, "Error: this happened; do that\n"), kind


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "a..b:2378", "--tls", "/none", "node", "ls"], "'a..b' is not the name or address of a host"),
        (["service", "logs", "--since", "9999-12-31T23:00:00-14:00", "web"], "is neither a time nor an age"),
        (["service", "create", "--limit-cpu", "1e999999999", "web"], "is more CPUs than there can be"),
        (["service", "create", "--mount", "type=tmpfs,target=/a,tmpfs-mode=-1", "web"], "'-1' is not a file mode"),
        (["service", "create", "--mount", f"type=tmpfs,target=/a,tmpfs-mode={'7' * 20}", "web"], "is not a file mode"),
        (["service", "create", "--label", "a=\udcff", "web"], "is not text in UTF-8"),
    ],
)
def test_words_that_make_no_sense_are_no_defect(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of these "failed unexpectedly (UnicodeError: …)", with the exit code of a defect."""
    assert program.run(words) == 2
    assert said in capsys.readouterr().err


def test_the_exit_codes_are_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "exit-codes.md").read_text()
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    kinds = [kind for kind in vars(swarm.errors).values() if isinstance(kind, type) and issubclass(kind, SwarmError)]
    assert {kind.exit_code for kind in kinds} | {0, 2, 130} <= documented


def test_a_defect_is_a_sentence_and_a_traceback_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(self: Any, **_: Any) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("orchestrator.cli.target.Target.find", broken)
    assert program.run(["service", "ls"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: swarmctl failed unexpectedly (RuntimeError: boom)")
    assert "Traceback" not in error
    monkeypatch.setenv("SWARMCTL_DEBUG", "1")
    with pytest.raises(RuntimeError):
        program.run(["service", "ls"])


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Any, **_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.cli.target.Target.find", interrupted)
    assert program.run(["service", "ls"]) == 130


def test_ctrl_c_while_waiting_leaves_the_service_alone(script: Script, serve: Callable[..., Served]) -> None:
    served = serve(script)
    forever = threading.Event()
    made = types.Service(id="x", spec=types.ServiceSpec(name="web"))

    def stuck(_: Any) -> Any:
        yield control.ServiceProgress(summary=control.ServiceSummary(service=made, desired=1))
        while not forever.wait(0.01):
            yield control.ServiceProgress(summary=control.ServiceSummary(service=made, desired=1))

    script.answers["CreateService"] = control.CreateServiceResponse(service=made)
    script.answers["WatchService"] = stuck
    # Whatever started the tests may have had this signal ignored.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from orchestrator.cli.main import main; main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, "--host", f"unix://{served.control_socket}", "service", "create", "web"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        while "progress" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
        forever.set()
    assert process.returncode == 130
    assert error.startswith("Stopped waiting; service web goes on in the background")
    assert not script.asked("RemoveService")


def many_services(count: int) -> control.ListServicesResponse:
    one = control.ServiceSummary(service=types.Service(id="x" * 25, spec=types.ServiceSpec(name="web")))
    return control.ListServicesResponse(services=[one] * count)


def test_a_reader_that_leaves_is_no_error(script: Script, serve: Callable[..., Served]) -> None:
    served = serve(script)
    script.answers["ListServices"] = many_services(5000)  # more than a pipe holds
    command = f"'{sys.executable}' -c 'from orchestrator.cli.main import main; main()' service ls | head -1"
    environment = {**os.environ, "SWARM_HOST": f"unix://{served.control_socket}"}
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True, text=True, timeout=60, check=False, env=environment,
    )  # fmt: skip
    assert result.stdout.startswith("ID")
    assert (result.stderr, result.returncode) == ("", 0)


def test_the_environment_names_the_manager(script: Script, serve: Callable[..., Served]) -> None:
    served = serve(script)
    script.answers["ListServices"] = many_services(1)
    result = spawn("service", "ls", "-q", env={**os.environ, "SWARM_HOST": f"unix://{served.control_socket}"})
    assert result.stdout == "xxxxxxxxxxxx\n"


def completions(words: str, host: str) -> list[str]:
    count = len(words.split(" ")) - 1
    environment = {
        **os.environ,
        "_SWARMCTL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(count), "SWARM_HOST": host,
    }  # fmt: skip
    return spawn(env=environment).stdout.split()


def test_completion_of_commands_flags_and_names(script: Script, serve: Callable[..., Served]) -> None:
    host = f"unix://{serve(script).control_socket}"
    script.answers["ListServices"] = many_services(1)
    script.answers["ListNodes"] = control.ListNodesResponse(nodes=[types.Node(spec=types.NodeSpec(name="m1"))])
    assert completions("swarmctl serv", host) == ["service"]
    assert completions("swarmctl service ro", host) == ["rollback"]
    assert "--limit-memory" in completions("swarmctl service create --limit-m", host)
    assert completions("swarmctl service rm w", host) == ["web"]
    assert completions("swarmctl node inspect ", host) == ["m1"]


def test_completion_of_words_that_a_flag_takes() -> None:
    assert completions("swarmctl node update --availability d", "") == ["drain"]
    assert completions("swarmctl service create --restart-condition ", "") == ["none", "on-failure", "any"]
    assert completions("swarmctl swarm join-token w", "") == ["worker"]
    assert completions("swarmctl --show-completion f", "") == ["fish"]


def test_completion_of_labs_and_their_hosts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("orchestrator.cli.target.LAB_DIRECTORY", tmp_path)
    for lab, names in (("one", ("m1", "w1", "w2")), ("two", ("m1", "w9"))):
        (tmp_path / lab).mkdir()
        nodes = [{"name": name, "role": "worker", "run_dir": str(tmp_path / lab / name)} for name in names]
        (tmp_path / lab / "lab.json").write_text(json.dumps({"nodes": nodes}))
    assert completion.labs("t") == ["two"]
    context = typer.Context(typer.main.get_command(program.app))
    context.params = {"lab": "one"}
    assert completion.hosts(context, "w") == ["w1", "w2"]
    context.params = {"lab": "none"}
    assert completion.hosts(context, "w") == []


@pytest.mark.parametrize(
    ("words", "login", "begins"),
    [
        (["bash"], "/bin/zsh", "_swarmctl_completion() {"),
        (["zsh"], "/bin/bash", "#compdef swarmctl"),
        (["fish"], "/bin/bash", "complete --command swarmctl"),
        ([], "/usr/bin/zsh", "#compdef swarmctl"),
        ([], "", "_swarmctl_completion() {"),
    ],
)
def test_the_word_says_for_which_shell(
    words: list[str], login: str, begins: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", login)
    assert program.run(["--show-completion", *words]) == 0
    assert capsys.readouterr().out.startswith(begins)


def test_a_shell_without_completion_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", "/bin/sh")
    for words in (["--show-completion", "sh"], ["--show-completion"], ["--install-completion", "sh"]):
        assert program.run(words) == 2
        assert "write one of bash, zsh, fish" in " ".join(capsys.readouterr().err.split())


def test_completion_is_installed_for_the_shell_that_is_named(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "SHELL": "/bin/sh"}
    assert spawn("--install-completion", "zsh", env=environment).stdout.startswith("Completion for zsh installed in ")
    assert "#compdef swarmctl" in (tmp_path / ".zfunc" / "_swarmctl").read_text()


def test_completion_is_silent_without_a_swarm(tmp_path: Path) -> None:
    assert completions("swarmctl service rm w", f"unix://{tmp_path}/none.sock") == []


def test_ctrl_c_during_the_imports_ends_the_program_without_a_traceback() -> None:
    code = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "orchestrator.cli.main":
            print("importing", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Slow())
from orchestrator.swarmctl import main
main()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "importing\n"
        program.send_signal(signal.SIGINT)
        _, complaint = program.communicate(timeout=30)
    assert (program.returncode, complaint) == (-signal.SIGINT, "")
