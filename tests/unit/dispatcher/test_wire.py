"""Hand-made bytes parse as the messages that they stand for."""

from __future__ import annotations

from swarm.v1 import dispatcher_pb2 as dispatcher

from orchestrator.dispatcher import wire


def parsed(data: bytes) -> dispatcher.Assignments:
    message = dispatcher.ManagerMessage.FromString(data)
    assert message.SerializeToString() == data
    return message.assignments


def test_changes_and_removals_arrive_as_they_were() -> None:
    peer = dispatcher.AssignedObject(peer=dispatcher.NodePeer(node_id="n1", name="x" * 300))
    fragments = [wire.changed(peer), wire.removed(wire.endpoint_key("net", "t1"))]
    (data,) = wire.messages(fragments, epoch=3, index=1 << 40, complete=True)
    assignments = dispatcher.ManagerMessage.FromString(data).assignments
    assert (assignments.epoch, assignments.index, assignments.complete, assignments.more) == (3, 1 << 40, True, False)
    assert list(assignments.changes) == [peer]
    assert list(assignments.removals) == [dispatcher.AssignedKey(kind=dispatcher.ASSIGNED_KIND_ENDPOINT, key="net/t1")]


def test_an_empty_set_is_one_message() -> None:
    (data,) = wire.messages([], epoch=1, index=5, complete=True)
    assert parsed(data) == dispatcher.Assignments(epoch=1, index=5, complete=True)


def test_a_large_set_is_cut_into_messages_below_the_limit() -> None:
    peers = [
        dispatcher.AssignedObject(peer=dispatcher.NodePeer(node_id=f"n{number}", name="x" * 1000))
        for number in range(5000)
    ]
    chunks = list(wire.messages(map(wire.changed, peers), epoch=1, index=9, complete=True))
    assert len(chunks) == 2
    assert all(len(chunk) < 4 << 20 for chunk in chunks)
    sets = [parsed(chunk) for chunk in chunks]
    assert [part.more for part in sets] == [True, False]
    assert all(part.complete and part.index == 9 for part in sets)
    assert [change for part in sets for change in part.changes] == peers
