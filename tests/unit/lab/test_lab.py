"""What is refused before anything is built, and what is said where there is nothing to remove."""

from __future__ import annotations

from pathlib import Path

import pytest
from swarm import labs
from swarm.errors import InvalidArgument

from agent.node import options
from orchestrator.lab import lab


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


async def test_to_remove_a_lab_that_is_not_there_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    await lab.down("t-nowhere", said.append)
    (tmp_path / "run" / "other").mkdir()
    (tmp_path / "run" / "other" / "lab.json").touch()
    await lab.down("t-nowhere", said.append)
    words = "There is no lab 't-nowhere' on this machine"
    assert said == [words, f"{words}; there is other"]
