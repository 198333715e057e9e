"""What `swarm snapshot` says of what it saved, found and restored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from swarm.errors import Unavailable
from swarm.v1 import control_pb2 as control
from swarm.v1 import node_pb2 as node

from orchestrator.cli.commands import snapshots
from tests.unit.cli.conftest import Result, Script

Run = Callable[..., Result]


def test_a_member_gives_up_its_state_only_when_told_so(script: Script, swarmctl: Run) -> None:
    script.answers["GetState"] = node.LocalState(state="active", node_id="m1")
    script.answers["Restore"] = node.RestoreResponse(index=7, services=1, node_id="m1")
    refused = swarmctl("swarm", "snapshot", "restore", "/tmp/file")
    assert refused.code == 10  # the same request is right on another host
    assert not script.asked("Restore")
    done = swarmctl("swarm", "snapshot", "restore", "--force", "/tmp/file")
    assert done.out == "Restored entry 7 with 1 service; this host, m1, is the manager.\n"


def test_a_snapshot_whose_sending_broke_is_of_one_manager_only(
    script: Script, swarmctl: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`swarm snapshot save` failed, and called the snapshot damaged, where the leader was lost while it was sent: what the next
    one sent from its beginning was put behind the part that had come."""
    script.answers["SaveSnapshot"] = lambda _: (
        [control.SnapshotChunk(data=b"half, longer"), Unavailable("the leader was lost")]
        if len(script.asked("SaveSnapshot")) == 1
        else [control.SnapshotChunk(data=b"the whole")]
    )
    monkeypatch.setattr(snapshots, "read", lambda file: {"services": 1, "nodes": 1, "index": 7})
    saved = tmp_path / "saved"
    assert swarmctl("swarm", "snapshot", "save", str(saved)).code == 0
    assert saved.read_bytes() == b"the whole"


def test_what_a_snapshot_holds_is_counted_in_words(
    swarmctl: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    held: dict[str, Any] = {"services": 1, "tasks": 3, "nodes": 1, "networks": 2, "managers": [], "state_bytes": 9}
    held |= {"cluster_name": "default", "cluster_id": "c", "epoch": 1, "feature_level": 1, "index": 7, "term": 2}
    monkeypatch.setattr(snapshots, "read", lambda file: held)
    lines = swarmctl("swarm", "snapshot", "inspect", str(tmp_path / "file")).lines
    assert lines[-1] == "Objects:   1 service, 3 tasks, 1 node, 2 networks"
