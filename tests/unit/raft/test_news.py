"""What the tick thread tells the event loop."""

from __future__ import annotations

import asyncio

from orchestrator.consensus import Leadership
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
