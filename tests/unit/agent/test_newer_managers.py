"""What an agent makes of managers that are newer than itself."""

from __future__ import annotations

from swarm.v1 import dispatcher_pb2 as dispatcher

from agent.session.mirror import Mirror
from tests.unit.agent.fakes import assignments, make_task


def test_the_removal_of_an_unknown_kind_is_passed_over() -> None:
    """Half-way through an upgrade a manager removed what this version does not know: the node was down until swarmd was
    restarted, and its state said `the node daemon failed unexpectedly: KeyError(99)`."""
    mirror = Mirror()
    mirror.receive(assignments(1, make_task("t1"), complete=True))
    unknown = dispatcher.AssignedKey.FromString(b"\x08\x63\x12\x01x")  # kind 99, key "x"
    known = dispatcher.AssignedKey(kind=dispatcher.ASSIGNED_KIND_TASK, key="t1")
    mirror.receive(assignments(2, unknown, known))
    assert mirror.tasks == {}
