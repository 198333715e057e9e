"""The one way to change a service: read it, change its spec, write with the version that was read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from swarm.errors import Conflict
from swarm.v1 import control_pb2 as control
from swarm.v1 import types_pb2 as types

from orchestrator.cli.waiting import RESOLVE_TIMEOUT, show_warnings

if TYPE_CHECKING:
    from swarm.v1.control_pb2_grpc import ControlStub

    from orchestrator.cli.caller import Caller

MAX_CONFLICTS = 5  # somebody else changed the service as often between our reading and writing


def change_service(
    managers: Caller[ControlStub],
    reference: str,
    change: Callable[[types.ServiceSpec], types.ServiceSpec],
    *,
    no_resolve_image: bool = False,
) -> types.Service:
    """Reads a service, and writes what `change` makes of its spec. Repeated where somebody else was quicker."""
    for attempt in range(MAX_CONFLICTS):
        read = managers.call(lambda stub: stub.GetService, control.GetRequest(reference=reference)).summary.service
        request = control.UpdateServiceRequest(
            reference=read.id,
            spec=change(read.spec),
            version=read.meta.version,
            no_resolve_image=no_resolve_image,
        )
        try:
            answer = managers.call(lambda stub: stub.UpdateService, request, timeout=RESOLVE_TIMEOUT)
        except Conflict:
            if attempt == MAX_CONFLICTS - 1:
                raise
            continue
        show_warnings(answer.warnings)
        return answer.service
    raise AssertionError("the loop returns or raises")


def roll_back(managers: Caller[ControlStub], reference: str) -> types.Service:
    """Sends a service back to its previous revision."""
    request = control.UpdateServiceRequest(reference=reference, rollback=True)
    answer = managers.call(lambda stub: stub.UpdateService, request)
    show_warnings(answer.warnings)
    return answer.service


def network_ids(managers: Caller[ControlStub], names: list[str]) -> dict[str, str]:
    """The id of each network: specs hold ids once they are stored."""
    return {
        name: managers.call(lambda stub: stub.GetNetwork, control.GetRequest(reference=name)).network.id
        for name in names
    }
