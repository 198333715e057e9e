"""What is refused before anything is built, and what is said where there is nothing to remove."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import shutil
from pathlib import Path

import pytest
from swarm import labs
from swarm.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument

from agent.node import options
from orchestrator.lab import lab, layout, wiring


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lab, "RUN_ROOT", tmp_path / "run")
    monkeypatch.setattr(lab, "STATE_ROOT", tmp_path / "state")
    monkeypatch.setattr(labs, "RUN_ROOT", tmp_path / "run")
    monkeypatch.setattr(lab, "require_root", lambda: None)


async def test_an_unknown_log_level_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    """Found by a newcomer: the lab was built, then each daemon ended with its usage."""
    with pytest.raises(
        InvalidArgument, match="--log-level 'foo' is not known; write one of debug, info, warning, error"
    ):
        await lab.up("t-nowhere", 1, 0, print, log_level="foo")
    assert not list(tmp_path.iterdir())
    assert lab.LOG_LEVELS == options.LOG_LEVELS


@pytest.fixture
def _unwired(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`up` describes the lab, and builds nothing of it; `down` leaves the machine's own links and settings alone."""
    for module in (lab, layout):
        monkeypatch.setattr(module, "RUN_ROOT", tmp_path / "run")
        monkeypatch.setattr(module, "STATE_ROOT", tmp_path / "state")

    async def nothing(*_: object, **__: object) -> None:
        return

    async def no_subnets() -> list[ipaddress.IPv4Network]:
        return []

    for function in ("_power_on", "form_swarm", "wait_ready"):
        monkeypatch.setattr(lab, function, nothing)
    for function in ("wire_switch", "unwire"):
        monkeypatch.setattr(wiring, function, nothing)
    monkeypatch.setattr(wiring, "taken_subnets", no_subnets)


@pytest.mark.usefixtures("_unwired")
async def test_a_lab_is_started_again_after_a_reboot(tmp_path: Path) -> None:
    """/run is empty then, and with it the lab's description was gone: `lab up` and `./dev quickstart` took the disks of its
    hosts, with the swarm and all volumes on them, for useless leftovers and removed them without a question."""
    before = await lab.up("t-reboot", 2, 0, lambda line: None)
    journal = before.host("m1").state_directory / "manager" / "raft" / "journal"
    journal.parent.mkdir(parents=True)
    journal.touch()
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(FailedPrecondition, match="start all of it with `swarmctl lab up --name t-reboot`"):
        await lab.start(before, before.host("m1"))
    beside = await lab.up("t-beside", 1, 0, lambda line: None)
    assert beside.subnet != before.subnet, "the cables of one would be the other's"
    assert await lab.up("t-reboot", 2, 0, lambda line: None) == before
    assert journal.exists()
    assert labs.described() == ["t-beside", "t-reboot"]


@pytest.mark.usefixtures("_unwired")
async def test_a_lab_is_started_by_one_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two `lab up` at once each started a daemon on every host, and one of them ended with "swarmd of m1 ended at once"; a
    `lab down` beside removed the directories of hosts that were just being started, and left mounts behind."""
    at_work = 0

    async def power_on(*_: object) -> None:
        nonlocal at_work
        at_work += 1
        assert at_work == 1
        await asyncio.sleep(0.2)
        assert (tmp_path / "run" / "t-once" / "lab.json").exists()
        at_work -= 1

    async def down_beside() -> None:
        await asyncio.sleep(0.1)
        await lab.down("t-once", lambda line: None)

    monkeypatch.setattr(lab, "_power_on", power_on)
    await asyncio.gather(*(lab.up("t-once", 1, 0, lambda line: None) for _ in range(2)), down_beside())


async def test_to_remove_a_lab_that_is_not_there_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    await lab.down("t-nowhere", said.append)
    (tmp_path / "run" / "other").mkdir()
    (tmp_path / "run" / "other" / "lab.json").touch()
    await lab.down("t-nowhere", said.append)
    words = "There is no lab 't-nowhere' on this machine"
    assert said == [words, f"{words}; there is other"]


async def test_only_who_waits_for_another_lab_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever took too long while a lab was built or removed (a file server's ETIMEDOUT is a TimeoutError too) was called
    "another lab is being built or removed on this machine; try again"."""
    monkeypatch.setattr(lab, "LOCK_TIMEOUT", 0.2)
    with pytest.raises(TimeoutError, match="the disk does not answer"):
        async with lab._exclusively():
            with pytest.raises(DeadlineExceeded, match="another lab is being built"):
                async with lab._exclusively():
                    pass
            raise TimeoutError(errno.ETIMEDOUT, "the disk does not answer")
