"""A host that is short of memory, processes or descriptors for a moment: what is kept running is tried again."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from swarm.errors import FailedPrecondition
from swarm.identity import Role
from swarm.retry import Backoff

from agent.network import plane
from agent.network.plane import LinuxDataPlane
from agent.node import manager_process
from agent.node.manager_process import ManagerProcess, RunningProcess
from agent.node.member import Member
from agent.node.options import Options
from agent.session.mirror import Mirror
from tests.unit.agent.manager_program import LOCKED_MANAGER


class Short:
    """Fails `times` times as the kernel does, and then does what it stands for."""

    def __init__(self, times: int, function: Any = lambda: None) -> None:
        self.left = times
        self.calls = 0
        self._function = function

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return self._function(*arguments, **named)


def locked_manager(tmp_path: Path) -> ManagerProcess:
    options = Options(state=tmp_path / "state", run=tmp_path / "run")
    options.run.mkdir()
    program = (sys.executable, "-c", LOCKED_MANAGER, str(options.run / manager_process.PID_FILE))
    return ManagerProcess(options, lambda: [], random.Random(1), program=program)


async def test_a_manager_that_was_killed_is_started_once_there_is_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The manager was killed for memory, and that moment nothing could be forked: the node had no manager until swarmd was
    restarted, and no log said so."""
    manager = locked_manager(tmp_path)
    running = asyncio.create_task(manager.run())
    async with asyncio.timeout(30):
        await manager.ready.wait()
        before = manager.pid
        with monkeypatch.context() as short:
            popen = Short(1, subprocess.Popen)
            short.setattr(subprocess, "Popen", popen)
            os.kill(before, 9)
            while manager.pid in (0, before) or not manager.ready.is_set():
                assert not running.done()
                await asyncio.sleep(0.02)
        assert "Cannot allocate memory" in caplog.text
        await manager.stop()
        await running


async def test_a_node_takes_up_its_tasks_once_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """swarmd was started on a host that was short of memory for a moment: it said that the node daemon failed unexpectedly, and
    the node had neither session nor manager until swarmd was restarted. And once it had taken up its tasks, nothing said any
    more that managers cannot reach its logs, where the agent port was taken."""
    monkeypatch.setattr("agent.node.member._BACKOFF", Backoff(first=0.001, maximum=0.001))
    started, recovered, mirror = Short(1), Short(1), Mirror()
    load = Short(1, lambda: mirror)

    async def start() -> None:
        started()

    async def prepare_recovery() -> None:
        recovered()

    member: Any = SimpleNamespace(
        _parts=SimpleNamespace(rng=random.Random(1)),
        data_plane=SimpleNamespace(start=start),
        tasks=SimpleNamespace(prepare_recovery=prepare_recovery),
        _mirror_file=SimpleNamespace(load=load),
        problem="the agent port is taken",
        mirror=None,
        _spread=lambda: None,
    )
    await Member._take_up(member)
    assert (member.mirror, member.problem) == (mirror, "the agent port is taken")
    assert (started.calls, recovered.calls, load.calls) == (4, 3, 2)


async def test_a_resolver_that_died_is_started_once_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver died, and that moment nothing could be forked: no container of the host could resolve a name until the next
    change of a network or of swarmd."""
    monkeypatch.setattr(plane, "RESOLVER_PAUSE_SECONDS", 0.001)
    refreshed, refresh = asyncio.Event(), Short(1)

    class Resolver:
        async def ended(self) -> None:
            if refreshed.is_set():
                await asyncio.Event().wait()

        async def refresh(self) -> None:
            refresh()
            refreshed.set()

    held: Any = SimpleNamespace(_resolver=Resolver())
    watching = asyncio.create_task(LinuxDataPlane._watch_resolver(held))
    async with asyncio.timeout(10):
        await asyncio.wait({watching, asyncio.create_task(refreshed.wait())}, return_when=asyncio.FIRST_COMPLETED)
    assert not watching.done() and refresh.calls == 2
    watching.cancel()


async def test_a_data_plane_that_is_started_again_watches_its_resolver_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came after the data plane failed at swarmd's start and was tried again: the first watch over the resolver was
    forgotten, and started it again after the node had left the swarm."""
    data_plane = LinuxDataPlane(tmp_path / "state", tmp_path / "run")

    async def nothing(*_: object) -> dict[str, object]:
        return {}

    async def watch() -> None:
        watches.append(1)
        await asyncio.Event().wait()

    watches: list[int] = []
    monkeypatch.setattr(data_plane._threads, "run", nothing)
    monkeypatch.setattr(data_plane._resolver, "start", nothing)
    monkeypatch.setattr(data_plane, "_watch_resolver", watch)
    for _ in range(2):
        await data_plane.start()
        await asyncio.sleep(0)
    assert len(watches) == 1
    await data_plane.stop()


async def test_a_certificate_that_cannot_be_read_for_a_moment_leaves_the_manager_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """swarmd had no descriptors left while the certificate was renewed: the node stopped working in the swarm, although manager
    and containers went on, until swarmd was restarted."""
    monkeypatch.setattr("agent.node.member._BACKOFF", Backoff(first=0.001, maximum=0.001))
    roles = iter([None, Role.MANAGER, None, None, Role.MANAGER])
    asked = asyncio.Event()
    changed = asyncio.Event()

    class Held(Member):
        def __init__(self) -> None:
            self._parts: Any = SimpleNamespace(rng=random.Random(1), manager_program=())
            self._options: Any = None
            self._role_changed = changed
            self._going = False

        @property
        def role(self) -> Role:
            role = next(roles, Role.MANAGER)
            if role is None:
                raise FailedPrecondition("the certificate cannot be read: Too many open files")
            asked.set()
            return role

    async def run(manager: ManagerProcess) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(ManagerProcess, "run", run)
    member = Held()
    keeping = asyncio.create_task(member._keep_manager())
    async with asyncio.timeout(10):
        for _ in range(2):
            await asyncio.wait({keeping, asyncio.create_task(asked.wait())}, return_when=asyncio.FIRST_COMPLETED)
            assert not keeping.done() and member.manager is not None
            asked.clear()
            changed.set()
    assert "Too many open files" in caplog.text
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


async def test_a_demoted_manager_is_stopped_once_there_are_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A node was demoted while swarmd had no descriptor left: it stopped working in the swarm, and its manager went on, until
    swarmd was restarted."""
    monkeypatch.setattr("agent.node.member._BACKOFF", Backoff(first=0.001, maximum=0.001))
    stopping, roles = Short(1), [Role.MANAGER]

    class Held(Member):
        def __init__(self) -> None:
            self._parts: Any = SimpleNamespace(rng=random.Random(1), manager_program=())
            self._options: Any = SimpleNamespace(state=tmp_path)
            self._role_changed = asyncio.Event()
            self._going = False

        @property
        def role(self) -> Role:
            return roles[-1]

    async def run(manager: ManagerProcess) -> None:
        roles.append(Role.WORKER)
        member._role_changed.set()
        await asyncio.Event().wait()

    async def stop(manager: ManagerProcess) -> None:
        stopping()

    monkeypatch.setattr(ManagerProcess, "run", run)
    monkeypatch.setattr(ManagerProcess, "stop", stop)
    member = Held()
    keeping = asyncio.create_task(member._keep_manager())
    async with asyncio.timeout(10):
        while not keeping.done() and (not stopping.calls or member.manager is not None):  # noqa: ASYNC110 – bounded; nothing tells
            await asyncio.sleep(0.001)
    assert not keeping.done() and stopping.calls == 2
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    assert "the manager cannot be stopped" in caplog.text


async def test_a_manager_that_cannot_be_looked_at_does_not_count_as_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node was demoted while swarmd had no descriptor left but one: its manager was not told to end, its state was removed,
    and the node's next promotion took it up again."""
    manager = locked_manager(tmp_path)
    running = asyncio.create_task(manager.run())
    async with asyncio.timeout(30):
        await manager.ready.wait()
        process = RunningProcess.of(manager.pid)
        assert process is not None
        with monkeypatch.context() as short, pytest.raises(OSError, match="memory"):
            short.setattr(Path, "read_text", Short(1))
            await manager.stop()
        with monkeypatch.context() as short, pytest.raises(OSError, match="memory"):
            manager._process = None
            short.setattr(Path, "open", Short(1))
            await manager.stop()
        assert process.runs()
        await manager.stop()
        assert not process.runs()
        await running
