"""One agent's session, as all of the dispatcher sees it: who, what was said, what is to be sent."""

from __future__ import annotations

from dataclasses import dataclass, field

from swarm.v1 import dispatcher_pb2 as dispatcher

from orchestrator.dispatcher.outbox import Outbox

NO_MANAGER = "this node is no manager any more; try another one"


@dataclass
class Session:
    """One agent's stream, while it lasts."""

    node_id: str
    session_id: str
    hello: dispatcher.SessionHello
    outbox: Outbox
    acknowledged: int = 0  # the index that the agent has programmed
    to_program: int = 0  # the last index sent that changed its endpoint table
    settings: dispatcher.SessionSettings = field(default_factory=dispatcher.SessionSettings)
    leaving: bool = False  # the node leaves the swarm; it goes on reporting how its tasks end

    @property
    def reporter(self) -> str:
        """Whom the status queue acknowledges to."""
        return f"session/{self.session_id}"

    def programmed(self, index: int) -> int:
        """The index up to which the agent holds everything that concerns it, where our mirrors are at `index`."""
        return index if self.acknowledged >= self.to_program else self.acknowledged
