"""A manager that is recovered or restored while its node does something else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from swarm.errors import FailedPrecondition
from swarm.v1 import node_pb2 as node

from agent.node import recovery
from agent.node.membership import Membership
from agent.node.options import Options
from agent.node.recovery import Recovery


@pytest.mark.parametrize("what", ["recover", "restore"])
async def test_a_node_does_not_leave_while_its_manager_is_looked_at(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`swarm leave` in the seconds in which `swarm snapshot restore` found out whether there is a leader: the host got a new
    identity and a log, and was no member of a swarm all the same."""
    parts: Any = SimpleNamespace(options=Options(state=tmp_path / "state", run=tmp_path / "run"))
    membership = Membership(parts, lambda _: None)
    member: Any = SimpleNamespace(manager=object())
    membership.member = member

    async def look(_: object) -> None:
        async with membership.change("leaving the swarm"):
            membership.member = None

    monkeypatch.setattr(recovery, "_refuse_where_led", look)
    recovering = Recovery(membership)
    with pytest.raises(FailedPrecondition, match="just joining or leaving"):
        if what == "recover":
            await recovering.recover(dry_run=False)
        else:
            await recovering.restore(node.RestoreRequest(path="/snapshot"))
    assert membership.member is member
