"""How calls find a manager, and what becomes of them when one is gone."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from swarm.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutcomeUnknown,
    SwarmError,
    Unavailable,
)
from swarm.v1 import control_pb2 as control
from swarm.v1 import node_pb2 as node
from swarm.v1 import types_pb2 as types
from swarm.v1.control_pb2_grpc import ControlStub

from orchestrator.cli.caller import Caller, Shell
from orchestrator.cli.session import Session
from orchestrator.cli.target import Endpoint, Places, Target
from tests.unit.cli.conftest import Script, Served

Serve = Callable[..., Served]
CREATED = control.CreateServiceResponse(service=types.Service(id="x"))


class Time:
    """A clock that moves by waiting only."""

    def __init__(self) -> None:
        self.now = 0.0

    def shell(self) -> Shell:
        return Shell(now=lambda: self.now, sleep=self.sleep, rng=random.Random(1))

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def caller(*sockets: Path, patience: float = 5.0) -> Caller[ControlStub]:
    endpoints = tuple(Endpoint(path.parent.name, str(path)) for path in sockets)
    return Caller(endpoints, ControlStub, patience=patience, shell=Time().shell())


def create(managers: Caller[ControlStub]) -> control.CreateServiceResponse:
    return managers.call(lambda stub: stub.CreateService, control.CreateServiceRequest())


def test_a_dead_socket_is_passed_over(serve: Serve, tmp_path: Path) -> None:
    dead = tmp_path / "dead" / "control.sock"
    dead.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))  # the file stays, as after a killed manager
    script = Script({"CreateService": CREATED})
    alive = serve(script)
    assert create(caller(dead, alive.control_socket)).service.id == "x"


def test_a_write_keeps_its_request_id_over_managers(serve: Serve) -> None:
    leaderless = Script({"CreateService": Unavailable("there is no leader")})
    leading = Script({"CreateService": CREATED})
    managers = caller(serve(leaderless, "a").control_socket, serve(leading, "b").control_socket)
    create(managers)
    first, second = leaderless.only("CreateService"), leading.only("CreateService")
    assert first.request_id == second.request_id != ""
    create(managers)  # keeps to the one that answered
    assert len(leaderless.asked("CreateService")) == 1
    assert leading.asked("CreateService")[1].request_id != first.request_id


def test_an_unknown_outcome_is_repeated_with_the_same_id(serve: Serve) -> None:
    script = Script({"CreateService": [OutcomeUnknown("the leader changed"), Unavailable("not yet"), CREATED]})
    create(caller(serve(script).control_socket))
    assert len({request.request_id for request in script.asked("CreateService")}) == 1


def test_what_a_manager_says_is_not_repeated(serve: Serve) -> None:
    script = Script({"CreateService": AlreadyExists("taken")})
    with pytest.raises(AlreadyExists, match="taken"):
        create(caller(serve(script).control_socket))
    assert len(script.requests) == 1


def test_patience_ends(serve: Serve) -> None:
    script = Script({"CreateService": Unavailable("there is no quorum: 1 of 3 managers is reachable")})
    with pytest.raises(Unavailable, match="no quorum"):
        create(caller(serve(script).control_socket))
    assert len(script.requests) > 3


def test_what_a_manager_said_counts_more_than_the_silence_after_it(serve: Serve) -> None:
    quiet = threading.Event()

    def then_silent(_: Any) -> Any:
        if len(script.requests) == 1:
            return Unavailable("no leader: 1 of 3 managers is reachable")
        quiet.wait(5)
        return Unavailable("too late")

    script = Script({"ListServices": then_silent})
    endpoint = Endpoint("m", str(serve(script).control_socket))
    managers = Caller((endpoint,), ControlStub, patience=0.3)
    with pytest.raises(Unavailable, match="no leader"):
        managers.call(lambda stub: stub.ListServices, control.ListRequest(), timeout=0.2)
    quiet.set()


def test_patience_ends_with_an_unknown_outcome_if_there_was_one(serve: Serve) -> None:
    script = Script({"CreateService": OutcomeUnknown("the leader changed")})
    with pytest.raises(OutcomeUnknown, match="look before repeating"):
        create(caller(serve(script).control_socket))


def test_a_long_time_for_an_answer_is_no_reason_to_search_long_for_a_leader(serve: Serve) -> None:
    script = Script({"CreateService": Unavailable("no leader: 1 of 3 managers reachable, a quorum needs 2")})
    time = Time()
    path = serve(script).control_socket
    managers = Caller((Endpoint("m1", str(path)),), ControlStub, patience=5.0, shell=time.shell())
    with pytest.raises(Unavailable, match="a quorum needs 2"):  # nothing was written: it is no unknown outcome
        managers.call(lambda stub: stub.CreateService, control.CreateServiceRequest(), timeout=300.0)
    assert time.now <= 5.0


def test_a_deadline_that_the_manager_reports_is_final(serve: Serve) -> None:
    script = Script({"CreateService": DeadlineExceeded("the registry did not answer")})
    with pytest.raises(DeadlineExceeded, match="registry"):
        create(caller(serve(script).control_socket))


def test_nobody_there_fails_at_once_and_names_the_places(tmp_path: Path) -> None:
    time = Time()
    managers = Caller((Endpoint("m1", str(tmp_path / "x.sock")),), ControlStub, shell=time.shell())
    with pytest.raises(Unavailable, match=r"no manager is reachable \(m1: nobody listens at .*x\.sock\)"):
        create(managers)
    assert time.now == 0


def test_nobody_there_in_a_lab_says_how_to_start_it(tmp_path: Path) -> None:
    places = Places((Endpoint("m1", str(tmp_path / "x.sock")),), (), lab="default")
    with pytest.raises(Unavailable, match="swarmctl lab up"):
        create(Session(places, shell=Time().shell()).control())


def test_a_stream_goes_on_at_another_manager(serve: Serve) -> None:
    progress = control.ServiceProgress(converged=True)
    breaking = Script({"WatchService": [control.ServiceProgress(), Unavailable("leaving")]})
    other = Script({"WatchService": [progress]})
    first = serve(breaking, "a")
    managers = caller(first.control_socket, serve(other, "b").control_socket)
    answers = managers.stream(lambda stub: stub.WatchService, lambda: control.WatchServiceRequest(reference="web"))
    assert not next(answers).converged
    first.stop()
    first.stop = lambda: None  # type: ignore[method-assign]
    assert next(answers).converged


def test_what_a_node_daemon_says_is_final(serve: Serve) -> None:
    """A registry or a manager that the daemon cannot reach it cannot reach; it has tried long enough itself."""
    script = Script({
        "Join": [Unavailable("manager 192.0.2.77:2377 is not reachable"), node.LocalState()],
        "Pull": [node.ImageProgress(line="Trying to pull x"), Unavailable("the registry cannot be reached")],
    })  # fmt: skip
    daemon = serve(script, control=False, daemon=True)
    session = Session(Places((), (Endpoint("this host", str(daemon.directory / "swarmd.sock")),)), shell=Time().shell())
    try:
        with pytest.raises(Unavailable, match="not reachable"):
            session.local().call(lambda stub: stub.Join, node.LocalJoinRequest())
        with pytest.raises(Unavailable, match="registry"):
            list(session.images().stream(lambda stub: stub.Pull, node.ImageRequest))
    finally:
        session.close()
    assert [name for name, _ in script.requests] == ["Join", "Pull"]


def state(**fields: Any) -> node.LocalState:
    return node.LocalState(**fields)


@pytest.mark.parametrize(
    ("answer", "kind", "sentence"),
    [
        (state(state="inactive"), FailedPrecondition, "swarm init"),
        (state(state="active", managers=["10.0.0.1:2378"]), FailedPrecondition, r"worker.*10\.0\.0\.1:2378"),
        (
            state(state="pending", message="waiting for a certificate"),
            Unavailable,
            "pending: waiting for a certificate",
        ),
        (state(state="active", control_socket="/x"), Unavailable, "not running"),
    ],
)
def test_a_host_without_a_manager_says_why(serve: Serve, answer: Any, kind: type[Exception], sentence: str) -> None:
    served = serve(Script({"GetState": answer}), control=False, daemon=True)
    places = Target().find(run_directory=served.directory)
    with pytest.raises(kind, match=sentence):
        Session(places).control()


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (
            state(state="active", managers=["10.0.0.1:2378"]),
            "no manager of the lab 'x' is running; `swarmctl lab up --name x`",
        ),
        (state(state="active", control_socket="/x"), "no manager of the lab 'x' is running yet; repeat"),
    ],
)
def test_a_lab_without_a_manager_does_not_speak_of_one_host(serve: Serve, answer: Any, sentence: str) -> None:
    served = serve(Script({"GetState": answer}), control=False, daemon=True)
    daemons = (Endpoint("w1", str(served.directory / "swarmd.sock")),)
    with pytest.raises(Unavailable, match=sentence):
        Session(Places((), daemons, lab="x")).control()
    with pytest.raises(SwarmError, match="this host"):
        Session(Places((), daemons, lab="x", host="w1")).control()


def test_without_anything_there_is_no_swarm() -> None:
    with pytest.raises(FailedPrecondition, match="there is no swarm on this host"):
        Session(Places((), ())).control()


def test_membership_of_a_lab_host_needs_its_name(serve: Serve, tmp_path: Path) -> None:
    daemons = tuple(Endpoint(name, f"/{name}.sock") for name in ("m1", "m2"))
    with pytest.raises(FailedPrecondition, match="--node: m1, m2"):
        Session(Places((), daemons, lab="default")).local()


def lab(tmp_path: Path, *names: str, roles: str = "manager") -> Path:
    import json

    directory = tmp_path / "labs"
    nodes = []
    for name in names:
        run = directory / "default" / name
        run.mkdir(parents=True)
        (run / "swarmd.sock").touch()
        if not name.startswith("w"):
            (run / "control.sock").touch()
        role = "manager" if name.startswith("m") else "worker"
        nodes.append({"name": name, "role": role, "run_dir": str(run), "address": ""})
    (directory / "default" / "lab.json").write_text(json.dumps({"name": "default", "nodes": nodes}))
    return directory


def test_a_lab_offers_every_manager(tmp_path: Path) -> None:
    labs = lab(tmp_path, "w1", "p1", "m1", "m2")
    places = Target().find(run_directory=tmp_path / "none", lab_directory=labs)
    assert [one.name for one in places.control] == ["m1", "m2", "p1"]  # p1 was promoted
    assert [one.name for one in places.daemons] == ["m1", "m2", "w1", "p1"]
    one = Target(node="m2").find(lab_directory=labs)
    assert [endpoint.name for endpoint in one.control] == ["m2"]


def test_this_host_comes_before_a_lab(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "swarmd.sock").touch()
    places = Target().find(run_directory=run, lab_directory=lab(tmp_path, "m1"))
    assert [one.name for one in places.daemons] == ["this host"]
    assert not places.control


@pytest.mark.parametrize(
    ("target", "kind", "sentence"),
    [
        (Target(host="10.0.0.1:2378"), InvalidArgument, "certificate"),
        (Target(host="unix://control.sock"), InvalidArgument, "slash"),
        (Target(host="10.0.0.1:port", tls="/t"), InvalidArgument, "HOST:PORT"),
        (Target(host=",", tls="/t"), InvalidArgument, "names no manager"),
        (Target(host="a:1", node="m1"), InvalidArgument, "exclude"),
        (Target(lab="other"), NotFound, "lab up"),
        (Target(node="m9"), NotFound, "its hosts are m1"),
    ],
)
def test_bad_places_say_what_to_do(tmp_path: Path, target: Target, kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        target.find(run_directory=tmp_path, lab_directory=lab(tmp_path, "m1"))


def test_addresses_get_the_port_and_may_be_several() -> None:
    places = Target(host="10.0.0.1,[fd00::1]:99, fd00::2", tls="/t").find()
    assert [one.address for one in places.control] == ["10.0.0.1:2378", "[fd00::1]:99", "[fd00::2]:2378"]
