"""Processes that are found by their pid files, also where the daemon has no descriptor left to look at them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from swarm.errors import InternalError

from agent.runtime import processes
from agent.runtime.oci import OciRuntime


def refused(*_: object) -> Any:
    raise OSError(errno.EMFILE, "Too many open files")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    directory = tmp_path / "state/containers/t1/bundle"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    return directory


@pytest.fixture
def monitor(tmp_path: Path, bundle: Path) -> Iterator[subprocess.Popen[bytes]]:
    """What a container's monitor looks like from outside."""
    files = tmp_path / "run/containers/t1"
    files.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()", str(bundle)]) as process:
        (files / "monitor.pid").write_text(f"{process.pid}\n")
        yield process
        process.kill()


@pytest.mark.parametrize("file", ["", "monitor.pid", "stat", "cmdline"])
async def test_a_container_goes_on_while_its_monitor_cannot_be_looked_at(
    file: str, tmp_path: Path, bundle: Path, monitor: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """swarmd had as many files open as it may, as on a host with hundreds of containers: containers that ran were killed, and
    `service ps` said that their monitor was lost."""
    read_bytes, read_text = Path.read_bytes, Path.read_text

    def read(path: Path) -> bytes:
        return refused() if path.name == file else read_bytes(path)

    def text(path: Path, *arguments: Any, **named: Any) -> str:
        return refused() if path.name == file else read_text(path, *arguments, **named)

    runtime = OciRuntime(tmp_path / "state", tmp_path / "run", "/swarm-of-a-test")
    with monkeypatch.context() as full:
        if not file:
            full.setattr(os, "pidfd_open", refused)
        full.setattr(Path, "read_bytes", read)
        full.setattr(Path, "read_text", text)
        with pytest.raises(InternalError, match="Too many open files"):
            await runtime.wait("t1")
    assert monitor.poll() is None
    assert sorted(path.name for path in bundle.iterdir()) == ["config.json"]


async def test_an_end_that_cannot_be_read_is_told_in_a_sentence(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """swarmd had as many files open as it may: its task failed because "the node daemon failed unexpectedly"."""
    (bundle / "t1").write_text("3")
    runtime = OciRuntime(tmp_path / "state", tmp_path / "run", "/swarm-of-a-test")
    with monkeypatch.context() as full:
        full.setattr(Path, "read_text", refused)
        for look in (runtime.state, runtime.start):
            with pytest.raises(InternalError, match="t1 ended cannot be read: Too many open files"):
                await look("t1")
    state = await runtime.state("t1")
    assert state is not None and state.exit_code == 3


async def test_a_container_that_cannot_be_let_go_on_is_told_in_a_sentence(
    tmp_path: Path, bundle: Path, monitor: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, as it was about to be started."""
    runtime = OciRuntime(tmp_path / "state", tmp_path / "run", "/swarm-of-a-test", "/usr/bin/runc")
    monkeypatch.setattr(runtime, "_programs", lambda: (Path("conmon"), Path("runc"), None))
    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(InternalError, match="t1 cannot be started: Too many open files"):
        await runtime.start("t1")


async def test_a_process_that_cannot_be_waited_for_has_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting takes a further descriptor; where there was none, the container was stopped."""
    found = processes.find(os.getpid(), lambda _: True)
    assert found is not None
    with found, monkeypatch.context() as full:
        full.setattr(os, "dup", refused)
        with pytest.raises(InternalError, match="Too many open files"):
            await found.ended()


def test_a_process_that_has_ended_is_not_found() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert processes.find(process.pid, lambda _: True) is None
    assert processes.find(0, lambda _: True) is None
    assert processes.find(os.getpid(), lambda _: False) is None


def test_a_search_that_fails_keeps_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look of a daemon that lacks descriptors would cost it one more."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(InternalError):
        processes.find(os.getpid(), lambda _: True)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
