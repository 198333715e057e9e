"""The order of what the data plane does to the kernel while views follow each other. The kernel is a set of bridges."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from swarm.errors import InternalError
from swarm.v1 import types_pb2 as types

from agent.network import host_kernel, namespaces, task_kernel
from agent.network import plane as plane_module
from agent.network.overlay_plan import HostChanges, HostState
from agent.network.plane import LinuxDataPlane
from agent.network.resolver_client import ResolverClient
from agent.network.wiring import Wiring
from tests.unit.network.cluster import BACKEND, INGRESS, endpoint, overlay, service, view

ATTACHMENT = types.NetworkAttachment(network_id=BACKEND.id, address="10.0.16.5/20", mac="02:42:0a:00:10:05")


def refused(*_: object) -> Any:
    raise OSError(errno.EMFILE, "Too many open files")


class Kernel:
    """Bridges by VNI. Removing one waits until it is `released`."""

    def __init__(self) -> None:
        self.bridges: set[int] = set()
        self.removing = threading.Event()
        self.released = threading.Event()
        self.built_on: list[set[int]] = []

    def carry_out(self, changes: HostChanges) -> None:
        if changes.removed_overlays:
            self.bridges -= set(changes.removed_overlays)
            self.removing.set()
            assert self.released.wait(10)
        self.bridges |= {one.vni for one in changes.added_overlays}

    def build(self, tools: Any, path: Path, wiring: Wiring, sysctls: Any, rules: str) -> None:
        self.built_on.append(set(self.bridges))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def plane_on(kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LinuxDataPlane:
    async def answers(*_: object) -> None:
        return None

    monkeypatch.setattr(host_kernel, "underlay", lambda _: host_kernel.Underlay(1500, True))
    monkeypatch.setattr(host_kernel, "read", lambda _: HostState())
    monkeypatch.setattr(host_kernel, "carry_out", kernel.carry_out)
    monkeypatch.setattr(task_kernel, "program_host", lambda *_: None)
    monkeypatch.setattr(plane_module, "_remove_links", lambda: None)
    monkeypatch.setattr(task_kernel, "build", kernel.build)
    monkeypatch.setattr(task_kernel, "program", lambda *_: None)
    monkeypatch.setattr(ResolverClient, "set_networks", answers)
    monkeypatch.setattr(ResolverClient, "set_container", answers)
    (tmp_path / "run" / "network" / "tasks").mkdir(parents=True)
    return LinuxDataPlane(tmp_path / "state", tmp_path / "run")


async def test_a_task_is_attached_only_once_its_network_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel()
    plane = plane_on(kernel, tmp_path, monkeypatch)
    with_network = view(overlay(INGRESS), overlay(BACKEND))
    await plane.apply(with_network)

    going = asyncio.create_task(plane.apply(view(overlay(INGRESS))))
    await asyncio.to_thread(kernel.removing.wait, 10)
    coming = asyncio.create_task(plane.apply(view(overlay(INGRESS), overlay(BACKEND))))
    await asyncio.sleep(0)
    attaching = asyncio.create_task(plane.attach("t1", (ATTACHMENT,), hostname="t1"))
    await asyncio.sleep(0.05)
    kernel.released.set()
    await asyncio.gather(going, coming, attaching)

    assert kernel.built_on == [{INGRESS.vni, BACKEND.vni}]


async def test_a_task_that_waits_for_its_network_does_not_bring_back_an_older_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A view could not be put in force while a task was to be attached. When a newer one was tried then, the task put the older
    one back: ports and virtual IPs led to tasks that were gone, until anything else changed."""
    kernel = Kernel()
    plane = plane_on(kernel, tmp_path, monkeypatch)
    older = view(overlay(BACKEND))
    newer = view(overlay(BACKEND, service(BACKEND, "web", "10.0.16.9")))
    with monkeypatch.context() as lacking:
        lacking.setattr(host_kernel, "carry_out", refused)
        with pytest.raises(InternalError):
            await plane.apply(older)
    async with plane._shaping:  # others are attached
        attaching = asyncio.create_task(plane.attach("t1", (ATTACHMENT,), hostname="t1"))
        await asyncio.sleep(0)
        applying = asyncio.create_task(plane.apply(newer))
        await asyncio.sleep(0)
    await asyncio.gather(attaching, applying)
    assert plane._in_force is newer and kernel.built_on == [{BACKEND.vni}]


async def test_a_record_that_cannot_be_written_leaves_nothing_of_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """swarmd lacked descriptors, or /run had no room: the task failed because "the node daemon failed unexpectedly", and its
    interfaces stayed."""
    plane = plane_on(Kernel(), tmp_path, monkeypatch)
    torn_down: list[Path] = []
    monkeypatch.setattr(task_kernel, "tear_down", lambda path, ports: torn_down.append(path))
    await plane.apply(view(overlay(BACKEND)))
    with monkeypatch.context() as full:
        full.setattr(Path, "write_text", refused)
        with pytest.raises(InternalError, match="t1: its network cannot be set up: Too many open files"):
            await plane.attach("t1", (ATTACHMENT,), hostname="t1")
    assert torn_down == [tmp_path / "run" / "netns" / "t1"] and await plane.attached() == set()


async def test_a_network_that_cannot_be_removed_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = plane_on(Kernel(), tmp_path, monkeypatch)
    monkeypatch.setattr(namespaces, "delete", refused)
    with pytest.raises(InternalError, match="t1: its network namespace cannot be removed: Too many open files"):
        await plane.detach("t1")


async def test_flows_are_forgotten_while_a_task_is_being_detached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service lost a task while a container of the host was removed: "the networks could not be brought up to date", and
    names and ports of the whole host waited for the next attempt."""
    plane = plane_on(Kernel(), tmp_path, monkeypatch)
    loop, going = asyncio.get_running_loop(), threading.Event()
    detaching: list[Any] = []

    def delete(path: Path) -> None:
        going.set()
        time.sleep(0.2)  # the file is no namespace any more, but still there
        path.unlink()

    def forget(threads: Any, path: Path, backends: set[str]) -> None:
        if path.name == "t1":
            raise OSError(errno.EINVAL, "setns: Invalid argument")
        detaching.append(asyncio.run_coroutine_threadsafe(plane.detach("t1"), loop))
        assert going.wait(10)

    web = service(BACKEND, "web", "10.0.16.9")
    await plane.apply(view(overlay(BACKEND, web, endpoint(BACKEND, "t2", "n2", "10.0.16.7"))))
    for task_id in ("t0", "t1"):
        await plane.attach(task_id, (ATTACHMENT,), hostname=task_id)
    monkeypatch.setattr(namespaces, "delete", delete)
    monkeypatch.setattr(task_kernel, "remove_ports", lambda _: None)
    monkeypatch.setattr(plane_module, "_forget_inside", forget)
    await plane.apply(view(overlay(BACKEND, web)))
    await asyncio.wrap_future(detaching[0])
    assert await plane.attached() == {"t0"}


async def test_a_resolver_that_does_not_stay_is_not_started_without_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resolver was killed for memory as often as it was started, or its pid file was gone: swarmd took a whole core."""
    plane = plane_on(Kernel(), tmp_path, monkeypatch)
    refreshed: list[int] = []

    async def refresh() -> None:
        refreshed.append(1)
        await asyncio.sleep(0.001)

    monkeypatch.setattr(plane._resolver, "refresh", refresh)  # there is no resolver: each has ended already
    watching = asyncio.create_task(plane._watch_resolver())
    await asyncio.sleep(0.1)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert len(refreshed) == 1
    await plane.stop()


async def test_what_cannot_be_removed_does_not_keep_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node left the swarm while its resolver could not be ended, or nftables refused: the bridges and the containers'
    namespaces stayed, and nobody removed them any more."""
    plane = plane_on(Kernel(), tmp_path, monkeypatch)
    removed: list[str] = []
    (tmp_path / "run" / "netns").mkdir()
    (tmp_path / "run" / "netns" / "t1").touch()

    async def stop(*, remove: bool) -> None:
        refused()

    monkeypatch.setattr(plane._resolver, "stop", stop)
    monkeypatch.setattr(task_kernel, "program_host", refused)
    monkeypatch.setattr(plane_module, "_remove_links", lambda: removed.append("links"))
    monkeypatch.setattr(namespaces, "delete", lambda path: (removed.append(path.name), path.unlink()))
    with pytest.raises(InternalError, match="cannot be removed: Too many open files"):
        await plane.stop(remove=True)
    assert removed == ["links", "t1"] and not (tmp_path / "run" / "network").exists()


async def test_a_removal_that_fails_leaves_no_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node left the swarm while swarmd was short of descriptors: leaving failed unexpectedly, and each attempt kept threads
    and a descriptor more."""
    before = threading.enumerate()
    plane = plane_on(Kernel(), tmp_path, monkeypatch)

    async def stop(*, remove: bool) -> None:
        refused()

    monkeypatch.setattr(plane._resolver, "stop", stop)
    await plane._threads.run(time.sleep, 0)
    with pytest.raises(InternalError, match="cannot be removed: Too many open files"):
        await plane.stop(remove=True)
    assert not any(thread.name.startswith("netns") for thread in threading.enumerate() if thread not in before)
