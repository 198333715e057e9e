"""What the monitor and the OCI runtime print becomes a sentence."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from swarm.errors import FailedPrecondition, InternalError, NotFound, ResourceExhausted, SwarmError

from agent.runtime import monitor


@pytest.mark.parametrize(
    ("message", "kind", "sentence"),
    [
        (
            'time="2026-11-21T11:14:13Z" level=error msg="runc create failed: unable to start container process: exec: '
            '\\"nothere\\": executable file not found in $PATH"\n',
            NotFound,
            'the command is not in the image: exec: "nothere": executable file not found in $PATH',
        ),
        (
            'time="2026-11-21T11:14:14Z" level=error msg="runc create failed: unable to start container process: exec: '
            '\\"a\\\\\\"b\\": executable file not found in $PATH"\n',
            NotFound,
            'the command is not in the image: exec: "a\\"b": executable file not found in $PATH',
        ),
        (
            'time="2026" level=warning msg="odd"\n'
            'time="2026" level=error msg="runc create failed: unable to start container process: '
            'exec: \\"/x\\": permission denied',
            FailedPrecondition,
            'the command cannot be executed: exec: "/x": permission denied',
        ),
        (
            'time="2026" level=error msg="runc create failed: unable to start container process: error during container '
            'init: mkdir /etc/passwd:\\nnot a directory"\n',
            InternalError,
            "the container cannot be created: mkdir /etc/passwd: not a directory",
        ),
        ("open /x: no space left on device", ResourceExhausted, "the disk is full: open /x: no space left on device"),
        (
            'unable to start container process: exec: "/data": permission denied',
            FailedPrecondition,
            'the command cannot be executed: exec: "/data": permission denied',
        ),
        (
            'error mounting "/a" to rootfs at "/b": not a directory',
            FailedPrecondition,
            'a mount failed: error mounting "/a" to rootfs at "/b": not a directory',
        ),
        ("", InternalError, "the container cannot be created: the monitor ended without a word"),
    ],
)
def test_what_the_runtime_prints_becomes_a_sentence(message: str, kind: type[SwarmError], sentence: str) -> None:
    error = monitor.explain(message)
    assert type(error) is kind and str(error) == sentence


async def test_a_start_without_descriptors_keeps_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each container that could not be made because swarmd was short of descriptors took two more of them for good."""
    pipe, opened = os.pipe, list[int]()

    def short() -> tuple[int, int]:
        if opened:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        opened.extend(pipe())
        return opened[0], opened[1]

    monkeypatch.setattr(os, "pipe", short)
    with pytest.raises(OSError, match="Too many open files"):
        await monitor.start(["conmon"], monitor.MonitorFiles(tmp_path, tmp_path, tmp_path), lambda _: None)
    assert not any(Path(f"/proc/self/fd/{descriptor}").exists() for descriptor in opened)
