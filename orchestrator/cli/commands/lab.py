"""`swarmctl lab …`: the commands are in `lab_commands`, the machinery is `orchestrator.lab`; here they are only found."""

from __future__ import annotations

import typer

try:
    from orchestrator.cli.commands.lab_commands import app
except ModuleNotFoundError as error:
    if error.name != "orchestrator.lab":
        raise
    # A package of the clients alone may leave it out.
    app = typer.Typer(help="Not part of this installation.")

    @app.callback(invoke_without_command=True)
    def _missing() -> None:
        from swarm.errors import FailedPrecondition

        raise FailedPrecondition("this installation of swarmctl has no lab; install the whole package")


__all__ = ["app"]
