"""What one agent is sent, in which order, and that a slow one costs little."""

from __future__ import annotations

import asyncio

import pytest
from swarm.v1 import dispatcher_pb2 as dispatcher

from orchestrator.dispatcher import outbox as module
from orchestrator.dispatcher import wire
from orchestrator.dispatcher.outbox import Outbox


def peer(node_id: str, name: str = "") -> bytes:
    return wire.changed(dispatcher.AssignedObject(peer=dispatcher.NodePeer(node_id=node_id, name=name)))


def made() -> Outbox:
    return Outbox(dispatcher.SessionStart(session_id="s1"), lambda: (1, 10, [peer("whole")]))


def said(outbox: Outbox) -> list[dispatcher.ManagerMessage]:
    return [dispatcher.ManagerMessage.FromString(data) for data in outbox.take()]


def kinds(messages: list[dispatcher.ManagerMessage]) -> list[str | None]:
    return [message.WhichOneof("message") for message in messages]


def test_the_start_comes_first_and_then_the_whole_mirror() -> None:
    outbox = made()
    outbox.watermark(5)
    outbox.acknowledge(3)
    messages = said(outbox)
    assert kinds(messages) == ["start", "assignments", "status_ack", "watermark"]
    assert messages[1].assignments.complete
    assert said(outbox) == []


def test_changes_that_come_before_the_mirror_was_sent_are_part_of_it() -> None:
    outbox = made()
    outbox.add(1, 8, {wire.peer_key("n1"): peer("n1")})
    assert kinds(said(outbox)) == ["start", "assignments"]


def test_of_changes_and_numbers_the_newest_are_sent_once() -> None:
    outbox = made()
    said(outbox)
    outbox.add(1, 11, {wire.peer_key("n1"): peer("n1", "old"), wire.peer_key("n2"): peer("n2")})
    outbox.add(1, 12, {wire.peer_key("n1"): peer("n1", "new"), wire.peer_key("n2"): wire.removed(wire.peer_key("n2"))})
    for number in (4, 9, 7):
        outbox.acknowledge(number)
        outbox.watermark(number)
    assignments, ack, watermark = said(outbox)
    assert assignments.assignments.index == 12
    assert [change.peer.name for change in assignments.assignments.changes] == ["new"]
    assert [removal.key for removal in assignments.assignments.removals] == ["n2"]
    assert (ack.status_ack.sequence, watermark.watermark.index) == (9, 9)


def test_an_agent_that_does_not_read_gets_its_whole_mirror_instead() -> None:
    outbox = made()
    said(outbox)
    large = peer("n1", "x" * (module.LIMIT_BYTES // 3))
    for index in range(11, 15):
        outbox.add(1, index, {wire.peer_key(f"n{index}"): large})
    (message,) = said(outbox)
    assert message.assignments.complete
    assert [change.peer.node_id for change in message.assignments.changes] == ["whole"]


def test_the_end_comes_at_once_and_last() -> None:
    outbox = made()
    said(outbox)
    outbox.add(1, 11, {wire.peer_key("n1"): peer("n1")})
    outbox.end(dispatcher.SESSION_END_REASON_NO_LEADER, "first")
    outbox.end(dispatcher.SESSION_END_REASON_REMOVED, "second")
    (message,) = said(outbox)
    assert (message.end.reason, message.end.message) == (dispatcher.SESSION_END_REASON_NO_LEADER, "first")


async def test_endpoints_that_begin_to_serve_wait_for_one_another_and_for_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    outbox = made()
    said(outbox)

    def serve(index: int, name: str, *, may_wait: bool = True) -> None:
        outbox.add(1, index, {wire.peer_key(name): peer(name)}, may_wait=may_wait)

    serve(11, "n1")
    assert kinds(said(outbox)) == ["assignments"], "the first goes at once"
    serve(12, "n2")
    serve(13, "n3")
    outbox.acknowledge(7)
    assert kinds(said(outbox)) == ["status_ack"], "an acknowledgement does not take them along"
    async with asyncio.timeout(2):
        (data,) = await outbox.next()
    message = dispatcher.ManagerMessage.FromString(data)
    assert message.assignments.index == 13
    assert [change.peer.node_id for change in message.assignments.changes] == ["n2", "n3"]
    serve(14, "n4")
    assert said(outbox) == []
    serve(15, "n5", may_wait=False)
    (message,) = said(outbox)
    assert [change.peer.node_id for change in message.assignments.changes] == ["n4", "n5"], (
        "what is urgent takes them along"
    )


async def test_a_watermark_never_overtakes_changes_that_wait() -> None:
    outbox = made()
    said(outbox)
    for index in (11, 12):
        outbox.add(1, index, {wire.peer_key(f"n{index}"): peer(f"n{index}")}, may_wait=True)
        said(outbox) if index == 11 else None
    outbox.watermark(12)
    assert kinds(said(outbox)) == ["assignments", "watermark"]


async def test_after_the_end_there_is_nothing_more() -> None:
    outbox = made()
    outbox.end(dispatcher.SESSION_END_REASON_REMOVED, "")
    assert len(await outbox.next()) == 1
    assert await outbox.next() == []


def test_settings_before_the_start_are_part_of_it() -> None:
    outbox = made()
    outbox.settings(dispatcher.SessionSettings(default_registry="r"))
    assert said(outbox)[0].start.settings.default_registry == "r"
    outbox.settings(dispatcher.SessionSettings(default_registry="q"))
    assert said(outbox)[0].settings.default_registry == "q"
