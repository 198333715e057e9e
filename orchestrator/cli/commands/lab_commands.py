"""`swarmctl lab`: the commands, their options and what they print. What they do is in `orchestrator.lab`."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar

import typer
from swarm import labs
from swarm.errors import InvalidArgument
from swarm.labs import DEFAULT_LAB

from orchestrator.cli import output
from orchestrator.cli.invocation import for_each
from orchestrator.lab.layout import LabHost, LabLayout, load

T = TypeVar("T")
USUAL_MANAGERS, USUAL_WORKERS = 3, 2

app = typer.Typer(
    help="A whole swarm on this machine, each host a network namespace",
    no_args_is_help=True,
    rich_markup_mode=None,  # as the other groups' help: plain
    subcommand_metavar="COMMAND [ARGS]…",
)


def _chosen_name(context: typer.Context, name: str | None) -> str | None:
    """The lab that --name says, else the one of the program's own --lab."""
    source = context.get_parameter_source("name")
    chosen = getattr(context.find_root().obj, "lab", None)
    return chosen if chosen and (source is None or source.name != "COMMANDLINE") else name


def _host_names(context: typer.Context) -> list[str]:
    """For the shell's completion."""
    try:
        layout = _layout(context.params.get("name"))
    except Exception:  # noqa: BLE001 – a message here would land in the middle of somebody's command line
        return []
    return [host.name for host in layout.hosts]


# Which lab is built or removed is never a guess; which one is looked at or broken may be found.
Named = Annotated[
    str, typer.Option("--name", envvar="SWARM_LAB", metavar="NAME", callback=_chosen_name, help="Name of the lab")
]
Found = Annotated[
    str | None,
    typer.Option(
        "--name", envvar="SWARM_LAB", metavar="NAME", callback=_chosen_name,
        help="Name of the lab; needed where several run and none is called `default`",
    ),
]  # fmt: skip
Format = Annotated[str, typer.Option("--format", "-f", metavar="table|json", help="How to print")]
Host = Annotated[str, typer.Argument(metavar="HOST", help="A host of the lab: m1, w1 …", autocompletion=_host_names)]
Hosts = Annotated[
    list[str], typer.Argument(metavar="HOST…", help="Hosts of the lab: m1, w1 …", autocompletion=_host_names)
]


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def _layout(name: str | None) -> LabLayout:
    """The named lab, or the one that is meant without a name. Raises NotFound, or FailedPrecondition where it is a guess."""
    chosen = name or labs.implied(flag="--name") or DEFAULT_LAB
    layout = load(chosen)
    if layout is None:
        raise labs.no_lab(chosen)
    return layout


def _to_each(
    name: str | None, references: list[str], action: Callable[[LabLayout, LabHost], Coroutine[Any, Any, None]]
) -> None:
    layout = _layout(name)
    for_each(references, lambda reference: _run(action(layout, layout.host(reference))))


@app.command(short_help="Build a lab, or start again what is dead of it")
def up(
    name: Named = DEFAULT_LAB,
    managers: Annotated[
        int | None,
        typer.Option(metavar="N", help=f"Number of managers, {USUAL_MANAGERS} unless given; odd numbers make sense"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help=f"Number of workers, {USUAL_WORKERS} unless given")
    ] = None,
    log_level: Annotated[
        str, typer.Option(metavar="LEVEL", help="Of every daemon: debug, info, warning, error")
    ] = "info",
) -> None:
    """Build a lab and form a swarm of it; start again what is dead of one that is there.

    A lab that is there keeps its size, and a host that is in no swarm joins the one that the others are in.
    """
    from orchestrator.lab import lab

    there = load(name)
    if managers is None:
        managers = len(there.managers) if there is not None else USUAL_MANAGERS
    if workers is None:
        workers = len(there.hosts) - len(there.managers) if there is not None else USUAL_WORKERS
    layout = _run(lab.up(name, managers, workers, output.line, log_level=log_level))
    output.line(f"Lab {name!r} is up: {', '.join(f'{host.name} {host.address}' for host in layout.hosts)}")


@app.command(short_help="List the labs on this machine")
def ls(
    output_format: Format = "table",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print names only")] = False,
) -> None:
    """List the labs on this machine: how many of their hosts run, and their addresses."""
    output.check_format(output_format)
    found = [layout for name in labs.described() if (layout := load(name)) is not None]
    if quiet:
        for layout in found:
            output.line(layout.name)
        return
    running = {layout.name: labs.answering(labs.read_hosts(layout.name)) for layout in found}
    if output_format == "json":
        output.print_json(
            [
                {
                    "name": layout.name,
                    "subnet": str(layout.subnet),
                    "hosts": [
                        {
                            "name": host.name,
                            "role": host.role,
                            "address": host.address,
                            "running": host.name in running[layout.name],
                        }
                        for host in layout.hosts
                    ],
                }
                for layout in found
            ]
        )
        return
    output.table(
        ["NAME", "RUNNING", "ADDRESSES"],
        [
            [
                layout.name,
                f"{len(running[layout.name])} of {len(layout.hosts)}",
                f"{layout.hosts[0].address} to {layout.hosts[-1].address}",
            ]
            for layout in found
        ],
    )


@app.command(short_help="Show the hosts of a lab")
def status(name: Found = None, output_format: Format = "table") -> None:
    """Show the hosts of a lab."""
    from orchestrator.lab import lab

    output.check_format(output_format)
    rows = [
        {
            "name": entry.host.name,
            "role": entry.host.role,
            "address": entry.host.address,
            "power": "on" if entry.powered else "off",
            "link": "up" if entry.link_up else "down",
            "daemon": entry.daemon,
            "manager": entry.manager,
            "state": entry.state,
        }
        for entry in _run(lab.status(_layout(name)))
    ]
    if output_format == "json":
        output.print_json(rows)
        return
    output.table(
        [column.upper() for column in rows[0]],
        [[str(value) if value is not None else "-" for value in row.values()] for row in rows],
    )


@app.command(
    "exec",
    short_help="Run a command on a host of the lab",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
def execute(
    host: Host,
    command: Annotated[list[str], typer.Argument(metavar="[--] CMD…", help="What to run, with its arguments")],
    name: Found = None,
) -> None:
    """Run a command on a host of the lab: in its network, with `swarmctl` talking to its daemon."""
    layout = _layout(name)
    namespace = layout.host(host).namespace_path
    if not namespace.exists():
        raise labs.not_running(layout.name, host)
    if command[0] == "--":  # the parser leaves it, since it stops at HOST
        command = command[1:]
    if not command:
        raise InvalidArgument(f"no command to run on {host!r}; write `swarmctl lab exec {host} -- CMD`")
    environment = {**os.environ, "SWARM_LAB": layout.name, "SWARM_NODE": host}
    done = subprocess.run(["nsenter", f"--net={namespace}", "--", *command], env=environment, check=False)
    raise typer.Exit(done.returncode)


@app.command(short_help="Pull the network cables of hosts")
def cut(hosts: Hosts, name: Found = None) -> None:
    """Pull the network cables of hosts."""
    from orchestrator.lab import lab

    _to_each(name, hosts, lab.cut)


@app.command(short_help="Plug the network cables of hosts in again")
def heal(hosts: Hosts, name: Found = None) -> None:
    """Plug the network cables of hosts in again."""
    from orchestrator.lab import lab

    _to_each(name, hosts, lab.heal)


@app.command(short_help="Pull hosts' power plugs: processes die, disks stay")
def kill(hosts: Hosts, name: Found = None) -> None:
    """Pull the power plugs of hosts: all their processes die, their disks stay."""
    from orchestrator.lab import lab

    _to_each(name, hosts, lab.kill)


@app.command(short_help="Boot hosts that were killed")
def start(hosts: Hosts, name: Found = None) -> None:
    """Boot hosts that were killed."""
    from orchestrator.lab import lab

    _to_each(name, hosts, lab.start)


@app.command(short_help="Remove a lab with everything that it made")
def down(name: Named = DEFAULT_LAB) -> None:
    """Remove a lab with everything that it made."""
    from orchestrator.lab import lab

    _run(lab.down(name, output.line))
