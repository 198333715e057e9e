"""`swarmctl service ls | ps | inspect | scale | rollback | rm`."""

from __future__ import annotations

from typing import Annotated

import typer
from swarm.errors import InvalidArgument, NotFound
from swarm.v1 import control_pb2 as control
from swarm.v1 import types_pb2 as types

from orchestrator.cli import output, progress, words
from orchestrator.cli.commands.service_create import show_warnings, wait_seconds
from orchestrator.cli.commands.service_update import roll_back
from orchestrator.cli.invocation import (
    PAGE_SIZE,
    FilterFlag,
    Service,
    Services,
    filters,
    for_each,
    inspect_each,
    pages,
    session,
)
from orchestrator.cli.lazy import takes
from orchestrator.cli.messages import as_json
from orchestrator.cli.output import Cell, InspectOptions, ListOptions
from orchestrator.cli.parsing import ports
from orchestrator.cli.parsing.quantities import count
from orchestrator.cli.service_flags import WaitFlags
from orchestrator.cli.task_table import print_tasks

COLUMNS = ("ID", "NAME", "MODE", "REPLICAS", "IMAGE", "PORTS")


@takes(ListOptions)
def ls(context: typer.Context, filter_: FilterFlag = None, *, options: ListOptions) -> None:
    """List services."""
    wanted = filters(filter_)
    managers = session(context).control()
    found = [
        summary
        for page in pages(
            lambda token: managers.call(
                lambda stub: stub.ListServices,
                control.ListRequest(filters=wanted, page_size=PAGE_SIZE, page_token=token),
            )
        )
        for summary in page.services
    ]
    output.print_list(
        options,
        COLUMNS,
        sorted(found, key=lambda summary: summary.service.spec.name),
        row=lambda summary: service_row(summary, options.no_trunc),
        identity=lambda summary: words.short_id(summary.service.id, options.no_trunc),
        document=as_json,
    )


def service_row(summary: control.ServiceSummary, whole: bool) -> list[str | Cell]:
    """A line of `service ls`."""
    service = summary.service
    all_run = summary.running == summary.desired and summary.healthy >= summary.running
    style = "green" if all_run else "yellow" if summary.running else "red"
    return [
        words.short_id(service.id, whole),
        Cell(service.spec.name, "bold"),
        mode_of(service.spec),
        Cell(replicas_of(summary), style if summary.desired else ""),
        service.spec.task.container.image,
        ports.describe(ports_of(service)),
    ]


def mode_of(spec: types.ServiceSpec) -> str:
    return spec.mode.WhichOneof("mode") or "replicated"


def replicas_of(summary: control.ServiceSummary) -> str:
    """`3/3`; `3/3 (2 healthy)` while a running task's health is not certain."""
    text = f"{summary.running}/{summary.desired}"
    if summary.healthy < summary.running:
        text += f" ({summary.healthy} healthy)"
    most = summary.service.spec.task.placement.max_replicas_per_node
    if most:
        text += f" (max {most} per node)"
    if summary.service.removing:
        text += " (removing)"
    return text


def ports_of(service: types.Service) -> list[types.PortConfig]:
    """With the numbers that the swarm chose, once it has; ports in host mode are shown with the tasks."""
    found = service.published_ports or service.spec.ports
    return [port for port in found if port.mode != types.PUBLISH_MODE_HOST]


@takes(ListOptions)
def ps(context: typer.Context, services: Services, filter_: FilterFlag = None, *, options: ListOptions) -> None:
    """List the tasks of services, with their history."""
    wanted = filters(filter_)
    managers = session(context).control()
    ids: list[str] = []
    missing: list[NotFound] = []
    for reference in services:
        try:
            answer = managers.call(lambda stub: stub.GetService, control.GetRequest(reference=reference))
            ids.append(answer.summary.service.id)
        except NotFound as error:
            missing.append(error)
    if ids:
        print_tasks(managers, [*(control.Filter(key="service", value=one) for one in ids), *wanted], options)
    if missing:
        raise missing[0]


@takes(InspectOptions)
def inspect(context: typer.Context, services: Services, *, options: InspectOptions) -> None:
    """Show services in full."""
    from orchestrator.cli.pretty import service_lines

    managers = session(context).control()

    def get(reference: str) -> control.ServiceSummary:
        return managers.call(lambda stub: stub.GetService, control.GetRequest(reference=reference)).summary

    names = _network_names(managers) if options.pretty else {}
    inspect_each(
        services, get, document=as_json, pretty=(lambda one: service_lines(one, names)) if options.pretty else None
    )


def _network_names(managers: object) -> dict[str, str]:
    from typing import Any, cast

    answer = cast(Any, managers).call(lambda stub: stub.ListNetworks, control.ListRequest(page_size=PAGE_SIZE))
    return {network.id: network.spec.name for network in answer.networks}


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

    try:
        for_each(wanted, scale_one)
    finally:
        if not options.detach:
            for_each(changed, wait_one)


@takes(WaitFlags)
def rollback(context: typer.Context, service: Service, *, options: WaitFlags) -> None:
    """Return a service to its previous revision."""
    seconds = wait_seconds(options)
    managers = session(context).control()
    changed = roll_back(managers, service)
    output.line(service)
    if not options.detach:
        progress.wait(managers, changed, rolling_back=True, quiet=options.quiet, timeout=seconds)


def rm(context: typer.Context, services: Services) -> None:
    """Remove services and their tasks."""
    managers = session(context).control()

    def remove(reference: str) -> None:
        managers.call(lambda stub: stub.RemoveService, control.RemoveRequest(reference=reference))
        output.line(reference)

    for_each(services, remove)
