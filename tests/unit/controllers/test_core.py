"""What the functional core takes in."""

from __future__ import annotations

import time

from swarm.v1.types_pb2 import NODE_STATE_DOWN, NODE_STATE_READY, Node, NodeStatus, Service, ServiceSpec

from orchestrator.controllers import ControlCore
from orchestrator.store import Create, Kind, ObjectChange, Snapshot


def test_the_loss_of_a_thousand_nodes_is_taken_in_at_once() -> None:
    """All services were looked through for each of them: the leader stood still for seconds just when it was needed."""
    services = [Service(id=f"s{number}", spec=ServiceSpec(name=f"s{number}")) for number in range(3000)]
    getattr(services[7].spec.mode, "global").SetInParent()
    snapshot = Snapshot().with_changes([Create(service) for service in services])
    lost = [
        ObjectChange(
            Kind.NODE,
            f"n{number}",
            Node(id=f"n{number}", status=NodeStatus(state=NODE_STATE_READY)),
            Node(id=f"n{number}", status=NodeStatus(state=NODE_STATE_DOWN)),
        )
        for number in range(1000)
    ]
    core = ControlCore(lambda: "x")
    began = time.process_time()
    core.touch(snapshot, lost)
    assert time.process_time() - began < 0.5
    assert core._services == {"s7"}
    assert core._nodes == {f"n{number}" for number in range(1000)}
