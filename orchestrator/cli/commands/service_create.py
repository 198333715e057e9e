"""`swarmctl service create`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from swarm.errors import InvalidArgument
from swarm.v1 import control_pb2 as control

from orchestrator.cli import output, progress
from orchestrator.cli.invocation import session
from orchestrator.cli.lazy import takes
from orchestrator.cli.service_flags import CreateFlags
from orchestrator.cli.service_specs import new_spec
from orchestrator.cli.waiting import RESOLVE_TIMEOUT, show_warnings, wait_seconds

MAX_TEXT = 4 << 20  # characters: as much as a message to the managers


@takes(CreateFlags)
def create(
    context: typer.Context,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="Image of the tasks")],
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[COMMAND] [ARG]…", help="Replaces the image's command")
    ] = None,
    *,
    options: CreateFlags,
) -> None:
    """Create a service.

    Flags come before IMAGE; what follows it belongs to the container.
    """
    spec = new_spec(image, command or (), options, environment=os.environ, read_text=read_text)
    seconds = wait_seconds(options)
    managers = session(context).control()
    request = control.CreateServiceRequest(spec=spec, no_resolve_image=options.no_resolve_image)
    answer = managers.call(lambda stub: stub.CreateService, request, timeout=RESOLVE_TIMEOUT)
    show_warnings(answer.warnings)
    output.line(answer.service.id)
    if not options.detach:
        progress.wait(managers, answer.service, quiet=options.quiet, timeout=seconds)


def read_text(path: str) -> str:
    """The text of a file that a flag names, which may also be a pipe. Not all of /dev/zero, though."""
    try:
        with Path(path).open() as file:
            text = file.read(MAX_TEXT + 1)
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path} is not a text file in UTF-8") from error
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error
    if len(text) > MAX_TEXT:
        raise InvalidArgument(f"{path} is longer than {MAX_TEXT >> 20} MiB, which is more than a service can hold")
    return text
