"""`--install-completion` and `--show-completion`: the script with which a shell asks this program for completions.

typer has both, but takes no word for the shell and looks at the processes above it instead: from a script that is `sh`, which
has no completion. Here the word counts, and without one the login shell.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

PROGRAM = "swarmctl"
ASKS_FOR_COMPLETION = "_SWARMCTL_COMPLETE"  # in the environment when a shell asks
SHELLS = ("bash", "zsh", "fish")
_FLAGS = ("--install-completion", "--show-completion")


def prepare() -> None:
    """Makes typer know the shells that may ask."""
    from typer.completion import completion_init  # type: ignore[attr-defined]

    completion_init()


def with_login_shell(arguments: Sequence[str]) -> list[str]:
    """The command line with the login shell after one of the flags, where that stands alone."""
    if len(arguments) == 1 and arguments[0] in _FLAGS:
        return [*arguments, Path(os.environ.get("SHELL", "")).name or SHELLS[0]]
    return list(arguments)


def _known(shell: str) -> str:
    if shell not in SHELLS:
        raise typer.BadParameter(f"there is no completion for {shell!r}; write one of {', '.join(SHELLS)}")
    return shell


def _install(shell: str | None) -> None:
    if shell is None:
        return
    from typer.completion import install  # type: ignore[attr-defined]

    name, path = install(shell=_known(shell), prog_name=PROGRAM, complete_var=ASKS_FOR_COMPLETION)
    typer.echo(f"Completion for {name} installed in {path}; it begins with the next shell")
    raise typer.Exit


def _show(shell: str | None) -> None:
    if shell is None:
        return
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    typer.echo(get_completion_script(prog_name=PROGRAM, complete_var=ASKS_FOR_COMPLETION, shell=_known(shell)))
    raise typer.Exit


def _shells(incomplete: str) -> list[str]:
    return [shell for shell in SHELLS if shell.startswith(incomplete)]


Install = Annotated[
    str | None,
    typer.Option(
        "--install-completion",
        metavar="SHELL",
        callback=_install,
        is_eager=True,
        expose_value=False,
        autocompletion=_shells,
        help=f"Have {', '.join(SHELLS)} complete commands and names (default: the login shell)",
    ),
]
Show = Annotated[
    str | None,
    typer.Option(
        "--show-completion",
        metavar="SHELL",
        callback=_show,
        is_eager=True,
        expose_value=False,
        autocompletion=_shells,
        help="Print what that would install",
    ),
]
