"""What commands print: tables, JSON, names.

A table is rich where stdout is a terminal and plain aligned text in a pipe; both come from the same columns and cells.
rich is imported only for a terminal.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from orchestrator.cli.words import visible

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

GAP = 3  # spaces between the columns of a plain table


@dataclass(frozen=True)
class Cell:
    """Text and how a terminal shows it (a style of rich's); plain output knows only the text."""

    text: str
    style: str = ""


Stale = Annotated[
    bool,
    typer.Option(
        "--stale", help="Let any one manager answer from its own replica: also without a quorum, maybe outdated"
    ),
]


@dataclass
class ListOptions:
    """The flags of every command that lists."""

    format: Annotated[str, typer.Option("--format", metavar="table|json", help="How to print")] = "table"
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print ids only")] = False
    no_trunc: Annotated[bool, typer.Option("--no-trunc", help="Do not shorten the output")] = False

    def __post_init__(self) -> None:
        check_format(self.format)


@dataclass
class SwarmListOptions(ListOptions):
    """The flags of commands that list what the managers hold."""

    stale: Stale = False


@dataclass
class InspectOptions:
    """The flags of every command that shows in full what the managers hold."""

    format: Annotated[str, typer.Option("--format", "-f", metavar="json|pretty", help="How to print")] = "json"
    pretty: Annotated[bool, typer.Option("--pretty", help="Print for people instead of JSON")] = False
    stale: Stale = False

    def __post_init__(self) -> None:
        check_format(self.format, ("json", "pretty"))
        self.pretty = self.pretty or self.format == "pretty"


def check_format(name: str, known: tuple[str, ...] = ("table", "json")) -> None:
    """Raises a usage error for a format that there is not."""
    if name not in known:
        hint = "; templates are not supported, use json with jq" if "{{" in name else ""
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(known)}{hint}", param_hint="'--format'")


def is_terminal(stream: TextIO | None = None) -> bool:
    """Whether people watch, and can be shown colours and movement."""
    return (stream or sys.stdout).isatty() and os.environ.get("TERM") != "dumb"


def line(text: str = "") -> None:
    """One line on stdout."""
    sys.stdout.write(f"{text}\n")


def note(text: str) -> None:
    """One line on stderr: not part of the result."""
    sys.stdout.flush()
    sys.stderr.write(f"{visible(text)}\n")
    sys.stderr.flush()


def print_json(value: Any) -> None:
    line(json.dumps(value, indent=2, ensure_ascii=False))


def table(columns: Sequence[str], rows: Iterable[Sequence[str | Cell]]) -> None:
    """A table with a heading, also when it has no rows."""
    cells = [[_visible(cell if isinstance(cell, Cell) else Cell(cell)) for cell in row] for row in rows]
    if is_terminal():
        _rich_table(columns, cells)
    else:
        for text in plain_table(columns, cells):
            line(text)


def _visible(cell: Cell) -> Cell:
    return cell if cell.text.isprintable() else Cell(visible(cell.text), cell.style)


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[str]:
    """The lines of an aligned table; every column as wide as its widest cell."""
    texts = [list(columns), *([cell.text for cell in row] for row in rows)]
    widths = [max(len(row[number]) for row in texts) for number in range(len(columns))]
    return [
        (" " * GAP).join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in texts
    ]


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for number, name in enumerate(columns):
        # Only long explanations may wrap; everything else is copied by double click.
        made.add_column(name, overflow="fold", no_wrap=name != "ERROR" and number < len(columns))
    for row in rows:
        made.add_row(*(Text(cell.text, style=cell.style) for cell in row))
    console = Console(file=sys.stdout, highlight=False, soft_wrap=False)
    console.print(made, crop=False)


def print_list(
    options: ListOptions,
    columns: Sequence[str],
    items: Sequence[Any],
    *,
    row: Callable[[Any], Sequence[str | Cell]],
    identity: Callable[[Any], str],
    document: Callable[[Any], Any],
) -> None:
    """Prints what was listed, as the flags want it."""
    if options.quiet:
        for item in items:
            line(identity(item))
    elif options.format == "json":
        print_json([document(item) for item in items])
    else:
        table(columns, [row(item) for item in items])


def since(moment: Timestamp, now: float | None = None) -> float:
    """Seconds from `moment` to now."""
    return (time.time() if now is None else now) - (moment.seconds + moment.nanos / 1e9)
