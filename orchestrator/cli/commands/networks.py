"""`swarmctl network create | ls | inspect | rm`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from swarm.errors import InvalidArgument
from swarm.v1 import control_pb2 as control
from swarm.v1 import types_pb2 as types

from orchestrator.cli import output, words
from orchestrator.cli.invocation import (
    FilterFlag,
    Networks,
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
from orchestrator.cli.parsing import quantities
from orchestrator.cli.parsing.fields import assignments, labels
from orchestrator.cli.pretty import network_lines

COLUMNS = ("NETWORK ID", "NAME", "DRIVER", "SCOPE", "SUBNET")
MAX_MTU = 65535
# Both spellings set the field of their own.
_MTU_OPTIONS = ("mtu", "com.docker.network.driver.mtu")


@dataclass
class NetworkFlags:
    """The flags of `network create`."""

    driver: Annotated[str, typer.Option("--driver", "-d", metavar="overlay", help="Kind of network")] = "overlay"
    subnet: Annotated[
        list[str] | None, typer.Option("--subnet", metavar="CIDR", help="Default: chosen from the swarm's pools")
    ] = None
    gateway: Annotated[
        list[str] | None, typer.Option("--gateway", metavar="ADDRESS", help="Default: the subnet's first address")
    ] = None
    internal: Annotated[bool, typer.Option("--internal", help="No way outside")] = False
    attachable: Annotated[bool, typer.Option("--attachable", help="Containers outside services may join")] = False
    ingress: Annotated[bool, typer.Option("--ingress", help="The network of the published ports")] = False
    label: Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Label")] = None
    opt: Annotated[list[str] | None, typer.Option("--opt", "-o", metavar="KEY=VALUE", help="Driver option")] = None
    scope: Annotated[str, typer.Option("--scope", metavar="swarm", help="Accepted for compatibility")] = "swarm"


@takes(NetworkFlags)
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NETWORK", help="Name")],
    *,
    options: NetworkFlags,
) -> None:
    """Create an overlay network."""
    request = control.CreateNetworkRequest(spec=new_spec(name, options))
    answer = session(context).control().call(lambda stub: stub.CreateNetwork, request)
    output.line(answer.network.id)


def new_spec(name: str, options: NetworkFlags) -> types.NetworkSpec:
    """The spec that the flags describe. Raises InvalidArgument."""
    for flag, values in (("--subnet", options.subnet), ("--gateway", options.gateway)):
        if len(values or ()) > 1:
            raise InvalidArgument(f"{flag} was given {len(values or ())} times: a network has one subnet; give it once")
    if options.scope != "swarm":
        raise InvalidArgument(f"--scope {options.scope!r}: networks reach over the whole swarm; leave the flag out")
    driver_options = assignments(options.opt or (), "--opt")
    mtu = 0
    for key in _MTU_OPTIONS:
        if key in driver_options:
            mtu = quantities.count(driver_options.pop(key), f"--opt {key}", MAX_MTU)
    return types.NetworkSpec(
        name=name,
        labels=labels(options.label or (), "--label"),
        driver=options.driver,
        subnet=(options.subnet or [""])[0],
        gateway=(options.gateway or [""])[0],
        internal=options.internal,
        attachable=options.attachable,
        ingress=options.ingress,
        mtu=mtu,
        options=driver_options,
    )


@takes(SwarmListOptions)
def ls(context: typer.Context, filter_: FilterFlag = None, *, options: SwarmListOptions) -> None:
    """List networks."""
    wanted = filters(filter_)
    pages = listed(reading(context, options.stale), lambda stub: stub.ListNetworks, wanted)
    found = [network for page in pages for network in page.networks]
    output.print_list(
        options,
        COLUMNS,
        sorted(found, key=lambda network: network.spec.name),
        row=lambda network: [
            words.short_id(network.id, options.no_trunc),
            Cell(network.spec.name, "bold"),
            network.spec.driver or "overlay",
            "swarm",
            network.subnet or network.spec.subnet,
        ],
        identity=lambda network: words.short_id(network.id, options.no_trunc),
        document=as_json,
    )


@takes(InspectOptions)
def inspect(context: typer.Context, networks: Networks, *, options: InspectOptions) -> None:
    """Show networks in full."""
    managers = reading(context, options.stale)

    def get(reference: str) -> control.GetNetworkResponse:
        return managers.call(lambda stub: stub.GetNetwork, control.GetRequest(reference=reference))

    inspect_each(networks, get, document=as_json, pretty=network_lines if options.pretty else None)


def rm(context: typer.Context, networks: Networks) -> None:
    """Remove networks."""
    managers = session(context).control()

    def remove(reference: str) -> None:
        managers.call(lambda stub: stub.RemoveNetwork, control.RemoveRequest(reference=reference))
        output.line(reference)

    for_each(networks, remove)
