"""Tasks on a host of memory: from assignment to end, and over restarts of the agent."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from swarm.clock import duration
from swarm.errors import NotFound, ResourceExhausted
from swarm.v1 import types_pb2 as types

from agent.runtime.interface import ContainerState, ExecResult
from agent.session.mirror import Mirror
from agent.tasks import preparation
from agent.tasks.host import Directories
from agent.tasks.supervisor import TaskSupervisor
from tests.support.nesting import nest
from tests.unit.agent.fakes import FakeHost, make_revision, make_task, mirror_of

RUNNING, SHUTDOWN = types.TASK_STATE_RUNNING, types.TASK_STATE_SHUTDOWN


class Agents:
    """Starts agent processes on one host, one after the other."""

    def __init__(self, host: FakeHost) -> None:
        self.host = host
        self.current: TaskSupervisor | None = None

    async def start(self) -> TaskSupervisor:
        await self.kill()
        self.current = self.host.supervisor()
        await self.current.prepare_recovery()
        return self.current

    async def kill(self) -> None:
        if self.current is not None:
            await self.current.close()
            self.current = None


@pytest.fixture
async def agents(tmp_path: Path) -> AsyncIterator[Agents]:
    agents = Agents(FakeHost(tmp_path))
    yield agents
    await agents.kill()


def world(*tasks: types.Task, container: types.ContainerSpec | None = None, index: int = 1) -> Mirror:
    return mirror_of(make_revision(container), *tasks, index=index)


async def settle() -> None:
    for _ in range(200):
        await asyncio.sleep(0)


async def test_the_trouble_of_a_pull_shows_while_it_is_waited_for_and_not_afterwards(agents: Agents) -> None:
    host, tasks = agents.host, await agents.start()
    host.images.troubles, host.images.pulling = ["the registry has not answered yet"], asyncio.Event()
    tasks.apply(world(make_task()))
    await settle()
    assert host.sink.last("t1").state == types.TASK_STATE_PREPARING
    assert host.sink.last("t1").error == "the registry has not answered yet"
    host.images.pulling.set()
    assert (await host.sink.until("t1", RUNNING)).error == ""


async def test_a_task_runs(agents: Agents) -> None:
    host, tasks = agents.host, await agents.start()
    tasks.apply(world(make_task()))
    status = await host.sink.until("t1", RUNNING)
    assert host.sink.states("t1")[0] == "PREPARING"
    assert status.container.image_digest == "sha256:digest"
    assert status.container.pid == 4711
    assert status.HasField("running_since")
    settings = host.runtime.held["t1"].settings
    assert settings.arguments == ("serve",)
    assert settings.hostname == "t1"


async def test_placeholders_are_filled_in_for_the_task(agents: Agents) -> None:
    host, tasks = agents.host, await agents.start()
    env = ["SLOT={{.Task.Slot}}", "ON={{.Node.Hostname}}"]
    container = types.ContainerSpec(image="web", hostname="web-{{.Task.Slot}}", env=env)
    tasks.apply(world(make_task(), container=container))
    await host.sink.until("t1", RUNNING)
    settings = host.runtime.held["t1"].settings
    assert settings.hostname == "web-1"
    assert {"SLOT=1", "ON=host", "HOSTNAME=web-1"} <= set(settings.environment)


async def test_a_stop_is_reported_when_container_and_network_are_gone(agents: Agents) -> None:
    host, tasks = agents.host, await agents.start()
    tasks.apply(world(make_task()))
    await host.sink.until("t1", RUNNING)
    seen: list[tuple[bool, bool]] = []
    put = host.sink.status

    def look(task_id: str, status: types.TaskStatus, *, urgent: bool) -> None:
        if status.state == SHUTDOWN:
            seen.append(("t1" in host.runtime.held, "t1" in host.data_plane.namespaces))
        put(task_id, status, urgent=urgent)

    host.sink.status = look  # type: ignore[method-assign]
    tasks.apply(world(make_task(desired=SHUTDOWN), index=2))
    await host.sink.until("t1", SHUTDOWN)
    assert seen == [(False, False)]


async def test_the_stop_signal_waits_for_the_watermark_and_for_open_connections(agents: Agents) -> None:
    host, tasks = agents.host, await agents.start()
    tasks.apply(world(make_task(attached=True)))
    await host.sink.until("t1", RUNNING)
    host.data_plane.open_connections = [2, 1, 0]
    tasks.apply(world(make_task(desired=SHUTDOWN, attached=True), index=9))
    await settle()
    assert host.runtime.held["t1"].signals == []
    host.watermark.advance(8)
    await settle()
    assert host.runtime.held["t1"].signals == []
    host.watermark.advance(9)
    await host.sink.until("t1", SHUTDOWN)
    assert host.data_plane.open_connections == []


async def test_the_version_of_the_task_says_which_watermark_is_enough(agents: Agents) -> None:
    host, tasks = agents.host, await agents.start()
    tasks.apply(world(make_task(attached=True)))
    await host.sink.until("t1", RUNNING)
    stopped = make_task(desired=SHUTDOWN, attached=True)
    stopped.meta.version = 5
    host.watermark.advance(5)
    tasks.apply(world(stopped, index=9))
    await host.sink.until("t1", SHUTDOWN)


async def test_drain_ends_with_the_grace_period(agents: Agents) -> None:
    host, tasks = agents.host, await agents.start()
    container = types.ContainerSpec(image="web", stop_grace_period=duration(3))
    tasks.apply(world(make_task(attached=True), container=container))
    await host.sink.until("t1", RUNNING)
    host.watermark.advance(9)
    host.data_plane.open_connections = [1] * 1000
    tasks.apply(world(make_task(desired=SHUTDOWN, attached=True), container=container, index=2))
    await host.sink.until("t1", SHUTDOWN)
    assert 980 < len(host.data_plane.open_connections) < 1000  # asked sparsely, and not for ever


async def test_a_container_that_ignores_its_stop_signal_is_killed_after_the_grace_period(agents: Agents) -> None:
    host, tasks = agents.host, await agents.start()
    host.runtime.obeys = False
    container = types.ContainerSpec(image="web", stop_signal="INT", stop_grace_period=duration(7))
    tasks.apply(world(make_task(), container=container))
    await host.sink.until("t1", RUNNING)
    held = host.runtime.held["t1"]
    tasks.apply(world(make_task(desired=SHUTDOWN), container=container, index=2))
    status = await host.sink.until("t1", SHUTDOWN)
    assert held.signals[:2] == [2, 9]
    assert 7.0 in host.slept
    assert status.container.exit_code == 137


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), RuntimeError("a defect")])
async def test_a_stop_ends_although_the_wait_for_the_containers_end_failed(
    agents: Agents, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The stopped task stayed RUNNING for ever, its addresses and its place in the update with it: the container had ended, and
    nobody was left to see it, while the log said every ten seconds that it had not ended after SIGKILL."""
    host, tasks = agents.host, await agents.start()
    wait, fails = host.runtime.wait, asyncio.Event()
    errors = [error]

    async def fail_once(container_id: str) -> ContainerState:
        if errors:
            await fails.wait()
            raise errors.pop()
        return await wait(container_id)

    monkeypatch.setattr(host.runtime, "wait", fail_once)
    tasks.apply(world(make_task(attached=True)))
    await host.sink.until("t1", RUNNING)
    tasks.apply(world(make_task(desired=SHUTDOWN, attached=True), index=9))
    await settle()  # it drains: not all nodes have withdrawn it
    fails.set()
    await settle()
    host.watermark.advance(9)
    await host.sink.until("t1", SHUTDOWN)
    assert host.runtime.held == {}


async def test_a_crash_is_told_although_the_log_cannot_be_read(agents: Agents, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit code was lost with the last line: "exit code -1: the node daemon failed unexpectedly (OSError …)"."""
    host = agents.host

    async def fail(_: Path) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(host, "last_line", fail)
    tasks = await agents.start()
    tasks.apply(world(make_task()))
    await host.sink.until("t1", RUNNING)
    host.runtime.end("t1", 3)
    status = await host.sink.until("t1", types.TASK_STATE_FAILED)
    assert (status.error, status.container.exit_code) == ("exit code 3", 3)


async def test_a_wait_that_fails_once_costs_no_container(agents: Agents, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that was short of descriptors for a moment lost a container that ran well: FAILED with exit code -1."""
    host, tasks = agents.host, await agents.start()
    wait, waits = host.runtime.wait, 0

    async def fail_once(container_id: str) -> ContainerState:
        nonlocal waits
        waits += 1
        if waits == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return await wait(container_id)

    monkeypatch.setattr(host.runtime, "wait", fail_once)
    tasks.apply(world(make_task()))
    await host.sink.until("t1", RUNNING)
    await settle()
    assert (waits, host.sink.states("t1")[-1]) == (2, "RUNNING")
    assert "t1" in host.runtime.held


async def test_a_crash_says_code_and_last_line(agents: Agents) -> None:
    host, tasks = agents.host, await agents.start()
    tasks.apply(world(make_task()))
    await host.sink.until("t1", RUNNING)
    host.runtime.end("t1", 3)
    status = await host.sink.until("t1", types.TASK_STATE_FAILED)
    assert status.error == "exit code 3: cannot bind"
    assert (status.container.exit_code, status.container.last_output) == (3, "cannot bind")
    await settle()
    assert host.runtime.held == {} and host.images.rootfs == set() and host.data_plane.namespaces == set()


async def test_an_image_that_is_not_there_rejects_the_task_and_leaves_nothing(agents: Agents) -> None:
    host, tasks = agents.host, await agents.start()
    host.images.error = NotFound("there is no image web")
    tasks.apply(world(make_task()))
    status = await host.sink.until("t1", types.TASK_STATE_REJECTED)
    assert status.error == "there is no image web"
    await settle()
    assert host.data_plane.namespaces == set() and host.images.rootfs == set()


async def test_a_full_disk_rejects_the_task_with_a_sentence(agents: Agents, monkeypatch: pytest.MonkeyPatch) -> None:
    host, tasks = agents.host, await agents.start()

    async def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(host.runtime, "create", fail)
    tasks.apply(world(make_task()))
    status = await host.sink.until("t1", types.TASK_STATE_REJECTED)
    assert status.error == "the disk of this node is full; free some space, `swarmctl image prune` helps"


async def test_a_task_is_stopped_while_its_image_is_pulled(agents: Agents) -> None:
    host, tasks = agents.host, await agents.start()
    host.images.pulling = asyncio.Event()
    tasks.apply(world(make_task()))
    await host.sink.until("t1", types.TASK_STATE_PREPARING)
    tasks.apply(world(make_task(desired=SHUTDOWN), index=2))
    await host.sink.until("t1", SHUTDOWN)
    assert host.runtime.held == {}


async def test_a_clean_up_that_fails_is_tried_until_it_succeeds(agents: Agents) -> None:
    host, tasks = agents.host, await agents.start()
    tasks.apply(world(make_task()))
    await host.sink.until("t1", RUNNING)
    host.runtime.delete_errors = [ResourceExhausted("busy"), ResourceExhausted("busy")]
    tasks.apply(world(make_task(desired=SHUTDOWN), index=2))
    await host.sink.until("t1", SHUTDOWN)
    assert host.runtime.held == {}


async def test_a_task_that_is_taken_away_is_stopped_and_forgotten(agents: Agents) -> None:
    host, tasks = agents.host, await agents.start()
    tasks.apply(world(make_task()))
    await host.sink.until("t1", RUNNING)
    tasks.apply(world(index=2))
    await host.sink.until_gone("t1")
    assert host.runtime.held == {}
    assert list((host.state / "tasks").iterdir()) == []


async def test_a_removed_services_task_is_forgotten_once_the_managers_have_forgotten_it(agents: Agents) -> None:
    host, tasks = agents.host, await agents.start()
    tasks.apply(world(make_task()))
    await host.sink.until("t1", RUNNING)
    tasks.apply(world(make_task(desired=types.TASK_STATE_REMOVE), index=2))
    await host.sink.until("t1", SHUTDOWN)
    await settle()
    assert [path.name for path in (host.state / "tasks").iterdir()] == ["t1"]
    tasks.apply(world(index=3))
    await host.sink.until_gone("t1")
    assert list((host.state / "tasks").iterdir()) == []


async def test_a_health_check_decides_when_a_task_runs(agents: Agents) -> None:
    host, tasks = agents.host, await agents.start()
    host.runtime.probe_results = [1, 1, 0]
    container = types.ContainerSpec(image="web", health=types.HealthConfig(test=["CMD", "check"]))
    tasks.apply(world(make_task(), container=container))
    status = await host.sink.until("t1", RUNNING)
    assert status.health == types.HEALTH_STATE_HEALTHY
    assert host.runtime.probe_results == []


async def test_an_unhealthy_task_fails(agents: Agents) -> None:
    host, tasks = agents.host, await agents.start()
    host.runtime.probe_results = [0] + [1] * 3
    container = types.ContainerSpec(image="web", health=types.HealthConfig(test=["CMD", "check"], retries=3))
    tasks.apply(world(make_task(), container=container))
    status = await host.sink.until("t1", types.TASK_STATE_FAILED)
    assert status.error == "unhealthy: probed"
    assert status.health == types.HEALTH_STATE_UNHEALTHY


async def test_a_defect_of_the_health_check_stops_the_container_as_a_failed_one_does(
    agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The container was killed without its stop signal, with an exit code that it never had."""
    host, tasks = agents.host, await agents.start()

    async def fail(*_: object, timeout: float) -> ExecResult:
        raise RuntimeError("a defect")

    monkeypatch.setattr(host.runtime, "exec", fail)
    container = types.ContainerSpec(image="web", health=types.HealthConfig(test=["CMD", "check"]))
    tasks.apply(world(make_task(), container=container))
    status = await host.sink.until("t1", types.TASK_STATE_FAILED)
    assert status.error.startswith("unhealthy: the node daemon failed unexpectedly (RuntimeError: a defect)")
    assert status.container.exit_code == 128 + 15


async def test_a_health_check_that_cannot_be_forked_once_ends_no_container(
    agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that was short of processes or memory for a moment lost a healthy container: FAILED with exit code -1, "the node
    daemon failed unexpectedly (BlockingIOError …)", the container removed without a stop signal."""
    host, tasks = agents.host, await agents.start()
    probes = 0

    async def execute(*_: object, timeout: float) -> ExecResult:
        nonlocal probes
        probes += 1
        if probes == 2:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        await asyncio.sleep(0.001)
        return ExecResult(0, b"")

    monkeypatch.setattr(host.runtime, "exec", execute)
    container = types.ContainerSpec(image="web", health=types.HealthConfig(test=["CMD", "check"], retries=3))
    tasks.apply(world(make_task(), container=container))
    async with asyncio.timeout(10):
        while probes < 4 and "FAILED" not in host.sink.states("t1"):  # noqa: ASYNC110 – bounded; nothing tells
            await asyncio.sleep(0.001)
    assert host.sink.states("t1")[-1] == "RUNNING"
    assert "t1" in host.runtime.held


# ----------------------------------------------------------------------------------------------------------- restarts


async def test_the_agents_end_leaves_containers_alone_and_a_new_one_adopts_them(agents: Agents) -> None:
    host, tasks = agents.host, await agents.start()
    tasks.apply(world(make_task()))
    await host.sink.until("t1", RUNNING)
    tasks = await agents.start()
    assert host.runtime.held["t1"].signals == []
    host.sink.reported.clear()
    tasks.apply(world(make_task()))
    await host.sink.until("t1", RUNNING)  # told again: the managers may not have heard it
    host.runtime.end("t1", 1)
    await host.sink.until("t1", types.TASK_STATE_FAILED)
    assert host.runtime.log.count("create t1") == 1


async def test_a_container_that_ended_while_no_agent_ran_is_reported(agents: Agents) -> None:
    host, tasks = agents.host, await agents.start()
    tasks.apply(world(make_task()))
    await host.sink.until("t1", RUNNING)
    await agents.kill()
    host.runtime.end("t1", 5)
    tasks = await agents.start()
    tasks.apply(world(make_task()))
    status = await host.sink.until("t1", types.TASK_STATE_FAILED)
    assert status.container.exit_code == 5


async def test_a_container_that_a_reboot_took_is_reported(agents: Agents) -> None:
    host, tasks = agents.host, await agents.start()
    tasks.apply(world(make_task()))
    await host.sink.until("t1", RUNNING)
    await agents.kill()
    host.runtime.held.clear()
    tasks = await agents.start()
    tasks.apply(world(make_task()))
    status = await host.sink.until("t1", types.TASK_STATE_FAILED)
    assert "did the host restart" in status.error


async def test_a_preparation_that_was_interrupted_goes_on(agents: Agents) -> None:
    host, tasks = agents.host, await agents.start()
    host.images.pulling = asyncio.Event()
    tasks.apply(world(make_task()))
    await host.sink.until("t1", types.TASK_STATE_PREPARING)
    tasks = await agents.start()
    host.images.pulling = None
    tasks.apply(world(make_task()))
    await host.sink.until("t1", RUNNING)


async def test_a_container_whose_network_was_not_there_yet_is_made_anew_by_the_next_agent(agents: Agents) -> None:
    host, tasks = agents.host, await agents.start()
    host.data_plane.attaching = asyncio.Event()
    tasks.apply(world(make_task()))
    while "t1" not in host.runtime.held:  # made beside the attachment, which does not end  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    await settle()
    assert host.sink.last("t1").state == types.TASK_STATE_PREPARING
    tasks = await agents.start()
    host.data_plane.attaching = None
    tasks.apply(world(make_task()))
    await host.sink.until("t1", RUNNING)
    assert host.runtime.log == ["create t1", "delete t1", "create t1", "start t1"]
    etc = Directories(host.state, host.state / "run").etc("t1")
    assert {path.name: path.read_text() for path in etc.iterdir()} == {
        "hostname": "t1\n", "hosts": "127.0.0.1 localhost\n", "resolv.conf": "nameserver 127.0.0.53\n"
    }  # fmt: skip


@pytest.mark.parametrize("desired", [RUNNING, types.TASK_STATE_READY])
async def test_a_container_that_a_reboot_kept_from_starting_is_made_anew(
    agents: Agents, desired: types.TaskState.ValueType
) -> None:
    """`service ps` showed a task that had never run as RUNNING and then as FAILED with exit code 137, also one that was only to
    be ready; it was replaced, after a backoff as for a crash."""
    host, tasks = agents.host, await agents.start()
    if desired == RUNNING:
        host.data_plane.attaching = asyncio.Event()
    tasks.apply(world(make_task(desired=desired)))
    while "t1" not in host.runtime.held:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    if desired != RUNNING:
        await host.sink.until("t1", desired)
    await agents.kill()
    host.runtime.end("t1", 137)  # its bundle is there, and nothing runs
    host.data_plane.attaching = None
    host.sink.reported.clear()
    tasks = await agents.start()
    tasks.apply(world(make_task(desired=desired)))
    await host.sink.until("t1", desired)
    async with asyncio.timeout(10):
        while host.runtime.log.count("create t1") < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    await settle()
    assert host.sink.states("t1")[-1] == types.TaskState.Name(desired).removeprefix("TASK_STATE_")
    assert "FAILED" not in host.sink.states("t1")


async def test_a_task_whose_files_cannot_be_removed_is_forgotten_all_the_same(
    agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """swarmd lacked descriptors as the task's files were to go: the task was never forgotten until swarmd's next start, and the
    node could not leave the swarm before."""

    def refused(*_: object) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    async def unmount(task_id: str) -> None:
        refused()

    host, tasks = agents.host, await agents.start()
    tasks.apply(world(make_task()))
    await host.sink.until("t1", RUNNING)
    monkeypatch.setattr(host.images, "unmount", unmount)
    monkeypatch.setattr(preparation, "release_files", refused)
    tasks.apply(world())
    async with asyncio.timeout(10):
        while tasks.worker("t1") is not None:  # noqa: ASYNC110 – bounded; nothing tells
            await asyncio.sleep(0.001)


async def test_an_anonymous_volume_of_directories_however_deep_goes_with_its_task(agents: Agents) -> None:
    """A program nested a thousand directories in it: the task's worker failed, and the task was never forgotten."""
    host, tasks = agents.host, await agents.start()
    tasks.apply(world(make_task()))
    await host.sink.until("t1", RUNNING)
    volume = Directories(host.state, host.state / "run").volumes / "anonymous.t1.0"
    volume.mkdir(parents=True)
    nest(volume, 1500)
    tasks.apply(world())
    async with asyncio.timeout(10):
        while tasks.worker("t1") is not None:  # noqa: ASYNC110 – bounded; nothing tells
            await asyncio.sleep(0.001)
    assert not volume.exists()


async def test_leftovers_that_belong_to_no_task_are_removed(agents: Agents) -> None:
    host, tasks = agents.host, await agents.start()
    tasks.apply(world(make_task()))
    await host.sink.until("t1", RUNNING)
    await agents.kill()
    host.data_plane.namespaces.add("old")
    host.images.rootfs.add("old")
    tasks = await agents.start()
    tasks.apply(world(make_task()))
    async with asyncio.timeout(10):
        while "old" in host.images.rootfs or "old" in host.data_plane.namespaces:  # noqa: ASYNC110 – bounded; nothing tells
            await asyncio.sleep(0)
    assert "t1" in host.runtime.held and "t1" in host.data_plane.namespaces and "t1" in host.images.rootfs


async def test_leftovers_are_removed_once_there_are_descriptors(
    agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """swarmd lacked descriptors for a moment at its start: containers, networks and root filesystems of tasks that are gone
    stayed, and their memory and disk with them, until its next start."""
    host = agents.host
    host.data_plane.namespaces.add("old")
    host.images.rootfs.add("old")
    attached, detach, unmount = host.data_plane.attached, host.data_plane.detach, host.images.unmount
    short: list[str] = []

    async def once(what: str, function: Any, *arguments: str) -> Any:
        if what not in short:
            short.append(what)
            raise OSError(errno.EMFILE, "Too many open files")
        return await function(*arguments)

    monkeypatch.setattr(host.data_plane, "attached", lambda: once("attached", attached))
    monkeypatch.setattr(host.data_plane, "detach", lambda task_id: once("detach", detach, task_id))
    monkeypatch.setattr(host.images, "unmount", lambda task_id: once("unmount", unmount, task_id))
    tasks = await agents.start()
    tasks.apply(world())
    await settle()
    async with asyncio.timeout(10):
        while "old" in host.images.rootfs or "old" in host.data_plane.namespaces:  # noqa: ASYNC110 – bounded; nothing tells
            await asyncio.sleep(0.001)
    assert sorted(short) == ["attached", "detach", "unmount"]


async def test_nothing_is_touched_before_the_assignments_are_known(agents: Agents) -> None:
    host, tasks = agents.host, await agents.start()
    tasks.apply(world(make_task()))
    await host.sink.until("t1", RUNNING)
    await agents.start()
    await settle()
    assert host.runtime.held["t1"].signals == []


async def test_a_lost_record_is_made_up_from_what_the_managers_remember(agents: Agents) -> None:
    host, tasks = agents.host, await agents.start()
    tasks.apply(world(make_task()))
    await host.sink.until("t1", RUNNING)
    await agents.kill()
    (host.state / "tasks" / "t1").write_text("{")
    task = make_task()
    task.status.state = RUNNING
    tasks = await agents.start()
    tasks.apply(world(task))
    await settle()
    assert host.runtime.log.count("create t1") == 1
    assert host.runtime.held["t1"].signals == []


async def test_leaving_ends_and_forgets_everything(agents: Agents) -> None:
    host, tasks = agents.host, await agents.start()
    tasks.apply(world(make_task("t1"), make_task("t2")))
    await host.sink.until("t1", RUNNING)
    await host.sink.until("t2", RUNNING)
    await tasks.remove_all(10)
    assert host.runtime.held == {} and host.images.rootfs == set() and host.data_plane.namespaces == set()
    assert host.sink.states("t1")[-1] == "SHUTDOWN"
