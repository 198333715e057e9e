"""What commands print: tables, JSON, names.

A table is rich where stdout is a terminal and plain aligned text in a pipe; both come from the same columns and cells, and
rich is imported only for a terminal. Columns keep their natural width there too: a line that is too long goes on at the
terminal's edge, because a cell that was cut cannot be told from a whole one, nor be copied. Only explanations are folded, where
enough room is left for them to be read.
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
    width = shutil.get_terminal_size().columns
    lines = terminal_table(columns, cells, width) if is_terminal() else plain_table(columns, cells)
    for text in lines:
        line(text)


def _visible(cell: Cell) -> Cell:
    return cell if cell.text.isprintable() else Cell(visible(cell.text), cell.style)


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[str]:
    """The lines of an aligned table; every column as wide as its widest cell."""
    widths = _widths(columns, rows)
    texts = [list(columns), *([cell.text for cell in row] for row in rows)]
    return [
        (" " * GAP).join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in texts
    ]


def terminal_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], width: int) -> list[str]:
    """As `plain_table`, with styles, and with explanations folded into what `width` columns leave them."""
    from rich.console import Console
    from rich.text import Text

    widths = _widths(columns, rows)
    room = _room_to_fold(columns, rows, width)
    if room is not None:
        folded = columns.index(FOLDED)
        rows = [part for row in rows for part in _folded(row, folded, room)]
        widths[folded] = room
    console = Console(file=sys.stdout, force_terminal=True, highlight=False)
    with console.capture() as captured:
        for row in ([Cell(name, "bold") for name in columns], *rows):
            shown = Text()
            # No spaces at a line's end: they would make a second line of it in a narrow terminal.
            last = max((number for number, cell in enumerate(row) if cell.text.strip()), default=0)
            for number, cell in enumerate(row[: last + 1]):
                shown.append(cell.text, cell.style)
                shown.append(" " * (widths[number] - len(cell.text) + GAP) if number < last else "")
            console.print(shown, soft_wrap=True)
    return captured.get().splitlines()


def _room_to_fold(columns: Sequence[str], rows: Sequence[Sequence[Cell]], width: int) -> int | None:
    """How wide explanations may be, so that lines have at most `width`; None where they had better stay on one line."""
    if FOLDED not in columns:
        return None
    widths, folded = _widths(columns, rows), columns.index(FOLDED)
    room = width - (sum(widths) - widths[folded] + GAP * (len(columns) - 1))
    longest = max((len(word) for row in rows for word in row[folded].text.split()), default=0)
    return room if max(LEAST_FOLD, longest) <= room < widths[folded] else None  # a broken name cannot be copied


def _widths(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[int]:
    return [max(len(name), *(len(row[number].text) for row in rows), 0) for number, name in enumerate(columns)]


def _folded(row: Sequence[Cell], folded: int, room: int) -> Iterator[list[Cell]]:
    """A row as several, whose cells are empty but for one of them after the first."""
    import textwrap

    explanation = row[folded]
    parts = textwrap.wrap(explanation.text, room, break_on_hyphens=False) or [""]
    yield [Cell(parts[0], explanation.style) if number == folded else cell for number, cell in enumerate(row)]
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
