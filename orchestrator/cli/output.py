"""What commands print: tables, JSON, names.

A table is aligned text, coloured where stdout is a terminal. Columns keep their natural width there too: a line that is
too long goes on at the terminal's edge, because a cell that was cut cannot be told from a whole one, nor be copied. Only
explanations are folded, where enough room is left for them to be read.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from orchestrator.cli.words import visible

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

GAP = 3  # spaces between the columns of a table
FOLDED = "ERROR"  # the column of long explanations; everything else is copied by double click
LEAST_FOLD = 30  # columns; an explanation folded into less is harder to read than one long line
_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}  # of ECMA-48, "select graphic rendition"


@dataclass(frozen=True)
class Cell:
    """Text and how a terminal shows it (words of `_CODES`); plain output knows only the text."""

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
        lines = terminal_table(
            columns, cells, shutil.get_terminal_size().columns, colour=not os.environ.get("NO_COLOR")
        )
    else:
        lines = plain_table(columns, cells)
    for text in lines:
        line(text)


def _visible(cell: Cell) -> Cell:
    return cell if cell.text.isprintable() else Cell(visible(cell.text), cell.style)


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[str]:
    """The lines of an aligned table; every column as wide as its widest cell."""
    widths = _widths(columns, rows)
    return [_aligned(row, widths) for row in ([Cell(name) for name in columns], *rows)]


def terminal_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], width: int, *, colour: bool) -> list[str]:
    """As `plain_table`, with styles where `colour`, and with the explanations folded into what `width` columns leave them."""
    heading = [Cell(name, "bold") for name in columns]
    widths = _widths(columns, rows)
    if FOLDED in columns:
        folded = columns.index(FOLDED)
        room = width - (sum(widths) - widths[folded] + GAP * (len(columns) - 1))
        longest = max((len(word) for row in rows for word in row[folded].text.split()), default=0)
        if max(LEAST_FOLD, longest) <= room < widths[folded]:  # a name that is broken cannot be copied
            rows = [part for row in rows for part in _folded(row, folded, room)]
            widths[folded] = room
    return [_aligned(row, widths, colour) for row in (heading, *rows)]


def _widths(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[int]:
    return [max(len(name), *(len(row[number].text) for row in rows), 0) for number, name in enumerate(columns)]


def _aligned(row: Sequence[Cell], widths: Sequence[int], colour: bool = False) -> str:
    """A line without spaces at its end: they would make a second line of it in a narrow terminal."""
    last = max((number for number, cell in enumerate(row) if cell.text.strip()), default=0)
    shown = []
    for number, cell in enumerate(row[: last + 1]):
        text = _styled(cell) if colour else cell.text
        shown.append(text + " " * (widths[number] - len(cell.text)) if number < last else text.rstrip())
    return (" " * GAP).join(shown)


def _styled(cell: Cell) -> str:
    codes = ";".join(_CODES[word] for word in cell.style.split())
    return f"\033[{codes}m{cell.text}\033[0m" if codes and cell.text else cell.text


def _folded(row: Sequence[Cell], folded: int, room: int) -> Iterator[list[Cell]]:
    """A row as several, whose cells are empty but for one of them after the first."""
    import textwrap

    explanation = row[folded]
    parts = textwrap.wrap(explanation.text, room, break_on_hyphens=False) or [""]
    yield [Cell(parts[0], cell.style) if number == folded else cell for number, cell in enumerate(row)]
    for part in parts[1:]:
        yield [Cell(part, explanation.style) if number == folded else Cell("") for number in range(len(row))]


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
