"""What the commands share that change a service: how long to wait for it, and what the managers remark."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import typer
from swarm.clock import seconds_of

from orchestrator.cli import output

# The API asks a registry for the image's digest, which may take longer than a write takes.
RESOLVE_TIMEOUT = 30.0
Text = str | None


@dataclass
class WaitFlags:
    """Whether and how long to wait until the service runs as it should."""

    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return at once instead of waiting")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Wait without showing progress")] = False
    wait_timeout: Annotated[
        Text,
        typer.Option("--wait-timeout", metavar="DURATION", help="Give up waiting after this time (exit code 7)"),
    ] = None


def wait_seconds(flags: WaitFlags) -> float | None:
    """--wait-timeout in seconds; None: as long as it takes."""
    if flags.wait_timeout is None:
        return None
    from orchestrator.cli.parsing.quantities import duration

    return seconds_of(duration(flags.wait_timeout, "--wait-timeout"))


def show_warnings(warnings: Iterable[str]) -> None:
    """What the managers had to remark on a change that they made."""
    for warning in warnings:
        output.note(f"Warning: {warning}")
