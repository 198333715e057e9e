"""What is refused before anything is built, and what is said where there is nothing to remove."""

from __future__ import annotations

import ipaddress
import shutil
from pathlib import Path

import pytest
from swarm import labs
from swarm.errors import InvalidArgument

from agent.node import options
from orchestrator.lab import lab, layout, wiring


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lab, "RUN_ROOT", tmp_path / "run")
    monkeypatch.setattr(lab, "STATE_ROOT", tmp_path / "state")
    monkeypatch.setattr(labs, "RUN_ROOT", tmp_path / "run")
    monkeypatch.setattr(lab, "_require_root", lambda: None)


async def test_an_unknown_log_level_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    """Found by a newcomer: the lab was built, then each daemon ended with its usage."""
    with pytest.raises(
        InvalidArgument, match="--log-level 'foo' is not known; write one of debug, info, warning, error"
    ):
        await lab.up("t-nowhere", 1, 0, print, log_level="foo")
    assert not list(tmp_path.iterdir())
    assert lab.LOG_LEVELS == options.LOG_LEVELS


async def test_a_lab_is_started_again_after_a_reboot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """/run is empty then, and with it the lab's description was gone: `lab up` and `./dev quickstart` took the disks of its
    hosts, with the swarm and all volumes on them, for useless leftovers and removed them without a question."""
    for module in (lab, layout):
        monkeypatch.setattr(module, "RUN_ROOT", tmp_path / "run")
        monkeypatch.setattr(module, "STATE_ROOT", tmp_path / "state")

    async def nothing(*_: object, **__: object) -> None:
        return

    async def no_subnets() -> list[ipaddress.IPv4Network]:
        return []

    for module, function in ((lab, "_power_on"), (lab, "form_swarm"), (lab, "wait_ready"), (wiring, "wire_switch")):
        monkeypatch.setattr(module, function, nothing)
    monkeypatch.setattr(wiring, "taken_subnets", no_subnets)
    before = await lab.up("t-reboot", 2, 0, lambda line: None)
    journal = before.host("m1").state_directory / "manager" / "raft" / "journal"
    journal.parent.mkdir(parents=True)
    journal.touch()
    shutil.rmtree(tmp_path / "run")
    beside = await lab.up("t-beside", 1, 0, lambda line: None)
    assert beside.subnet != before.subnet, "the cables of one would be the other's"
    assert await lab.up("t-reboot", 2, 0, lambda line: None) == before
    assert journal.exists()
    assert labs.described() == ["t-beside", "t-reboot"]


async def test_to_remove_a_lab_that_is_not_there_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    await lab.down("t-nowhere", said.append)
    (tmp_path / "run" / "other").mkdir()
    (tmp_path / "run" / "other" / "lab.json").touch()
    await lab.down("t-nowhere", said.append)
    words = "There is no lab 't-nowhere' on this machine"
    assert said == [words, f"{words}; there is other"]
