"""What buildah needs of this host, where the host has no more of it for a moment."""

from __future__ import annotations

import asyncio
import base64
import errno
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from swarm.errors import InternalError, ResourceExhausted, SwarmError
from swarm.identity import TlsFiles

from agent.images.commands import Buildah
from agent.images.reference import Reference

DEFAULT = Reference("registry.test", "web", "1", "")


@pytest.fixture
def buildah(tmp_path: Path) -> Buildah:
    files = TlsFiles(tmp_path)
    for path in (files.key, files.certificate, files.ca):
        path.touch()
    made = Buildah(tmp_path / "state" / "images", tmp_path / "run" / "images", files)
    made.default_registry = DEFAULT.registry
    return made


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, ResourceExhausted), (errno.EMFILE, InternalError)])
def test_a_file_for_buildah_that_cannot_be_written_is_told_in_a_sentence(
    number: int, kind: type[SwarmError], buildah: Buildah, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/run was full, or swarmd lacked descriptors: `image pull` and tasks failed as "the node daemon failed unexpectedly"."""

    def refused(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refused)
    monkeypatch.setattr("agent.images.commands._HOST_CONFIGURATION", Path("/nowhere"))
    auth = base64.b64encode(b"u:p").decode()
    needs: list[Callable[[], object]] = [
        buildah.policy_options,
        buildah.short_names,
        lambda: buildah.registry_options(DEFAULT),
        lambda: buildah.temporary,
        lambda: ExitStack().enter_context(buildah.auth_file("r", auth)),
    ]
    for need in needs:
        with pytest.raises(kind, match=r"is full|cannot be made: Too many open files"):
            need()


async def test_what_a_build_left_in_the_background_ends_with_it(
    tmp_path: Path, buildah: Buildah, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`RUN start-database & sleep 1; fill-it`: the database went on running on the host, as root, until that was restarted."""
    program = tmp_path / "bin" / "buildah"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nsleep 60 >/dev/null 2>&1 &\necho $!\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    background = int(await buildah.run("vfs", ["build"], "building w"))
    assert _ends(background)


def _ends(pid: int) -> bool:
    """Whether the process is gone, or waits to be reaped, within seconds."""
    for _ in range(500):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("error", [OSError(errno.EAGAIN, "no more processes"), RuntimeError("can't start new thread")])
async def test_a_buildah_that_cannot_be_started_is_told_in_a_sentence_and_leaves_nothing(
    error: Exception, buildah: Buildah, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host could start no more processes: each attempt to pull an image left a directory, and the reason named that instead
    of the program, or was that "the node daemon failed unexpectedly"."""

    async def refused(*_: object, **__: object) -> Any:
        raise error

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refused)
    with pytest.raises(ResourceExhausted, match=r"image w: the program `buildah` could not be started: (no|can't) "):
        await buildah.run("vfs", ["rmi", "w"], "image w")
    assert list(buildah.temporary.iterdir()) == []
