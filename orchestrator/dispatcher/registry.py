"""One session for each node id: the leader's rules for who wins.

An agent raises its boot counter, on disk, at each start. So of two sessions of one node id the higher counter is the newer
process; the same boot id is the same process that came back, perhaps to another manager; and two boot ids with the same
counter are two hosts that run copies of one state directory. One such meeting may be a restored backup; when both come
back alternately, it is a clone, and the later claimant is told so. Pure: claims in, verdicts out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from swarm.v1 import dispatcher_pb2 as dispatcher


@dataclass(frozen=True)
class Claim:
    """A node's session as announced by the manager `via` (empty: the leader itself). `session_id` starts with the time of
    its beginning, so that two announcements of old sessions can be ordered."""

    node_id: str
    session_id: str
    boot_id: str
    boot_counter: int
    via: str
    resumed: bool = False  # it began before it was announced to this leader


@dataclass(frozen=True)
class Verdict:
    """`loser` is to be ended with `reason`; None where nobody lost. `accepted` says whether the claim holds now."""

    accepted: bool
    loser: Claim | None = None
    reason: dispatcher.SessionEndReason.ValueType = dispatcher.SESSION_END_REASON_UNSPECIFIED
    message: str = ""


@dataclass
class _History:
    holder: Claim | None = None
    counter: int = -1
    boots: set[str] = field(default_factory=set)  # that claimed `counter` and lost it again


@dataclass
class SessionRegistry:
    _nodes: dict[str, _History] = field(default_factory=dict)

    def holder(self, node_id: str) -> Claim | None:
        history = self._nodes.get(node_id)
        return history.holder if history is not None else None

    def claim(self, claim: Claim) -> Verdict:
        """A node's session began, or was announced again."""
        history = self._nodes.setdefault(claim.node_id, _History())
        holder = history.holder
        verdict = self._decide(history, holder, claim)
        if verdict.accepted:
            if claim.boot_counter != history.counter:
                history.counter, history.boots = claim.boot_counter, set()
            elif holder is not None and holder.boot_id != claim.boot_id:
                history.boots.add(holder.boot_id)
            history.holder = claim
        return verdict

    @staticmethod
    def _decide(history: _History, holder: Claim | None, claim: Claim) -> Verdict:
        if holder is None or holder.session_id == claim.session_id:
            return Verdict(True)
        same_boot = claim.boot_id == holder.boot_id
        if claim.boot_counter == holder.boot_counter and not same_boot and claim.boot_id in history.boots:
            return Verdict(
                False,
                claim,
                dispatcher.SESSION_END_REASON_CLONED,
                f"two hosts run the state directory of node {claim.node_id}; "
                "remove the state directory of one of them and let that host join by itself",
            )
        older_process = claim.boot_counter < holder.boot_counter
        older_session = same_boot and claim.resumed and claim.session_id < holder.session_id
        if older_process or older_session:
            return _superseded(False, claim, same_boot)
        return _superseded(True, holder, same_boot)

    def end(self, node_id: str, session_id: str) -> bool:
        """A session ended; returns whether it was the one that counted."""
        history = self._nodes.get(node_id)
        if history is None or history.holder is None or history.holder.session_id != session_id:
            return False
        history.holder = None
        return True

    def end_via(self, manager_id: str) -> list[Claim]:
        """The connection to a manager broke: its sessions no longer count. Returns them."""
        ended = [h.holder for h in self._nodes.values() if h.holder is not None and h.holder.via == manager_id]
        for claim in ended:
            self._nodes[claim.node_id].holder = None
        return ended

    def known(self) -> list[str]:
        """The nodes of which something is remembered."""
        return list(self._nodes)

    def forget(self, node_id: str) -> None:
        self._nodes.pop(node_id, None)

    def __len__(self) -> int:
        return sum(1 for history in self._nodes.values() if history.holder is not None)


def _superseded(accepted: bool, loser: Claim, same_boot: bool) -> Verdict:
    if same_boot:  # not a conflict: the agent went to another manager, and may come back at once
        return Verdict(accepted, loser, message=f"the agent of node {loser.node_id} opened another session")
    return Verdict(
        accepted,
        loser,
        dispatcher.SESSION_END_REASON_SUPERSEDED,
        f"a newer session of node {loser.node_id} began: another daemon runs with this node's identity "
        "(where its state directory was copied to, let the host leave and join anew)",
    )
