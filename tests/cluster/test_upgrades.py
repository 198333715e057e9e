"""From this version to the next, one manager at a time, while clients write; and what happens to a manager that goes back."""

from __future__ import annotations

import os
import threading
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import tests.support
from tests.support.lab import CommandFailed, TestLab, eventually

NEXT_VERSION = Path(tests.support.__file__).parent / "next_version"


class Writer:
    """Creates networks one after another until it is left; `acknowledged` are those that the managers confirmed."""

    def __init__(self, lab: TestLab) -> None:
        self.acknowledged: list[str] = []
        self.failed = 0
        self._lab = lab
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)

    def _write(self) -> None:
        for number in count():
            if self._leave.is_set():
                return
            name = f"written-{number}"
            done = self._lab.run("network", "create", "-d", "overlay", name)
            if done.returncode == 0:
                self.acknowledged.append(name)
            else:
                self.failed += 1

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._leave.set()
        self._thread.join(60)


def restart(lab: TestLab, host: str, *, newer: bool) -> None:
    """The host comes back with this version or the next one. Commands that run meanwhile do not mind."""
    lab.kill(host)
    if newer:
        os.environ["PYTHONPATH"] = str(NEXT_VERSION)
    try:
        lab.start(host)
    finally:
        os.environ.pop("PYTHONPATH", None)


def level(lab: TestLab, directory: Path) -> int:
    """The feature level; 0 where it is higher than what this version can read."""
    file = directory / "state"
    file.unlink(missing_ok=True)
    try:
        lab.swarmctl("swarm", "snapshot", "save", str(file))
    except CommandFailed as failed:
        assert "update it" in failed.done.stderr, failed
        return 0
    return int(lab.json("swarm", "snapshot", "inspect", str(file))["feature_level"])


def all_managers_answer(lab: TestLab) -> bool:
    return all(lab.nodes()[host.name].get("manager_status") in ("Leader", "Reachable") for host in lab.layout.managers)


def test_an_upgrade_under_load_loses_no_write_and_an_older_manager_stops(
    own_lab: TestLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = own_lab
    monkeypatch.delenv("PYTHONPATH", raising=False)
    followers = [host.name for host in lab.layout.managers if host.name != lab.leader()]
    order = [*followers, lab.leader()]
    with Writer(lab) as writer:
        for name in order[:2]:
            restart(lab, name, newer=True)
            eventually(lambda: all_managers_answer(lab), timeout=60)
            eventually(lambda: level(lab, tmp_path) == 1)
        restart(lab, order[2], newer=True)
        eventually(lambda: all_managers_answer(lab), timeout=60)
        eventually(lambda: level(lab, tmp_path) == 0, timeout=60)
        before = len(writer.acknowledged)
        eventually(lambda: len(writer.acknowledged) > before + 3, timeout=60)

        # Back to the older program: it cannot read what was written since, and says so.
        restart(lab, order[0], newer=False)
        log = lab.host(order[0]).log
        eventually(lambda: "exit code 12" in log.read_text(), timeout=60)
        assert "update it" in log.read_text()
        before = len(writer.acknowledged)
        eventually(lambda: len(writer.acknowledged) > before + 3, timeout=60)
        restart(lab, order[0], newer=True)
        eventually(lambda: all_managers_answer(lab), timeout=60)
    assert writer.acknowledged
    for host in lab.layout.managers:
        shown = lab.swarmctl("network", "ls", "--format", "json", node=host.name)
        missing = [name for name in writer.acknowledged if f'"{name}"' not in shown]
        assert not missing, f"{host.name}: {missing}"
    assert all(node["status"]["state"] == "ready" for node in lab.nodes().values())
