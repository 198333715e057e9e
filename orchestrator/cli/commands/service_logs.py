"""`swarmctl service logs`: the output of all tasks of a service, merged by the managers, labelled here."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, TextIO

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from swarm.clock import seconds_of, timestamp
from swarm.errors import InvalidArgument
from swarm.v1 import control_pb2 as control

from orchestrator.cli import completion, output
from orchestrator.cli.invocation import session
from orchestrator.cli.lazy import takes
from orchestrator.cli.messages import rfc3339
from orchestrator.cli.parsing.quantities import count, duration

_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)  # of the terminal; one for each task, in turn


@dataclass
class LogFlags:
    """The flags of `service logs`."""

    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is printed from now on")] = False
    tail: Annotated[str, typer.Option("--tail", "-n", metavar="N|all", help="Lines of each task from the end")] = "all"
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="From a time (2026-01-31T12:00:00) or age (10m) on")
    ] = None
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Up to a time or age")] = None
    timestamps: Annotated[bool, typer.Option("--timestamps", "-t", help="Show when each line was printed")] = False
    no_task_ids: Annotated[bool, typer.Option("--no-task-ids", help="Label without task ids")] = False
    no_resolve: Annotated[bool, typer.Option("--no-resolve", help="Label with ids instead of names")] = False
    no_trunc: Annotated[bool, typer.Option("--no-trunc", help="Show whole ids")] = False
    raw: Annotated[bool, typer.Option("--raw", help="Show the lines as they are, without labels")] = False


@takes(LogFlags)
def logs(
    context: typer.Context,
    service: Annotated[
        str, typer.Argument(metavar="SERVICE|TASK", help="Name or id", autocompletion=completion.services)
    ],
    *,
    options: LogFlags,
) -> None:
    """Show the output of a service, or of one task."""
    now = time.time()
    tail = -1 if options.tail == "all" else count(options.tail, "--tail")
    since = moment(options.since, "--since", now)
    until = moment(options.until, "--until", now)
    last = Timestamp()
    broken = False

    def request() -> control.ServiceLogsRequest:
        # After a break the stream goes on behind the last line that came; the tail was shown already.
        nonlocal broken
        again, broken = broken, True
        made = control.ServiceLogsRequest(reference=service, follow=options.follow, tail=tail)
        if until is not None:
            made.until.CopyFrom(until)
        if again and last.ToNanoseconds():
            made.tail = -1
            made.since.FromNanoseconds(last.ToNanoseconds() + 1)
        elif since is not None:
            made.since.CopyFrom(since)
        return made

    managers = session(context).control()
    printer = Printer(options, colour=output.is_terminal())
    records: Iterator[control.LogRecord] = managers.stream(lambda stub: stub.ServiceLogs, request)
    for record in records:
        if record.at.ToNanoseconds() > last.ToNanoseconds():
            last.CopyFrom(record.at)
        printer.show(record)


def moment(text: str | None, where: str, now: float) -> Timestamp | None:
    """A time (RFC 3339, or seconds since the epoch), or how long ago. Raises InvalidArgument."""
    if text is None:
        return None
    try:
        return timestamp(float(text))
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
        return timestamp((found if found.tzinfo else found.astimezone()).astimezone(UTC).timestamp())
    except (ValueError, OverflowError):
        pass
    try:
        span = duration(text, where)
    except InvalidArgument as error:
        raise InvalidArgument(
            f"{where} {text!r} is neither a time nor an age: write 2026-01-31T12:00:00Z or 10m"
        ) from error
    return timestamp(now - seconds_of(span))


class Printer:
    """Labels lines and writes them: what a task wrote to stderr goes to stderr."""

    def __init__(self, options: LogFlags, *, colour: bool, streams: Callable[[], tuple[TextIO, TextIO]] | None = None):
        self._options = options
        self._colour = colour
        self._streams = streams or (lambda: (sys.stdout, sys.stderr))
        self._colours: dict[str, int] = {}
        self._width = 0

    def show(self, record: control.LogRecord) -> None:
        stdout, stderr = self._streams()
        if record.notice:
            stdout.flush()
            stderr.write(f"Note: {record.notice}\n")
            stderr.flush()
            return
        text = record.line.decode("utf-8", "replace")
        stream = stderr if record.stream == control.LOG_STREAM_STDERR else stdout
        stream.write(f"{self._prefix(record)}{text}\n")
        if self._options.follow or stream is stderr:
            stream.flush()

    def _prefix(self, record: control.LogRecord) -> str:
        stamp = f"{rfc3339(record.at.seconds, record.at.nanos)} " if self._options.timestamps else ""
        if self._options.raw:
            return stamp
        label = self._label(record)
        self._width = max(self._width, len(label))
        padded = label.ljust(self._width)
        if self._colour:
            colour = self._colours.setdefault(record.task_id, _COLOURS[len(self._colours) % len(_COLOURS)])
            padded = f"\033[{colour}m{padded}\033[0m"
        return f"{stamp}{padded} | "

    def _label(self, record: control.LogRecord) -> str:
        options = self._options
        identity = record.task_id if options.no_trunc else record.task_id[:12]
        if options.no_resolve:
            return f"{identity}@{record.node_id if options.no_trunc else record.node_id[:12]}"
        name = record.task_name if options.no_task_ids else f"{record.task_name}.{identity}"
        return f"{name}@{record.node_name or record.node_id[:12]}"
