"""`swarmctl service scale | rollback`."""

from __future__ import annotations

from typing import Annotated

import typer
from swarm.errors import InvalidArgument
from swarm.v1 import control_pb2 as control
from swarm.v1 import types_pb2 as types

from orchestrator.cli import output, progress
from orchestrator.cli.invocation import Service, for_each, session
from orchestrator.cli.lazy import takes
from orchestrator.cli.parsing.quantities import count
from orchestrator.cli.service_changes import roll_back
from orchestrator.cli.waiting import WaitFlags, show_warnings, wait_seconds


@takes(WaitFlags)
def scale(
    context: typer.Context,
    scales: Annotated[list[str], typer.Argument(metavar="SERVICE=REPLICAS…", help="As in web=5")],
    *,
    options: WaitFlags,
) -> None:
    """Set the number of replicas of services."""
    wanted: dict[str, int] = {}
    for word in scales:
        name, equals, number = word.rpartition("=")
        if not name or not equals:
            raise InvalidArgument(f"{word!r} is not SERVICE=REPLICAS, as in web=5")
        wanted[name] = count(number, f"replicas of {name}:")
    seconds = wait_seconds(options)
    managers = session(context).control()
    changed: dict[str, types.Service] = {}

    def scale_one(name: str) -> None:
        # Version 0: whatever else of the service changes meanwhile, only the number is ours.
        request = control.UpdateServiceRequest(reference=name)
        request.spec.mode.replicated.replicas = wanted[name]
        answer = managers.call(lambda stub: stub.UpdateService, request)
        changed[name] = answer.service
        show_warnings(answer.warnings)
        output.line(f"{name} scaled to {wanted[name]}")

    def wait_one(name: str) -> None:
        progress.wait(managers, changed[name], quiet=options.quiet, timeout=seconds)

    failed: typer.Exit | None = None
    try:
        for_each(wanted, scale_one)
    except typer.Exit as some:  # the others are waited for all the same; not so after Ctrl-C
        failed = some
    try:
        if not options.detach:
            for_each(changed, wait_one)
    except typer.Exit as some:
        failed = failed or some
    if failed is not None:
        raise failed


@takes(WaitFlags)
def rollback(context: typer.Context, service: Service, *, options: WaitFlags) -> None:
    """Return a service's tasks to their previous spec. Replicas, labels and ports stay as they are."""
    seconds = wait_seconds(options)
    managers = session(context).control()
    changed = roll_back(managers, service)
    output.line(service)
    if not options.detach:
        progress.wait(managers, changed, rolling_back=True, quiet=options.quiet, timeout=seconds)
