"""Looking at control groups while containers come and go; namespaces and their links, without a fork."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from swarm.errors import InternalError

from orchestrator.lab import wiring


def test_a_group_that_vanishes_meanwhile_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the benchmark: a container's group went between two looks."""
    for name in ("stays", "goes"):
        (tmp_path / name / "inner").mkdir(parents=True)
    listed = Path.iterdir

    def vanishing(self: Path) -> Iterator[Path]:
        if self.name == "goes":
            raise FileNotFoundError(self)
        return listed(self)

    monkeypatch.setattr(Path, "iterdir", vanishing)
    assert wiring._with_children(tmp_path) == [tmp_path / "stays" / "inner", tmp_path / "stays", tmp_path]


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
async def test_links_are_made_without_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found in CI: a fork for a socket in a namespace never returned while gRPC's threads were at work."""

    def refuse() -> int:
        raise AssertionError("a process with gRPC's threads must not fork")

    monkeypatch.setattr(os, "fork", refuse)
    namespace = f"test-wiring-{uuid.uuid4().hex[:8]}"
    await wiring._add_namespace(namespace)
    try:
        async with wiring._netlink(namespace) as inside, wiring._netlink() as outside:
            await inside.link("add", ifname="br0", kind="bridge")
            await wiring._configure(inside, "br0", address="192.0.2.1/24")
            assert await wiring._index(inside, "br0") is not None
            assert await wiring._index(outside, "br0") is None
    finally:
        wiring._delete_namespace(namespace)
    assert not wiring.namespace_exists(namespace)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_mounts_are_found_beside_one_of_an_odd_name(tmp_path: Path) -> None:
    """`lab up` and `lab down` ended with a traceback (UnicodeDecodeError) while anything on the machine was mounted on a
    directory whose name is not UTF-8."""
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    odd.mkdir()
    (tmp_path / "lab").mkdir()
    code = "import sys, pathlib; from orchestrator.lab.wiring import cgroups_of, mounts_below"
    code += "; cgroups_of('/none'); print(mounts_below(pathlib.Path(sys.argv[1])))"
    script = b'mount -t tmpfs tmpfs "$1" && mount -t tmpfs tmpfs "$2" && exec "$3" -c "$4" "$2"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", odd, tmp_path / "lab", sys.executable, code],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout.strip() == str([str(tmp_path / "lab")]), done


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
async def test_a_namespace_that_is_gone_is_named() -> None:
    with pytest.raises(InternalError, match=r"cannot enter the namespace no-such-namespace"):
        async with wiring._netlink("no-such-namespace"):
            pass
    assert not wiring.namespace_exists("no-such-namespace")


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
async def test_the_file_of_a_namespace_that_a_reboot_ended_is_no_namespace() -> None:
    """Where /run is on a disk (a container, a small image), the files of a lab's namespaces outlive a reboot. `lab up` and `lab
    down` both ended with "cannot enter the namespace lab-default-switch: Invalid argument", whatever one tried."""
    namespace = f"test-wiring-{uuid.uuid4().hex[:8]}"
    Path("/run/netns").mkdir(exist_ok=True)
    file = Path("/run/netns") / namespace
    file.touch()
    try:
        assert not wiring.namespace_exists(namespace)
        await wiring._add_namespace(namespace)
        assert wiring.namespace_exists(namespace)
        async with wiring._netlink(namespace) as inside:
            assert await wiring._index(inside, "lo") is not None
        wiring._delete_namespace(namespace)
        file.touch()
        wiring._delete_namespace(namespace)
        assert not file.exists()
    finally:
        wiring._delete_namespace(namespace)
