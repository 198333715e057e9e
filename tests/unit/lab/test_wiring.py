"""Looking at control groups while containers come and go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

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
