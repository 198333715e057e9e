"""The way of a service as it is shown: redrawn in a terminal, line by line in a pipe, or not at all."""

from __future__ import annotations

import sys
from typing import Any

from swarm.v1 import types_pb2 as types

from orchestrator.cli import output, words
from orchestrator.cli.task_words import problem_of, task_label
from orchestrator.cli.tracker import Tracker, is_done


def display(quiet: bool) -> Display:
    """That for our stdout. Used as a context."""
    return Quiet() if quiet else Redrawn() if output.is_terminal() else Lines()


class Display:
    """How progress is shown. Used as a context."""

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the last state on the screen."""

    def show(self, tracker: Tracker) -> None:
        raise NotImplementedError

    def problem(self, text: str) -> None:
        raise NotImplementedError


class Quiet(Display):
    def show(self, tracker: Tracker) -> None:
        """Shows nothing."""

    def problem(self, text: str) -> None:
        """Tells nothing."""


class Lines(Display):
    """For a pipe: a line for each change."""

    def __init__(self) -> None:
        self._last: tuple[str, ...] = ()

    def show(self, tracker: Tracker) -> None:
        if tracker.latest is None:
            return
        for text in filter(None, (tracker.summary(), tracker.remark())):
            if text not in self._last:
                output.line(text)
        sys.stdout.flush()
        self._last = (tracker.summary(), tracker.remark())

    def problem(self, text: str) -> None:
        output.note(text)


class Redrawn(Display):
    """For a terminal: one line a task with a bar, redrawn in place."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=sys.stdout, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=False)

    def __enter__(self) -> Display:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, tracker: Tracker) -> None:
        if tracker.latest is not None:
            self._live.update(self._drawing(tracker), refresh=True)

    def problem(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(text, style="red"))

    def _drawing(self, tracker: Tracker) -> Any:
        from rich.text import Text

        lines = [Text(tracker.summary(), style="bold")]
        lines.extend(Text(text, style=style) for text, style in task_lines(tracker, self._console.size))
        lines.extend([Text(tracker.remark())] if tracker.remark() else [])
        return Text("\n").join(lines)


_STEPS = (
    types.TASK_STATE_NEW,
    types.TASK_STATE_PENDING,
    types.TASK_STATE_ASSIGNED,
    types.TASK_STATE_ACCEPTED,
    types.TASK_STATE_PREPARING,
    types.TASK_STATE_READY,
    types.TASK_STATE_STARTING,
    types.TASK_STATE_RUNNING,
)
_BAR = 40  # columns, where there are as many
_BESIDE = 13 + 6  # the state's word, and what stands around it and the bar


def task_lines(tracker: Tracker, size: tuple[int, int]) -> list[tuple[str, str]]:
    """A line and its style for each task, the unfinished first where not all fit. `size`: columns and lines of the terminal."""
    width, most = size[0], size[1] - 4
    if tracker.latest is None:
        return []
    service = tracker.latest.summary.service
    tasks = sorted(tracker.latest.tasks, key=lambda task: (task.slot, task.node_id))
    hidden = 0
    if len(tasks) > most:
        unfinished = [task for task in tasks if not is_done(task, service)]
        hidden = len(tasks) - most
        tasks = (unfinished or tasks)[: max(1, most)]
    lines = []
    length = max(10, min(_BAR, width - _BESIDE - max((len(task_label(task)) for task in tasks), default=0)))
    for task in tasks:
        done = is_done(task, service)
        state = task.status.state
        word = words.enum_word(types.TaskState.DESCRIPTOR, state)
        if task.revision_id != service.revision_id:
            word, reached = "to be updated", 0
        else:
            reached = _STEPS.index(state) + 1 if state in _STEPS else 0
        bar = ("=" * (length * reached // len(_STEPS)) + ">").ljust(length + 1)
        problem = problem_of(task)
        lines.append(
            (
                f"{task_label(task)}: {word:<13} [{bar}] {words.shorten(problem, 60)}".rstrip(),
                "green" if done else "red" if problem else "yellow",
            )
        )
    if hidden:
        lines.append((f"… and {words.plural(hidden, 'more task')}", ""))
    return lines
