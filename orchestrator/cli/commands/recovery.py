"""`swarmctl swarm recover`: life after the quorum was lost for good."""

from __future__ import annotations

from typing import Annotated

import typer
from swarm.errors import InvalidArgument
from swarm.v1 import node_pb2 as node

from orchestrator.cli import output
from orchestrator.cli.invocation import session
from orchestrator.cli.session import Session

RECOVERY_TIMEOUT = 420.0  # seconds to read the whole log, and to serve again


def recover(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what this would mean")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Do it")] = False,
) -> None:
    """Go on with this host's manager alone, after the others were lost for good. Services, networks and workers stay."""
    if dry_run == force:
        raise InvalidArgument("say either --dry-run, to see what would happen, or --force, to do it")
    recover_here(session(context), dry_run=dry_run)


def recover_here(session: Session, *, dry_run: bool) -> None:
    """Makes the manager of the session's host the only one, or says what that would mean."""
    request = node.RecoverRequest(dry_run=dry_run)
    found = session.local().call(lambda stub: stub.Recover, request, timeout=RECOVERY_TIMEOUT)
    verb = "would go on" if dry_run else "goes on"
    output.line(
        f"Manager {found.node_id} {verb} alone, with the log up to entry {found.last_index}, term {found.term}."
    )
    if not found.lost:
        output.line("It is the only manager already.")
    for lost in found.lost:
        output.line(
            f"Manager {lost.node_id} at {lost.address} {'would be' if dry_run else 'is'} removed from the swarm."
        )
    if dry_run:
        output.line("Nothing was changed; do it with --force, where these managers are lost for good.")
    elif found.lost:
        output.line("Their hosts, if they come back, must leave (`swarmctl swarm leave --force`) and join anew.")
