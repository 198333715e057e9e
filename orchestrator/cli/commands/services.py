"""`swarmctl service ls | ps | inspect | rm`."""

from __future__ import annotations

import typer
from swarm.errors import NotFound
from swarm.v1 import control_pb2 as control
from swarm.v1 import types_pb2 as types

from orchestrator.cli import output, words
from orchestrator.cli.invocation import (
    PAGE_SIZE,
    FilterFlag,
    Services,
    filters,
    for_each,
    inspect_each,
    listed,
    reading,
    session,
)
from orchestrator.cli.lazy import takes
from orchestrator.cli.messages import as_json
from orchestrator.cli.output import Cell, InspectOptions, SwarmListOptions
from orchestrator.cli.parsing import ports
from orchestrator.cli.task_table import print_tasks

COLUMNS = ("ID", "NAME", "MODE", "REPLICAS", "IMAGE", "PORTS")


@takes(SwarmListOptions)
def ls(context: typer.Context, filter_: FilterFlag = None, *, options: SwarmListOptions) -> None:
    """List services."""
    wanted = filters(filter_)
    pages = listed(reading(context, options.stale), lambda stub: stub.ListServices, wanted)
    found = [summary for page in pages for summary in page.services]
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


@takes(SwarmListOptions)
def ps(context: typer.Context, services: Services, filter_: FilterFlag = None, *, options: SwarmListOptions) -> None:
    """List the tasks of services, with their history."""
    wanted = filters(filter_)
    managers = reading(context, options.stale)
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

    managers = reading(context, options.stale)

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


def rm(context: typer.Context, services: Services) -> None:
    """Remove services and their tasks."""
    managers = session(context).control()

    def remove(reference: str) -> None:
        managers.call(lambda stub: stub.RemoveService, control.RemoveRequest(reference=reference))
        output.line(reference)

    for_each(services, remove)
