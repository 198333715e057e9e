"""What the tick thread tells the event loop, and what the event loop looks up of it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from orchestrator.consensus import Leadership
from orchestrator.raft.configurations import Configurations
from orchestrator.raft.engine import MemberNode
from orchestrator.raft.node import _resolve
from tests.unit.raft.conftest import Lab, Manager


async def test_an_answer_arrives_behind_news_that_somebody_failed_to_take(lab: Lab) -> None:
    """A part of the manager raised when it heard of a new leader. A write that was committed at the same moment was answered
    only with the next one, or "may or may not have happened" when its time was up."""
    node = Manager(lab, "a", founder=True).node
    node._loop = asyncio.get_running_loop()

    def fails(_: Leadership) -> None:
        raise ValueError("a defect")

    node.on_leadership(fails)
    answer: asyncio.Future[str] = node._loop.create_future()
    node._to_loop(node._set_leadership, Leadership(1, "a", True, True))
    node._to_loop(_resolve, answer, "committed")
    assert await asyncio.wait_for(answer, 5) == "committed"


def test_members_may_come_and_go_while_somebody_asks_who_answers() -> None:
    """`swarmctl info` failed once in a while as a manager joined: "dictionary changed size during iteration"."""
    answers: dict[MemberNode, float] = {}

    class Moment(float):
        def __ge__(self, other: object) -> bool:
            answers[MemberNode(f"new{len(answers)}")] = 1.0  # the tick thread, between any two steps of this one
            return True

    answers.update({MemberNode("b"): Moment(1), MemberNode("c"): Moment(1)})
    core: Any = SimpleNamespace(
        clock=lambda: 1.0, timings=SimpleNamespace(quorum=0.8), own_id="a", last_response=answers
    )
    assert Configurations.reachable(core) == {"a", "b", "c"}
