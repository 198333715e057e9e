"""A member that is held by its disk goes on saying that it is there, for a while."""

from __future__ import annotations

from swarm.clock import ManualClock
from swarm.v1 import raft_pb2 as pb

from orchestrator.raft.presence import LONGEST, Presence


def test_it_speaks_only_while_the_disk_holds_the_member_for_long() -> None:
    clock, sent = ManualClock(), []

    def transmit(peer: str, message: pb.RaftMessage) -> bool:
        sent.append((peer, message.append_entries.term, message.append_entries.presence_only))
        return True

    message = pb.RaftMessage(append_entries=pb.AppendEntries(term=7, presence_only=True))
    presence = Presence(transmit, 0.05, clock.monotonic)
    presence.speak()
    presence.begin(["b", "c"], message)
    presence.speak()
    assert sent == []
    clock.advance(0.06)
    presence.speak()
    assert sent == [("b", 7, True), ("c", 7, True)]
    clock.advance(LONGEST)
    presence.speak()
    assert len(sent) == 2  # a disk that hangs for good costs the leadership
    presence.end()
    presence.begin(["b"], message)
    presence.end()
    clock.advance(0.06)
    presence.speak()
    assert len(sent) == 2
