"""Builds that follow one another. buildah is what stands in the store's list of working containers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from agent.images.layers import Layers
from agent.images.rootfs import RootFilesystems
from agent.images.store import BuildahImages


class Builder:
    """A build has one working container until it ends; one that is interrupted leaves it. Removing waits to be `released`."""

    def __init__(self, store: Path) -> None:
        self._list = store / "vfs-containers" / "containers.json"
        self._list.parent.mkdir(parents=True)
        self.begun = 0
        self.removing, self.released = asyncio.Event(), asyncio.Event()

    @property
    def containers(self) -> list[int]:
        return list(json.loads(self._list.read_text())) if self._list.exists() else []

    async def run(self, driver: str, words: list[str], subject: str) -> str:
        assert words == ["rm", "--all"]
        self.removing.set()
        await self.released.wait()
        self._list.write_text("[]")
        return ""

    async def lines(self, driver: str, words: list[str], subject: str, **_: Any) -> AsyncIterator[str]:
        self.begun += 1
        mine = self.begun
        self._list.write_text(json.dumps([*self.containers, mine]))
        yield "STEP 1"
        await asyncio.sleep(0.01)
        assert mine in self.containers, "container not known"
        self._list.write_text("[]")
        Path(words[words.index("--iidfile") + 1]).write_text("sha256:1")


async def test_a_build_that_follows_an_interrupted_one_keeps_its_own_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody interrupted a build and began it again at once: it failed, "container not known"."""
    images = BuildahImages(tmp_path / "state", tmp_path / "run", tmp_path)
    builder = Builder(tmp_path / "store")
    layers = Layers(tmp_path / "store", "vfs")
    images._store = layers, RootFilesystems(tmp_path / "rootfs", layers)
    monkeypatch.setattr(images._buildah, "run", builder.run)
    monkeypatch.setattr(images._buildah, "lines", builder.lines)
    (tmp_path / "Containerfile").write_text("FROM scratch")

    def build() -> Any:
        return images.build(tmp_path, tags=["r/web:1"], file="", build_args={}, target="", no_cache=False)

    async def whole() -> list[str]:
        return [line async for line in build()]

    async with aclosing(build()) as lines:
        assert await anext(lines) == "STEP 1"
        interrupting = asyncio.create_task(lines.aclose())
        await builder.removing.wait()
        following = asyncio.create_task(whole())
        await asyncio.sleep(0.005)
        builder.released.set()
        assert await following == ["STEP 1", "sha256:1"]
        await interrupting
    assert builder.containers == [] and images._builds == 0
