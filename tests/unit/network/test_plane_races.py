"""The order of what the data plane does to the kernel while views follow each other. The kernel is a set of bridges."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from swarm.v1 import types_pb2 as types

from agent.network import host_kernel, task_kernel
from agent.network.overlay_plan import HostChanges, HostState
from agent.network.plane import LinuxDataPlane
from agent.network.resolver_client import ResolverClient
from agent.network.wiring import Wiring
from tests.unit.network.cluster import BACKEND, INGRESS, overlay, view

ATTACHMENT = types.NetworkAttachment(network_id=BACKEND.id, address="10.0.16.5/20", mac="02:42:0a:00:10:05")


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


async def test_a_task_is_attached_only_once_its_network_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel()

    async def answers(*_: object) -> None:
        return None

    monkeypatch.setattr(host_kernel, "underlay", lambda _: host_kernel.Underlay(1500, True))
    monkeypatch.setattr(host_kernel, "read", lambda _: HostState())
    monkeypatch.setattr(host_kernel, "carry_out", kernel.carry_out)
    monkeypatch.setattr(task_kernel, "program_host", lambda *_: None)
    monkeypatch.setattr(task_kernel, "build", kernel.build)
    monkeypatch.setattr(ResolverClient, "set_networks", answers)
    monkeypatch.setattr(ResolverClient, "set_container", answers)
    plane = LinuxDataPlane(tmp_path / "state", tmp_path / "run")
    (tmp_path / "run" / "network" / "tasks").mkdir(parents=True)
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
