"""Which answers the quickstart prints: one from each of three containers on three nodes; and what it leaves alone."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from swarm.errors import DeadlineExceeded, FailedPrecondition, NotFound, SwarmError, Unavailable
from swarm.process import Completed

from orchestrator.lab import lab, quickstart
from orchestrator.lab.layout import LabLayout, plan
from orchestrator.lab.quickstart import Place, call, placed

HOSTS = {"m1": "10.0.0.1", "w1": "10.0.0.2"}
SPREAD = {"a": Place("web.1", "m1"), "b": Place("web.2", "w1"), "c": Place("web.3", "w2")}


def answering(*containers: str) -> Callable[[str], str]:
    """Containers answer in turn, over and over; "" is a host that does not."""
    turn = itertools.cycle(containers)

    def ask(address: str) -> str:
        container = next(turn)
        if not container:
            raise OSError("connection refused")
        return f"container {container} of web"

    return ask


class Swarm:
    """Says where containers are: one state after the other, the last for ever."""

    def __init__(self, *states: dict[str, Place]) -> None:
        self.states = list(states)

    async def __call__(self) -> dict[str, Place]:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]


async def test_answers_that_repeat_are_asked_again_until_three_nodes_have_answered() -> None:
    answers = await call(HOSTS, answering("a", "a", "b", "", "a", "b", "b", "c"), Swarm(SPREAD))
    assert [(answer.container, answer.place.node) for answer in answers] == [("a", "m1"), ("b", "w1"), ("c", "w2")]
    assert {answer.asked for answer in answers} <= set(HOSTS)


async def test_a_container_that_was_replaced_meanwhile_does_not_count() -> None:
    before = {"old": Place("web.3", "w2"), "a": SPREAD["a"], "b": SPREAD["b"]}
    answers = await call(HOSTS, answering("old", "a", "c", "b", "gone"), Swarm(before, SPREAD))
    assert [answer.container for answer in answers] == ["a", "b", "c"]


async def test_two_containers_on_one_node_are_one_answer_and_the_end_is_bounded() -> None:
    crowded = {"a": Place("web.1", "m1"), "b": Place("web.2", "m1"), "c": Place("web.3", "w1")}
    with pytest.raises(DeadlineExceeded, match=r"only containers on 2 of 3 nodes answered.*connection refused"):
        await call(HOSTS, answering("a", "b", "c", ""), Swarm(crowded), timeout=0.5)


def test_only_tasks_that_run_and_shall_are_places() -> None:
    def task(task_id: str, state: str, desired: str) -> dict[str, object]:
        names = {"task": "web.1", "node": "m1"}
        return {"id": task_id, "names": names, "status": {"state": state}, "desired_state": desired}

    tasks = [
        task("abcdefghijklmnop", "running", "running"),
        task("old", "running", "shutdown"),
        task("new", "preparing", "running"),
    ]
    assert placed(tasks) == {"abcdefghijkl": Place("web.1", "m1")}


# ------------------------------------------------------------------------------------------------------- the second time


def web(replicas: int, image: str = "web", port: int = 8080) -> dict[str, object]:
    return {
        "spec": {
            "name": "web",
            "task": {"container": {"image": image}},
            "mode": {"replicated": {"replicas": replicas}},
            "ports": [{"published_port": port, "target_port": 80}],
        }
    }


class Commands:
    """Stands for `swarmctl`: the service that is there, tasks on so many nodes; remembers what was changed."""

    def __init__(self, service: dict[str, object] | None, nodes: int = 3) -> None:
        self.service, self.nodes = service, nodes
        self.ran: list[str] = []

    async def __call__(self, *arguments: str, check: bool = True, timeout: float = 0) -> Completed:
        answer: object = ""
        code = 0
        if arguments[:2] == ("service", "inspect"):
            answer, code = [{"service": self.service}], 0 if self.service else NotFound.exit_code
        elif arguments[:2] == ("service", "ps"):
            answer = [
                {
                    "id": f"{number:012}abc", "names": {"task": f"web.{number}", "node": f"n{number % self.nodes}"},
                    "status": {"state": "running"}, "desired_state": "running",
                }
                for number in range(6)
            ]  # fmt: skip
        else:
            self.ran.append(" ".join(arguments))
        return Completed(arguments, code, json.dumps(answer).encode(), b"")


async def deployed(monkeypatch: pytest.MonkeyPatch, commands: Commands) -> list[str]:
    monkeypatch.setattr(quickstart, "swarmctl", commands)
    await quickstart.deploy()
    return commands.ran


async def test_a_service_keeps_the_replicas_that_somebody_gave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by a newcomer: the second quickstart silently made three of six."""
    assert await deployed(monkeypatch, Commands(web(6))) == ["service update --image web web"]


async def test_too_few_replicas_for_three_nodes_are_made_three_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await deployed(monkeypatch, Commands(web(1))) == ["service update --image web --replicas 3 web"]
    assert "only 1 of 3 replicas; scaling it to 3" in capsys.readouterr().out


async def test_replicas_that_crowd_on_few_nodes_are_placed_anew_in_their_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran = await deployed(monkeypatch, Commands(web(6), nodes=2))
    assert ran[1:] == ["service scale web=0", "service scale web=6"]


async def test_a_first_time_creates_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await deployed(monkeypatch, Commands(None)) == [
        "service create --name web --replicas 3 --publish 8080:80 web"
    ]


@pytest.mark.parametrize("service", [web(3, image="nginx"), web(3, port=80)])
async def test_another_service_of_that_name_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, service: dict[str, object]
) -> None:
    commands = Commands(service)
    with pytest.raises(FailedPrecondition, match=r"not the quickstart's.*`swarmctl service rm web`"):
        await deployed(monkeypatch, commands)
    assert not commands.ran


class Labs:
    """Stands for `lab`: the first `up` fails as told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failure: SwarmError, holders: list[str]) -> None:
        self.did: list[str] = []
        self.failure: SwarmError | None = failure
        layout = plan("default", 3, 2, [])
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(lab, "up", self.up)
        monkeypatch.setattr(lab, "down", self.down)
        monkeypatch.setattr(lab, "holders", lambda layout: holders)
        monkeypatch.setattr(quickstart, "load", lambda name: layout)

    async def up(self, name: str, managers: int, workers: int, say: object) -> LabLayout:
        self.did.append("up")
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        return plan(name, managers, workers, [])

    async def down(self, name: str, say: object) -> None:
        self.did.append("down")


@pytest.mark.parametrize("kind", [DeadlineExceeded, FailedPrecondition, Unavailable])
async def test_a_lab_that_holds_a_swarm_is_not_destroyed(
    monkeypatch: pytest.MonkeyPatch, kind: type[SwarmError]
) -> None:
    """Found by a newcomer: a swarm that was well was removed, since one of its hosts had left."""
    labs = Labs(monkeypatch, kind("m2 is not ready"), ["m2", "m3"])
    with pytest.raises(FailedPrecondition, match=r"m2 is not ready.*on m2, m3 and stays.*`swarmctl lab down`"):
        await quickstart.build_lab()
    assert labs.did == ["up"]


async def test_remains_without_a_swarm_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    labs = Labs(monkeypatch, DeadlineExceeded("m2 is not ready"), [])
    await quickstart.build_lab()
    assert labs.did == ["up", "down", "up"]


async def test_only_root_is_told_anything_about_a_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's `./dev quickstart` beside a lab ended in a traceback (PermissionError), or said that the lab held no swarm
    any more and was built anew."""
    labs = Labs(monkeypatch, FailedPrecondition("run this as root"), [])
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(FailedPrecondition, match="run this as root"):
        await quickstart.build_lab()
    assert labs.did == []


def test_who_holds_a_swarm_is_who_has_a_managers_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("orchestrator.lab.layout.STATE_ROOT", tmp_path)
    layout = plan("t", 2, 1, [])
    (layout.host("m2").state_directory / "manager" / "raft").mkdir(parents=True)
    (layout.host("w1").state_directory / "logs").mkdir(parents=True)
    assert lab.holders(layout) == ["m2"]


def test_the_link_of_a_checkout_that_is_gone_is_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer "y" to the quickstart's last question, and Ctrl-D as well, ended in a traceback."""
    answers = ["y", "y"]

    def ask(_: str) -> str:
        if not answers:
            raise EOFError
        return answers.pop()

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    target = tmp_path / "swarmctl"
    target.symlink_to(tmp_path / "gone")
    quickstart.offer_link(Path(sys.executable), target)
    assert target.readlink() == Path(sys.executable)
    with pytest.raises(
        FailedPrecondition, match=f"{target} cannot be made .File exists.; try `ln -sf {sys.executable}"
    ):
        quickstart.offer_link(Path(sys.executable), target)
    quickstart.offer_link(Path(sys.executable), target)
    assert f"Linked {target}" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------------- ./dev quickstart


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [(["--help"], 0, "Usage: ./dev quickstart"), (["-h"], 0, "lab down"), (["--managers", "5"], 1, "'--managers'")],
)
def test_its_arguments_are_help_or_refused(arguments: list[str], code: int, words: str) -> None:
    """Found by a newcomer: `--help` ran the whole of it."""
    dev = Path(__file__).resolve().parents[3] / "dev"
    done = subprocess.run([dev, "quickstart", *arguments], capture_output=True, text=True, timeout=10, check=False)
    assert (done.returncode, words in done.stdout + done.stderr) == (code, True), done


@pytest.mark.parametrize("how", ["interrupted", "failed", "done"])
def test_what_keeps_services_from_starting_goes_with_the_installation(tmp_path: Path, how: str) -> None:
    """Ctrl-C while packages were installed left /usr/sbin/policy-rc.d behind: no service of the host was started any more when
    one was installed or updated, and the next `./dev` took the file for the host's own."""
    policy, told = tmp_path / "policy-rc.d", tmp_path / "told"
    dev = tmp_path / "dev"
    dev.write_text(
        (Path(__file__).resolve().parents[3] / "dev").read_text().replace("/usr/sbin/policy-rc.d", str(policy))
    )
    ends = {"interrupted": "sleep 60", "failed": "exit 100", "done": "exit 0"}[how]
    programs = {
        "dpkg-query": "exit 1",
        "id": "echo 0",
        "apt-get": f'[ "$1" = install ] || exit 0; cp {policy} {told}.new; mv {told}.new {told}; {ends}',
        "cut": "exit 1",  # the way ends here, where the packages are installed
    }
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    with subprocess.Popen(
        ["sh", dev, "setup"], env={**os.environ, "PATH": path}, stderr=subprocess.DEVNULL, start_new_session=True
    ) as program:
        end = time.monotonic() + 10
        while not told.exists() and time.monotonic() < end:
            time.sleep(0.02)
        if how == "interrupted":
            os.killpg(program.pid, signal.SIGTERM)
        assert program.wait(10) != 0
    assert told.read_text() == "#!/bin/sh\nexit 101\n"
    assert not policy.exists()


@pytest.mark.parametrize("good", [True, False])
def test_an_environment_that_was_not_finished_is_made_again(tmp_path: Path, good: bool) -> None:
    """Ctrl-C while .venv was made left a Python without pip: each later `./dev` ended with "No module named pip" until somebody
    removed .venv. And where no Python is good enough, "not found" followed upon the sentence that says so."""
    shutil.copy(Path(__file__).resolve().parents[3] / "dev", tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    programs = {
        tmp_path / ".venv" / "bin" / "python": 'echo "No module named pip"; exit 1',
        tmp_path / "python": f'[ "$1" = -m ] || exit {0 if good else 1}; echo "made again: $*"; exit 3',
    }
    for name in ("python3", "python3.13", "python3.12", "python3.11"):
        programs[tmp_path / name] = "exit 1"
    for program, text in programs.items():
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(tmp_path / "python")}
    done = subprocess.run(
        [tmp_path / "dev", "lint"], env=environment, capture_output=True, text=True, timeout=10, check=False
    )
    if good:
        assert (done.stdout, done.returncode) == ("made again: -m venv .venv\n", 3)
    else:
        last = done.stderr.splitlines()[-1]
        assert (last, done.returncode) == ("Error: Python 3.11 or newer with the venv module is needed", 1)


@pytest.mark.parametrize("moved", [True, False])
def test_a_checkout_that_was_moved_gets_its_programs_anew(tmp_path: Path, moved: bool) -> None:
    """`./dev quickstart` ended with "`…/swarmctl` is not installed on this host; `./dev setup` installs what is needed", and
    that thought nothing was to be done."""
    shutil.copy(Path(__file__).resolve().parents[3] / "dev", tmp_path)
    bin_, stubs = tmp_path / ".venv" / "bin", tmp_path / "proto" / "swarm" / "v1"
    bin_.mkdir(parents=True)
    stubs.mkdir(parents=True)
    (stubs / "types_pb2.py").touch()
    (tmp_path / ".venv" / "made-of").write_text("the-same\n")
    programs = {
        tmp_path / "sha256sum": "#!/bin/sh\necho the-same -\n",
        bin_ / "swarmctl": f"#!{'/gone' if moved else tmp_path}/.venv/bin/python\n",
        bin_ / "pip": "",
        bin_ / "python": '#!/bin/sh\necho "python $2"; exit 3\n',
        bin_ / "ruff": "#!/bin/sh\necho linted; exit 3\n",
    }
    for program, text in programs.items():
        program.write_text(text)
        program.chmod(0o755)
    done = subprocess.run(
        [tmp_path / "dev", "lint"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert (done.stdout + done.stderr).count("python pip") == moved, done
    assert ("linted" in done.stdout) == (not moved), done


def test_a_reader_that_leaves_does_not_stop_it() -> None:
    code = """
import sys
from orchestrator.lab.quickstart import say, show
sys.stdin.readline()
for number in range(3):
    say(f"step {number}")
show("done")
print("went on", file=sys.stderr)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as program:
        assert program.stdout is not None
        assert program.stdin is not None
        assert program.stderr is not None
        program.stdout.close()
        program.stdin.write(b"go\n")
        program.stdin.close()
        assert program.stderr.read() == b"went on\n"
        assert program.wait(10) == 0
