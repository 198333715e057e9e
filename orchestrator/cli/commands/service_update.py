"""`swarmctl service update`, and the one way to change a service: read, change, write with the version read."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer
from swarm.errors import Conflict, InvalidArgument
from swarm.v1 import control_pb2 as control
from swarm.v1 import types_pb2 as types

from orchestrator.cli import output, progress
from orchestrator.cli.commands.service_create import RESOLVE_TIMEOUT, show_warnings, wait_seconds
from orchestrator.cli.invocation import Service, session
from orchestrator.cli.lazy import takes
from orchestrator.cli.service_flags import UpdateFlags
from orchestrator.cli.service_specs import networks_named, updated_spec

if TYPE_CHECKING:
    from swarm.v1.control_pb2_grpc import ControlStub

    from orchestrator.cli.session import Caller

MAX_CONFLICTS = 5  # somebody else changed the service as often between our reading and writing


@takes(UpdateFlags)
def update(context: typer.Context, service: Service, *, options: UpdateFlags) -> None:
    """Change a service.

    Only what is named changes; tasks are replaced as the service's --update-… settings say.
    """
    seconds = wait_seconds(options)
    managers = session(context).control()
    if options.rollback:
        _refuse_more(options)
        changed = roll_back(managers, service)
    else:
        ids = network_ids(managers, networks_named(options))
        changed = change_service(
            managers,
            service,
            lambda spec: updated_spec(spec, options, environment=os.environ, network_ids=ids),
        )
    output.line(service)
    if not options.detach:
        progress.wait(managers, changed, rolling_back=options.rollback, quiet=options.quiet, timeout=seconds)


def _refuse_more(options: UpdateFlags) -> None:
    """Raises InvalidArgument where --rollback comes with a change."""
    plain = UpdateFlags(
        rollback=True,
        detach=options.detach,
        quiet=options.quiet,
        wait_timeout=options.wait_timeout,
        with_registry_auth=options.with_registry_auth,
    )
    if options != plain:
        raise InvalidArgument("--rollback returns to the previous revision as it was; give it without other changes")


def change_service(
    managers: Caller[ControlStub], reference: str, change: Callable[[types.ServiceSpec], types.ServiceSpec]
) -> types.Service:
    """Reads a service, and writes what `change` makes of its spec. Repeated where somebody else was quicker."""
    for attempt in range(MAX_CONFLICTS):
        read = managers.call(lambda stub: stub.GetService, control.GetRequest(reference=reference)).summary.service
        request = control.UpdateServiceRequest(reference=read.id, spec=change(read.spec), version=read.meta.version)
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
