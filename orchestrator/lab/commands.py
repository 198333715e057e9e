"""`swarmctl lab`: the commands, their options and what they print."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

import typer
from swarm.errors import InvalidArgument, NotFound
from swarm.labs import DEFAULT_LAB

from orchestrator.lab.layout import LabLayout, load

T = TypeVar("T")

app = typer.Typer(
    help="A whole swarm on this machine, each host a network namespace",
    no_args_is_help=True,
    rich_markup_mode=None,  # as the other groups' help: plain
    subcommand_metavar="COMMAND [ARGS]…",
)


def _chosen_name(context: typer.Context, name: str) -> str:
    """The lab that --name says, else the one of the program's own --lab."""
    source = context.get_parameter_source("name")
    chosen = getattr(context.find_root().obj, "lab", None)
    return chosen if chosen and (source is None or source.name != "COMMANDLINE") else name


def _host_names(context: typer.Context) -> list[str]:
    """For the shell's completion."""
    layout = load(str(context.params.get("name") or DEFAULT_LAB))
    return [host.name for host in layout.hosts] if layout is not None else []


Name = Annotated[str, typer.Option("--name", envvar="SWARM_LAB", callback=_chosen_name, help="Name of the lab")]
Host = Annotated[str, typer.Argument(metavar="NODE", help="A host of the lab: m1, w1 …", autocompletion=_host_names)]


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def _layout(name: str) -> LabLayout:
    layout = load(name)
    if layout is None:
        raise NotFound(f"there is no lab {name!r} on this machine; build it with `swarmctl lab up --name {name}`")
    return layout


@app.command(short_help="Build a lab, or start again what is dead of it")
def up(
    name: Name = DEFAULT_LAB,
    managers: Annotated[int, typer.Option(help="Number of managers; odd numbers make sense")] = 3,
    workers: Annotated[int, typer.Option(help="Number of workers")] = 2,
    log_level: Annotated[str, typer.Option(help="Of every daemon: debug, info, warning, error")] = "info",
) -> None:
    """Build a lab and form a swarm of it; start again what is dead of one that is there."""
    from orchestrator.lab import lab

    layout = _run(lab.up(name, managers, workers, typer.echo, log_level=log_level))
    typer.echo(f"Lab {name!r} is up: {', '.join(f'{host.name} {host.address}' for host in layout.hosts)}")


@app.command(short_help="Show the hosts of a lab")
def status(
    name: Name = DEFAULT_LAB,
    output: Annotated[str, typer.Option("--format", metavar="table|json", help="How to print")] = "table",
) -> None:
    """Show the hosts of a lab."""
    from orchestrator.lab import lab

    if output not in ("table", "json"):
        raise InvalidArgument(f"--format {output!r} is not known; write table or json")
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
    if output == "json":
        typer.echo(json.dumps(rows, indent=2))
        return
    columns = list(rows[0])
    cells = [[column.upper() for column in columns]]
    cells += [[str(row[column]) if row[column] is not None else "-" for column in columns] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for row in cells:
        typer.echo("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@app.command(
    "exec",
    short_help="Run a command on a host of the lab",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
def execute(
    node: Host,
    command: Annotated[list[str], typer.Argument(metavar="[--] CMD…", help="What to run, with its arguments")],
    name: Name = DEFAULT_LAB,
) -> None:
    """Run a command on a host of the lab: in its network, with `swarmctl` talking to its daemon."""
    host = _layout(name).host(node)
    if not host.namespace_path.exists():
        raise NotFound(f"host {node!r} is not running; boot it with `swarmctl lab start {node}`")
    if command[0] == "--":  # the parser leaves it, since it stops at NODE
        command = command[1:]
    if not command:
        raise InvalidArgument(f"no command to run on {node!r}; write `swarmctl lab exec {node} -- CMD`")
    environment = {**os.environ, "SWARM_LAB": name, "SWARM_NODE": node}
    done = subprocess.run(["nsenter", f"--net={host.namespace_path}", "--", *command], env=environment, check=False)
    raise typer.Exit(done.returncode)


@app.command(short_help="Pull a host's network cable")
def cut(node: Host, name: Name = DEFAULT_LAB) -> None:
    """Pull a host's network cable."""
    from orchestrator.lab import lab

    layout = _layout(name)
    _run(lab.cut(layout, layout.host(node)))


@app.command(short_help="Plug a host's network cable in again")
def heal(node: Host, name: Name = DEFAULT_LAB) -> None:
    """Plug a host's network cable in again."""
    from orchestrator.lab import lab

    layout = _layout(name)
    _run(lab.heal(layout, layout.host(node)))


@app.command(short_help="Pull a host's power plug: processes die, its disk stays")
def kill(node: Host, name: Name = DEFAULT_LAB) -> None:
    """Pull a host's power plug: all its processes die, its disk stays."""
    from orchestrator.lab import lab

    layout = _layout(name)
    _run(lab.kill(layout, layout.host(node)))


@app.command(short_help="Boot a host that was killed")
def start(node: Host, name: Name = DEFAULT_LAB) -> None:
    """Boot a host that was killed."""
    from orchestrator.lab import lab

    layout = _layout(name)
    _run(lab.start(layout, layout.host(node)))


@app.command(short_help="Remove a lab with everything that it made")
def down(name: Name = DEFAULT_LAB) -> None:
    """Remove a lab with everything that it made."""
    from orchestrator.lab import lab

    _run(lab.down(name, typer.echo))
