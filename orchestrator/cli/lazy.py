"""Command groups whose commands are imported only when they run.

A group knows of each command its name, one line of help and where it lives (`module:attribute`). Help and completion of
names need no more than that; running (or completing the arguments of) a command imports that one module. A command is a
plain function with typer annotations; the attribute may also be a whole `typer.Typer` application, as the lab's.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, get_type_hints

import typer
from swarm.footprint import postponed, without
from typer.core import TyperCommand, TyperGroup

from orchestrator.cli import RARELY_USED

CONTEXT_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
# Words after IMAGE belong to the container, flags too: `service create alpine ls -l`.
REST_IS_COMMAND: dict[str, Any] = {"allow_interspersed_args": False}


@dataclass(frozen=True)
class Entry:
    """Where a command lives. `settings` go into its context (click's context settings)."""

    target: str  # module:attribute, the module below orchestrator.cli.commands unless it has a dot
    help: str
    settings: Mapping[str, Any] | None = None
    hidden: bool = False


@dataclass(frozen=True)
class Group:
    """A group of commands below the program's own."""

    help: str
    commands: Mapping[str, Entry]


def load(name: str, entry: Entry) -> Any:
    """Imports a command and makes it runnable."""
    module, _, attribute = entry.target.partition(":")
    if "." not in module:
        module = f"orchestrator.cli.commands.{module}"
    # Without OpenSSL, for whoever uses asyncio after all: 8 ms, and gRPC has a TLS of its own.
    with without("ssl"), postponed(*RARELY_USED):
        found = getattr(importlib.import_module(module), attribute)
    if isinstance(found, typer.Typer):
        group = typer.main.get_group(found)  # unlike get_command, without flags to install completion
        group.name = name
        for command in group.commands.values():
            _plain(command)
        return group
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    settings = {**CONTEXT_SETTINGS, **(entry.settings or {})}
    app.command(name, help=inspect.getdoc(found) or entry.help, context_settings=settings)(found)
    return _plain(typer.main.get_command(app))


def _plain(command: Any) -> Any:
    """Usage lines say `SERVICE…` where typer writes `{SERVICE…}`, and `[NODE]…` for what may be left out. The words
    that a metavar lists are completed."""
    for parameter in command.params:
        if parameter.param_type_name == "argument" and parameter.metavar:
            word = parameter.metavar
            shown = word if parameter.required or word.startswith("[") else f"[{word}]"
            parameter.get_usage_pieces = lambda _, shown=shown: [shown]
        _complete_words(parameter)
    return command


def _complete_words(parameter: Any) -> None:
    """Has `--availability active|pause|drain` completed to one of these words: what stands for a value says so itself."""
    words = (parameter.metavar or "").split("|")
    if len(words) > 1 and all(word.replace("-", "").isalpha() and word.islower() for word in words):
        parameter._custom_shell_complete = lambda _context, _parameter, incomplete: [
            word for word in words if word.startswith(incomplete)
        ]


class LazyGroup(TyperGroup):
    """A group made of a table of entries; see the module."""

    entries: Mapping[str, Entry]

    def fill(self, entries: Mapping[str, Entry]) -> LazyGroup:
        """Makes the entries the group's commands. What stands for them until they run knows only name and help."""
        self.entries = entries
        for name, entry in entries.items():
            self.commands[name] = TyperCommand(name, help=entry.help, hidden=entry.hidden, rich_markup_mode=None)
        return self

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and name in self.entries:
            command = load(name, self.entries[name])
        return name, command, rest


def lazy_group(name: str, group: Group) -> LazyGroup:
    """A group as a command of the group above it."""
    made = LazyGroup(
        name=name,
        help=group.help,
        short_help=group.help,
        context_settings=dict(CONTEXT_SETTINGS),
        no_args_is_help=True,
        rich_markup_mode=None,
        subcommand_metavar="COMMAND [ARGS]…",
    )
    return made.fill(group.commands)


def takes(options: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turns `def command(context, …, options: Options)` into a function that typer understands.

    `Options` is a dataclass whose fields are annotated as typer parameters are. Sharing flags between commands is then
    sharing base classes, and what a command does with them is a function of one typed value. Help lists them by name.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(function)
        hints = get_type_hints(function, include_extras=True)
        option_hints = get_type_hints(options, include_extras=True)
        parameters = [
            parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in own.parameters.values()
            if parameter.name != "options"
        ]
        for field in sorted(fields(options), key=lambda field: field.name):
            default: Any = inspect.Parameter.empty
            if field.default is not MISSING:
                default = field.default
            elif field.default_factory is not MISSING:
                default = None
            parameters.append(
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=default,
                    annotation=option_hints[field.name],
                )
            )
        names = [field.name for field in fields(options)]

        def run(**values: Any) -> None:
            chosen = {name: values.pop(name) for name in names}
            # typer hands over None for a repeatable flag that was not given.
            given = {name: value for name, value in chosen.items() if value is not None}
            function(**values, options=options(**given))

        run.__name__, run.__doc__ = function.__name__, function.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate
