"""What the service commands ask the managers for, and what they print of the answers (in a pipe)."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from swarm.clock import timestamp
from swarm.errors import AlreadyExists, Conflict, NotFound, Unavailable
from swarm.v1 import control_pb2 as control
from swarm.v1 import types_pb2 as types

from orchestrator.cli import progress as waiting
from orchestrator.cli.commands import service_scale
from orchestrator.cli.task_table import in_order
from tests.unit.cli.conftest import Result, Script

Run = Callable[..., Result]
ID = "websvcwebsvcwebsvcwebsvc0"


def service(name: str = "web", replicas: int = 3, version: int = 7, **fields: Any) -> types.Service:
    made = types.Service(id=ID, meta=types.Meta(version=version), revision_id="r1", **fields)
    made.spec.name = name
    made.spec.mode.replicated.replicas = replicas
    made.spec.task.container.image = "nginx:1"
    return made


def summary(running: int = 3, desired: int = 3, healthy: int | None = None, **fields: Any) -> control.ServiceSummary:
    return control.ServiceSummary(
        service=service(replicas=desired, **fields),
        desired=desired,
        running=running,
        healthy=running if healthy is None else healthy,
    )


def task(slot: int, state: int = types.TASK_STATE_RUNNING, age: float = 5.0, **fields: Any) -> types.Task:
    made = types.Task(
        id=f"task{slot}" + "0" * 20,
        service_id=ID,
        service_name="web",
        revision_id="r1",
        slot=slot,
        node_id="n1",
        desired_state=types.TASK_STATE_RUNNING,
        **fields,
    )
    made.status.state = state  # type: ignore[assignment]
    made.status.at.CopyFrom(timestamp(time.time() - age))
    return made


def progress(
    running: int, converged: bool, tasks: list[types.Task] | None = None, **fields: Any
) -> control.ServiceProgress:
    return control.ServiceProgress(
        summary=summary(running=running, **fields),
        tasks=tasks if tasks is not None else [task(slot + 1) for slot in range(running)],
        converged=converged,
    )


def test_list_shows_replicas_and_ports(script: Script, swarmctl: Run) -> None:
    port = types.PortConfig(target_port=80, published_port=8080)
    hidden = types.PortConfig(target_port=81, published_port=81, mode=types.PUBLISH_MODE_HOST)
    script.answers["ListServices"] = control.ListServicesResponse(services=[summary(published_ports=[port, hidden])])
    result = swarmctl("service", "ls")
    assert result.code == 0
    assert result.lines == [
        "ID             NAME   MODE         REPLICAS   IMAGE     PORTS",
        "websvcwebsvc   web    replicated   3/3        nginx:1   *:8080->80/tcp",
    ]


def test_list_tells_running_from_healthy(script: Script, swarmctl: Run) -> None:
    script.answers["ListServices"] = control.ListServicesResponse(services=[summary(running=2, healthy=1)])
    assert "2/3 (1 healthy)" in swarmctl("service", "ls").out


def test_list_follows_pages_and_hands_filters_on(script: Script, swarmctl: Run) -> None:
    first = control.ListServicesResponse(services=[summary()], next_page_token="more")
    second = control.ListServicesResponse(services=[summary()])
    script.answers["ListServices"] = [first, second]
    result = swarmctl("service", "ls", "-q", "--filter", "label=a=b")
    assert result.lines == ["websvcwebsvc", "websvcwebsvc"]
    asked = script.asked("ListServices")
    assert [request.page_token for request in asked] == ["", "more"]
    assert asked[0].filters[0] == control.Filter(key="label", value="a=b")


def test_list_as_json_has_every_field_under_its_name(script: Script, swarmctl: Run) -> None:
    script.answers["ListServices"] = control.ListServicesResponse(services=[summary()])
    (found,) = json.loads(swarmctl("service", "ls", "--format", "json").out)
    assert found["running"] == 3
    assert found["service"]["id"] == ID
    assert found["service"]["spec"]["mode"] == {"replicated": {"replicas": 3}}
    assert found["service"]["spec"]["endpoint_mode"] is None
    assert found["service"]["update_status"] is None


def test_templates_are_refused_with_a_hint(swarmctl: Run) -> None:
    result = swarmctl("service", "ls", "--format", "{{.ID}}")
    assert result.code == 2
    assert "json" in result.err


def test_create_prints_the_id_and_waits_until_converged(script: Script, swarmctl: Run) -> None:
    script.answers["CreateService"] = control.CreateServiceResponse(service=service(), warnings=["image not pinned"])
    script.answers["WatchService"] = [progress(0, False), progress(2, False), progress(2, False), progress(3, True)]
    result = swarmctl("service", "create", "--replicas", "3", "--name", "web", "nginx:1", "nginx", "-g", "daemon off;")
    assert result.code == 0
    assert result.lines == [
        ID,
        "overall progress: 0 out of 3 tasks",
        "overall progress: 2 out of 3 tasks",
        "overall progress: 3 out of 3 tasks",
        "verify: Service web converged",
    ]
    assert result.err == "Warning: image not pinned\n"
    request = script.only("CreateService")
    assert request.spec.task.container.args == ["nginx", "-g", "daemon off;"]
    assert request.request_id
    assert script.only("WatchService").reference == ID


def test_a_wait_for_tasks_that_run_already_says_what_for(script: Script, swarmctl: Run) -> None:
    updating = types.UpdateStatus(state=types.UPDATE_STATE_UPDATING)
    watched = progress(3, False, version=9, update_status=updating)
    slower = progress(3, False, version=9, update_status=updating)
    slower.summary.service.spec.update.monitor.seconds = 90
    script.answers["GetService"] = control.GetServiceResponse(summary=summary())
    script.answers["UpdateService"] = control.UpdateServiceResponse(service=service(version=9))
    script.answers["WatchService"] = [watched, watched, slower, progress(3, True, version=9)]
    assert swarmctl("service", "update", "--image", "nginx:2", "web").lines == [
        "web",
        "overall progress: 3 out of 3 tasks",
        "verify: watching the new tasks for failure, each for 5s",
        "verify: watching the new tasks for failure, each for 1m30s",
        "verify: Service web converged",
    ]


def test_create_detached_does_not_wait(script: Script, swarmctl: Run) -> None:
    script.answers["CreateService"] = control.CreateServiceResponse(service=service())
    assert swarmctl("service", "create", "-d", "nginx").lines == [ID]
    assert not script.asked("WatchService")


def test_errors_of_tasks_show_once_while_waiting(script: Script, swarmctl: Run) -> None:
    failed = task(1, types.TASK_STATE_REJECTED)
    failed.status.error = 'image "nginx:1" not found'
    script.answers["CreateService"] = control.CreateServiceResponse(service=service())
    script.answers["WatchService"] = [
        progress(0, False, [failed]), progress(0, False, [failed]), progress(3, True)
    ]  # fmt: skip
    result = swarmctl("service", "create", "nginx")
    assert result.code == 0
    assert result.err == 'web.1: image "nginx:1" not found\n'


def test_a_watch_of_a_manager_that_is_behind_is_not_believed(script: Script, swarmctl: Run) -> None:
    script.answers["GetService"] = control.GetServiceResponse(summary=summary(version=7))
    script.answers["UpdateService"] = control.UpdateServiceResponse(service=service(version=9))
    script.answers["WatchService"] = [
        progress(3, True, version=7),
        progress(1, False, version=9),
        progress(3, True, version=9),
    ]
    assert swarmctl("service", "update", "--image", "nginx:2", "web").lines == [
        "web",
        "overall progress: 1 out of 3 tasks",
        "overall progress: 3 out of 3 tasks",
        "verify: Service web converged",
    ]


def test_a_paused_update_ends_with_exit_code_7(script: Script, swarmctl: Run) -> None:
    status = types.UpdateStatus(state=types.UPDATE_STATE_PAUSED, message="task web.1 failed")
    script.answers["GetService"] = control.GetServiceResponse(summary=summary())
    script.answers["UpdateService"] = control.UpdateServiceResponse(service=service())
    script.answers["WatchService"] = [progress(2, False, version=8, update_status=status)]
    result = swarmctl("service", "update", "--image", "nginx:2", "web")
    assert result.code == 7
    assert result.err == "Error: the update of service web is paused: task web.1 failed\n"


def test_an_old_pause_does_not_fail_a_scale(script: Script, swarmctl: Run) -> None:
    status = types.UpdateStatus(state=types.UPDATE_STATE_PAUSED)
    script.answers["GetService"] = control.GetServiceResponse(summary=summary(update_status=status))
    script.answers["UpdateService"] = control.UpdateServiceResponse(service=service(update_status=status))
    script.answers["WatchService"] = [progress(3, True, update_status=status)]
    assert swarmctl("service", "scale", "web=3").code == 0


def test_a_rollback_that_was_asked_for_succeeds(script: Script, swarmctl: Run) -> None:
    status = types.UpdateStatus(state=types.UPDATE_STATE_ROLLBACK_COMPLETED)
    script.answers["UpdateService"] = control.UpdateServiceResponse(service=service())
    script.answers["WatchService"] = [progress(3, True, version=8, update_status=status)]
    result = swarmctl("service", "rollback", "web")
    assert result.code == 0
    assert result.lines[-1] == "verify: Service web rolled back"
    assert script.only("UpdateService").rollback


def test_a_wait_can_be_bounded(script: Script, swarmctl: Run) -> None:
    script.answers["CreateService"] = control.CreateServiceResponse(service=service())

    def broken(_: Any) -> list[Any]:
        return [progress(1, False), Unavailable("the leader is gone")]

    script.answers["WatchService"] = broken
    result = swarmctl("service", "create", "--wait-timeout", "300ms", "nginx")
    assert result.code == 7
    assert "did not converge within 300ms: 1 of 3 tasks running" in result.err


def test_a_watch_goes_on_after_its_manager_is_gone(script: Script, swarmctl: Run) -> None:
    script.answers["CreateService"] = control.CreateServiceResponse(service=service())
    streams = [[progress(1, False), Unavailable("the leader is gone")], [progress(3, True)]]
    script.answers["WatchService"] = lambda _: streams.pop(0)
    result = swarmctl("service", "create", "nginx")
    assert result.code == 0
    assert result.lines[-1] == "verify: Service web converged"


def test_update_sends_the_version_that_it_read_and_repeats_after_a_conflict(script: Script, swarmctl: Run) -> None:
    script.answers["GetService"] = [
        control.GetServiceResponse(summary=summary(version=7)), control.GetServiceResponse(summary=summary(version=8)),
    ]  # fmt: skip
    script.answers["UpdateService"] = [Conflict("moved"), control.UpdateServiceResponse(service=service(version=9))]
    assert swarmctl("service", "update", "-d", "--image", "nginx:2", "web").code == 0
    first, second = script.asked("UpdateService")
    assert (first.version, second.version) == (7, 8)
    assert first.request_id != second.request_id
    assert second.spec.task.container.image == "nginx:2"


def test_conflicts_end(script: Script, swarmctl: Run) -> None:
    script.answers["GetService"] = control.GetServiceResponse(summary=summary())
    script.answers["UpdateService"] = Conflict('service "web" changed since it was read')
    result = swarmctl("service", "update", "-d", "--force", "web")
    assert result.code == 4
    assert len(script.asked("UpdateService")) == 5


def test_update_rollback_takes_no_other_change(script: Script, swarmctl: Run) -> None:
    assert swarmctl("service", "update", "--rollback", "--image", "x", "web").code == 2
    assert not script.requests


def test_update_resolves_networks(script: Script, swarmctl: Run) -> None:
    read = summary()
    read.service.spec.task.networks.add(network="net-a")
    script.answers["GetService"] = control.GetServiceResponse(summary=read)
    script.answers["GetNetwork"] = lambda request: control.GetNetworkResponse(
        network=types.Network(id={"a": "net-a", "b": "net-b"}[request.reference])
    )
    script.answers["UpdateService"] = control.UpdateServiceResponse(service=service())
    assert swarmctl("service", "update", "-d", "--network-rm", "a", "--network-add", "name=b,alias=x", "web").code == 0
    (attachment,) = script.only("UpdateService").spec.task.networks
    assert attachment == types.NetworkAttachmentConfig(network="net-b", aliases=["x"])


def test_scale_sets_replicas_of_several(script: Script, swarmctl: Run) -> None:
    script.answers["GetService"] = control.GetServiceResponse(summary=summary())
    script.answers["UpdateService"] = lambda request: control.UpdateServiceResponse(service=service())
    script.answers["WatchService"] = [progress(3, True)]
    result = swarmctl("service", "scale", "web=5", "api=0")
    assert result.code == 0
    assert [request.spec.mode.replicated.replicas for request in script.asked("UpdateService")] == [5, 0]
    assert {request.version for request in script.asked("UpdateService")} == {0}  # only the number is taken
    assert result.lines[:2] == ["web scaled to 5", "api scaled to 0"]


@pytest.mark.parametrize("word", ["web", "web=", "web=-1", "web=x", "=3"])
def test_scale_refuses_what_is_no_number(swarmctl: Run, word: str) -> None:
    assert swarmctl("service", "scale", word).code == 2


def test_ps_shows_history_below_the_newest(script: Script, swarmctl: Run) -> None:
    old = task(1, types.TASK_STATE_FAILED, age=8000, meta=types.Meta(created_index=3))
    old.id = "oldtask000000000"
    old.desired_state = types.TASK_STATE_SHUTDOWN
    old.status.error = "exited with code 1"
    old.status.container.last_output = "no such host"
    new = task(1, age=5000, meta=types.Meta(created_index=9))
    waiting = task(2, types.TASK_STATE_PENDING, age=12000)
    waiting.node_id = ""
    waiting.status.message = "no suitable node (insufficient memory on 3 nodes)"
    names = [
        control.TaskNames(task=f"web.{slot}", node=node, image="nginx:1")
        for slot, node in ((1, "m1"), (2, ""), (1, "m2"))
    ]
    script.answers["GetService"] = control.GetServiceResponse(summary=summary())
    script.answers["ListTasks"] = control.ListTasksResponse(tasks=[old, waiting, new], names=names)
    result = swarmctl("service", "ps", "web")
    assert [re.split(r" {3,}", line) for line in result.lines] == [
        ["ID", "NAME", "IMAGE", "NODE", "DESIRED STATE", "CURRENT STATE", "ERROR", "PORTS"],
        ["task10000000", "web.1", "nginx:1", "m2", "Running", "Running about an hour ago"],
        ["oldtask00000", "\\_ web.1", "nginx:1", "m1", "Shutdown", "Failed 2 hours ago",
         "exited with code 1 (last output: no such host)"],
        ["task20000000", "web.2", "nginx:1", "Running", "Pending 3 hours ago",
         "no suitable node (insufficient memory on 3 nodes)"],
    ]  # fmt: skip
    assert "oldtask00000    \\_ web.1" in result.out  # indented by one
    assert script.only("ListTasks").filters[0] == control.Filter(key="service", value=ID)


def test_ps_shows_first_who_serves_then_who_is_to_take_over() -> None:
    def made(number: int, desired: int, state: int = types.TASK_STATE_RUNNING) -> tuple[types.Task, control.TaskNames]:
        one = task(1, state, meta=types.Meta(created_index=number))
        one.desired_state = desired  # type: ignore[assignment]
        return one, control.TaskNames()

    serving = made(1, types.TASK_STATE_RUNNING)
    next_one = made(4, types.TASK_STATE_READY, types.TASK_STATE_PREPARING)
    failed = [made(number, types.TASK_STATE_SHUTDOWN, types.TASK_STATE_FAILED) for number in (2, 3)]
    lines = in_order([serving, *failed, next_one])
    assert [(line.task.meta.created_index, line.history) for line in lines] == [
        (1, False), (4, False), (3, True), (2, True),
    ]  # fmt: skip
    assert [line.history for line in in_order(failed)] == [False, True]


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        (types.TASK_STATE_PENDING, False),
        (types.TASK_STATE_ASSIGNED, True),
        (types.TASK_STATE_RUNNING, True),
        (types.TASK_STATE_REJECTED, False),
        (types.TASK_STATE_SHUTDOWN, False),
    ],
)
def test_ps_shows_ports_where_a_host_keeps_them(script: Script, swarmctl: Run, state: int, shown: bool) -> None:
    one = task(1, state, host_ports=[types.PortConfig(target_port=80, published_port=8080)])
    script.answers["GetService"] = control.GetServiceResponse(summary=summary())
    script.answers["ListTasks"] = control.ListTasksResponse(tasks=[one], names=[control.TaskNames(task="web.1")])
    assert ("*:8080->80/tcp" in swarmctl("service", "ps", "web").out) == shown


def test_ps_says_why_a_task_gets_no_address(script: Script, swarmctl: Run) -> None:
    waiting = task(1, types.TASK_STATE_NEW, age=5000)
    waiting.node_id = ""
    waiting.status.message = 'network "tiny" has no free address'
    script.answers["GetService"] = control.GetServiceResponse(summary=summary())
    script.answers["ListTasks"] = control.ListTasksResponse(tasks=[waiting], names=[control.TaskNames(task="web.1")])
    assert 'network "tiny" has no free address' in swarmctl("service", "ps", "web").out


def test_ps_of_what_is_missing_shows_the_rest_and_fails(script: Script, swarmctl: Run) -> None:
    def get(request: Any) -> Any:
        if request.reference == "gone":
            return NotFound('service "gone" does not exist')
        return control.GetServiceResponse(summary=summary())

    script.answers["GetService"] = get
    script.answers["ListTasks"] = control.ListTasksResponse(tasks=[task(1)], names=[control.TaskNames(task="web.1")])
    result = swarmctl("service", "ps", "web", "gone")
    assert result.code == 3
    assert "web.1" in result.out
    assert result.err == 'Error: service "gone" does not exist\n'


def test_inspect_is_a_list_and_names_what_is_missing(script: Script, swarmctl: Run) -> None:
    def get(request: Any) -> Any:
        if request.reference == "gone":
            return NotFound('service "gone" does not exist')
        return control.GetServiceResponse(summary=summary())

    script.answers["GetService"] = get
    result = swarmctl("service", "inspect", "gone", "web")
    assert result.code == 3
    assert [one["service"]["spec"]["name"] for one in json.loads(result.out)] == ["web"]
    assert result.err == 'Error: service "gone" does not exist\n'


def test_inspect_pretty(script: Script, swarmctl: Run) -> None:
    read = summary(published_ports=[types.PortConfig(target_port=80, published_port=8080)])
    read.service.spec.task.networks.add(network="n1")
    read.service.spec.task.limits.memory_bytes = 64 << 20
    read.service.virtual_ips.add(network_id="n1", address="10.0.0.2")
    network = types.Network(id="n1", spec=types.NetworkSpec(name="backend"))
    script.answers["GetService"] = control.GetServiceResponse(summary=read)
    script.answers["ListNetworks"] = control.ListNetworksResponse(networks=[network])
    result = swarmctl("service", "inspect", "--pretty", "web")
    for line in (
        "Name:                web", "Mode:                Replicated", " Replicas:           3", " Image:              nginx:1",
        " Limit:              64MiB", "Networks:            backend", "Virtual IP:          10.0.0.2 (backend)",
        "Port:                8080 -> 80/tcp (ingress)",
    ):  # fmt: skip
        assert line in result.lines


def test_rm_goes_on_after_a_failure(script: Script, swarmctl: Run) -> None:
    script.answers["RemoveService"] = [NotFound('service "a" does not exist'), control.RemoveResponse(id="b")]
    result = swarmctl("service", "rm", "a", "b")
    assert (result.code, result.out) == (3, "b\n")
    assert result.err == 'Error: service "a" does not exist\n'


def test_a_taken_name_is_the_managers_sentence(script: Script, swarmctl: Run) -> None:
    script.answers["CreateService"] = AlreadyExists('service "web" exists already; choose another name with --name')
    result = swarmctl("service", "create", "web")
    assert (result.code, result.out) == (4, "")
    assert result.err == 'Error: service "web" exists already; choose another name with --name\n'


def record(text: str, slot: int = 1, second: int = 1, **fields: Any) -> control.LogRecord:
    made = control.LogRecord(
        task_id=f"task{slot}" + "0" * 20, task_name=f"web.{slot}", node_name="m1", line=text.encode(), **fields
    )
    made.at.seconds = 1_767_225_600 + second
    return made


def test_logs_are_labelled_and_stderr_stays_stderr(script: Script, swarmctl: Run) -> None:
    script.answers["ServiceLogs"] = [
        record("hello"),
        record("oops", 12, stream=control.LOG_STREAM_STDERR),
        control.LogRecord(notice="node w1 is not reachable"),
    ]
    result = swarmctl("service", "logs", "--tail", "5", "--since", "1767225600", "web")
    assert result.out == "web.1.task10000000@m1 | hello\n"
    assert result.err == "web.12.task12000000@m1 | oops\nNote: node w1 is not reachable\n"
    request = script.only("ServiceLogs")
    assert (request.tail, request.since.seconds, request.follow) == (5, 1_767_225_600, False)


def test_logs_raw_with_timestamps(script: Script, swarmctl: Run) -> None:
    script.answers["ServiceLogs"] = [record("hello")]
    assert swarmctl("service", "logs", "--raw", "-t", "web").out == "2026-01-01T00:00:01Z hello\n"
    assert script.only("ServiceLogs").tail == -1


def test_following_logs_go_on_behind_the_last_line(script: Script, swarmctl: Run) -> None:
    streams = [[record("one", second=1), record("two", second=2), Unavailable("gone")], [record("three", second=3)]]
    script.answers["ServiceLogs"] = lambda _: streams.pop(0)
    result = swarmctl("service", "logs", "-f", "--no-task-ids", "--tail", "2", "web")
    assert result.out == "web.1@m1 | one\nweb.1@m1 | two\nweb.1@m1 | three\n"
    first, second = script.asked("ServiceLogs")
    assert (first.tail, second.tail) == (2, -1)
    assert second.since.ToNanoseconds() == (1_767_225_602 * 10**9) + 1


def test_ps_says_why_nothing_is_heard_of_a_task(script: Script, swarmctl: Run) -> None:
    script.answers["GetService"] = control.GetServiceResponse(summary=summary())
    names = control.TaskNames(task="web.1", node="w1", node_problem="the node is down: no heartbeat for 3 s")
    waiting = task(1, types.TASK_STATE_ASSIGNED)
    script.answers["ListTasks"] = control.ListTasksResponse(tasks=[waiting], names=[names])
    assert "the node is down: no heartbeat for 3 s" in swarmctl("service", "ps", "web").out


def test_the_time_to_wait_may_end_in_the_middle_of_a_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--wait-timeout` was without effect, and swarmctl waited for as long as it took, where the time ended while it knocked at
    a manager that was away: that was taken for one more failure to connect."""
    monkeypatch.setattr(waiting, "AWAY_TIMEOUT", 1.0)

    class Away:
        def stream(self, *_: object) -> Iterator[control.ServiceProgress]:
            try:
                time.sleep(5.0)
            except OSError as error:  # as around a connect
                raise Unavailable("nobody is there") from error
            yield control.ServiceProgress()

    with pytest.raises(waiting.NotConverged, match="did not converge within 50ms"):
        waiting.wait(cast("Any", Away()), service(), quiet=True, timeout=0.05)


@pytest.mark.parametrize(("error", "code"), [(NotFound("none"), 3), (KeyboardInterrupt(), 130)])
def test_scaling_ends_with_the_first_failure_and_at_once_with_ctrl_c(
    script: Script, swarmctl: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    """`service scale` ended with the code of the wait, not of the first failure; and Ctrl-C while it scaled the next service
    had it begin to wait for those before."""
    waited: list[str] = []

    def wait(_: object, changed: types.Service, **__: object) -> None:
        waited.append(changed.spec.name)
        raise waiting.NotConverged("it does not run")

    def warn(_: object) -> None:
        if script.asked("UpdateService")[-1].reference == "other":
            raise error

    monkeypatch.setattr(waiting, "wait", wait)
    monkeypatch.setattr(service_scale, "show_warnings", warn)
    script.answers["UpdateService"] = lambda _: control.UpdateServiceResponse(service=service())
    assert swarmctl("service", "scale", "web=3", "other=1").code == code
    assert waited == ([] if code == 130 else ["web"] * 2)
