"""`swarmctl swarm snapshot save | inspect | restore`: the whole state of a swarm in a file."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from swarm.errors import AlreadyExists, FailedPrecondition, InternalError, InvalidArgument
from swarm.process import run
from swarm.v1 import control_pb2 as control
from swarm.v1 import node_pb2 as node

from orchestrator.cli import output, words
from orchestrator.cli.commands.swarm import Advertise, Listen
from orchestrator.cli.invocation import session

TRANSFER_TIMEOUT = 600.0  # seconds
app = typer.Typer(
    help="The whole state of a swarm in a file",
    no_args_is_help=True,
    rich_markup_mode=None,
    subcommand_metavar="COMMAND [ARGS]…",
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="A snapshot on this host")]


@app.command()
def save(context: typer.Context, file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file")]) -> None:
    """Save the state of the swarm. The file holds the swarm's secrets (the authority's key): guard it."""
    if file.exists():
        raise AlreadyExists(f"{file} exists; choose another name")
    partial = file.with_name(f".{file.name}.partial")
    managers = session(context).control()
    try:
        with open(partial, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as stream:

            def request() -> control.SaveSnapshotRequest:
                # After a break another manager begins anew: nothing of the one before may stay.
                stream.seek(0)
                stream.truncate()
                return control.SaveSnapshotRequest()

            for chunk in managers.stream(lambda stub: stub.SaveSnapshot, request, timeout=TRANSFER_TIMEOUT):
                stream.write(chunk.data)
            stream.flush()
            os.fsync(stream.fileno())
        held = read(partial)
        partial.rename(file)
    except OSError as error:
        raise InvalidArgument(f"{file} cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    counts = f"{words.plural(held['services'], 'service')}, {words.plural(held['nodes'], 'node')}"
    output.line(f"Saved {file}: entry {held['index']}, {counts}; checked.")


@app.command()
def inspect(
    file: File,
    output_format: Annotated[str, typer.Option("--format", metavar="text|json", help="How to print")] = "text",
) -> None:
    """Check a snapshot and show what it holds."""
    output.check_format(output_format, ("text", "json"))
    held = read(file)
    if output_format == "json":
        output.print_json(held)
        return
    versions = f"epoch {held['epoch']}, feature level {held['feature_level']}"
    output.line(f"Swarm:     {held['cluster_name']} ({held['cluster_id']}), {versions}")
    output.line(
        f"Log:       entry {held['index']}, term {held['term']}; {words.plural(held['state_bytes'], 'byte')} of state"
    )
    output.line("Managers:  " + ", ".join(f"{each['node_id']} at {each['address']}" for each in held["managers"]))
    counts = ", ".join(words.plural(held[f"{kind}s"], kind) for kind in ("service", "task", "node", "network"))
    output.line(f"Objects:   {counts}")


@app.command()
def restore(
    context: typer.Context,
    file: File,
    force: Annotated[bool, typer.Option("--force", "-f", help="On a manager: give up the state that it has")] = False,
    advertise_addr: Advertise = "",
    listen_addr: Listen = "",
) -> None:
    """Found a swarm on this host from a snapshot.

    This host is its one manager. Its workers find it at the address of one of the managers that they know.
    """
    caller = session(context).local()
    state = caller.call(lambda stub: stub.GetState, node.GetStateRequest())
    if state.node_id and not force:
        raise FailedPrecondition("this host is part of a swarm, whose state would be replaced; use --force to do that")
    request = node.RestoreRequest(
        path=str(file.absolute()), advertise_address=advertise_addr, listen_address=listen_addr
    )
    made = caller.call(lambda stub: stub.Restore, request, timeout=TRANSFER_TIMEOUT)
    output.line(
        f"Restored entry {made.index} with {words.plural(made.services, 'service')}; "
        f"this host, {made.node_id}, is the manager."
    )


def read(file: Path) -> dict[str, Any]:
    """What a snapshot holds, as the manager program says: it knows the format. Raises InvalidArgument."""
    import asyncio

    command = [sys.executable, "-m", "orchestrator.manager", "inspect", str(file)]
    done = asyncio.run(run(command, timeout=TRANSFER_TIMEOUT, check=False))
    if done.exit_code != 0:
        raise InvalidArgument(done.complaint.removeprefix("error: "))
    try:
        held: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        raise InternalError(f"the manager program did not say what {file} holds: {done.text!r}") from error
    return held
