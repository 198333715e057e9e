"""The program `swarmctl`: its table of commands, its global options, and how it ends.

Nothing is imported here that a command may not need: commands live in `orchestrator.cli.commands` and are imported when
they run (`lazy`); gRPC comes in with the first call, rich where a terminal is written to. Whatever goes wrong ends in one
sentence on stderr and an exit code of `swarm.errors` (docs/exit-codes.md); `SWARMCTL_DEBUG=1` adds the traceback.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from orchestrator.cli import completion, shells
from orchestrator.cli.lazy import CONTEXT_SETTINGS, REST_IS_COMMAND, Entry, Group, LazyGroup, lazy_group
from orchestrator.cli.target import Target
from orchestrator.cli.words import visible

# gRPC's own lines on stderr would mix with ours; read when it is imported, wherever that happens first.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

EXIT_INTERNAL, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

GROUPS: dict[str, Group] = {
    "service": Group(
        "Run and change services",
        {
            "create": Entry("service_create:create", "Create a service", REST_IS_COMMAND),
            "ls": Entry("services:ls", "List services"),
            "ps": Entry("services:ps", "List the tasks of services"),
            "inspect": Entry("services:inspect", "Show services in full"),
            "scale": Entry("service_scale:scale", "Set the number of replicas of services"),
            "update": Entry("service_update:update", "Change a service"),
            "rollback": Entry("service_scale:rollback", "Return a service's tasks to their previous spec"),
            "logs": Entry("service_logs:logs", "Show the output of a service or a task"),
            "rm": Entry("services:rm", "Remove services"),
        },
    ),
    "node": Group(
        "Manage the hosts of the swarm",
        {
            "ls": Entry("nodes:ls", "List nodes"),
            "inspect": Entry("nodes:inspect", "Show nodes in full"),
            "ps": Entry("nodes:ps", "List the tasks on nodes"),
            "update": Entry("nodes:update", "Change a node's availability, role or labels"),
            "promote": Entry("nodes:promote", "Make nodes managers"),
            "demote": Entry("nodes:demote", "Make managers workers again"),
            "rm": Entry("nodes:rm", "Remove nodes from the swarm"),
        },
    ),
    "network": Group(
        "Manage overlay networks",
        {
            "create": Entry("networks:create", "Create a network"),
            "ls": Entry("networks:ls", "List networks"),
            "inspect": Entry("networks:inspect", "Show networks in full"),
            "rm": Entry("networks:rm", "Remove networks"),
        },
    ),
    "image": Group(
        "Build, move and list images on a host",
        {
            "build": Entry("image_build:build", "Build an image from a directory"),
            "pull": Entry("images:pull", "Fetch images from a registry"),
            "push": Entry("images:push", "Send images to a registry"),
            "ls": Entry("images:ls", "List the images of a host"),
            "inspect": Entry("image_names:inspect", "Show images of a host in full"),
            "tag": Entry("image_names:tag", "Give an image of a host a further name"),
            "rm": Entry("images:rm", "Remove images from a host"),
            "prune": Entry("images:prune", "Remove the images of a host that nobody needs"),
            "import": Entry("images:import_", "Make an image from a root filesystem (tar)"),
            "load": Entry("images:load", "Read images from an archive"),
            "save": Entry("images:save", "Write images to an archive"),
        },
    ),
    "swarm": Group(
        "Found, join, leave and change the swarm",
        {
            "init": Entry("swarm:init", "Found a swarm on this host"),
            "join": Entry("swarm:join", "Join this host to a swarm"),
            "join-token": Entry("swarm:join_token", "Show or rotate join tokens"),
            "leave": Entry("swarm:leave", "Take this host out of its swarm"),
            "update": Entry("swarm:update", "Change settings of the swarm"),
            "recover": Entry("recovery:recover", "Go on with this manager alone: the others are lost"),
            "snapshot": Entry("snapshots:app", "Save, inspect and restore the state of the swarm"),
            "ca": Entry("swarm:ca", "Print the certificate of the swarm's authority"),
        },
    ),
    "cert": Group(
        "Certificates for people and for services beside the swarm",
        {"issue": Entry("certificates:issue", "Make a key and have the swarm certify it")},
    ),
}

COMMANDS: dict[str, Entry] = {
    "lab": Entry("lab:app", "A whole swarm on this machine, each host a network namespace"),
    "info": Entry("information:info", "Show this host, its swarm and the managers' consensus"),
    "version": Entry("information:version", "Show the version of this program and of the manager"),
}


class Root(LazyGroup):
    """The program's own group."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.subcommand_metavar = "COMMAND [ARGS]…"
        self.fill(COMMANDS)
        self.commands = {**{name: lazy_group(name, group) for name, group in GROUPS.items()}, **self.commands}


app = typer.Typer(
    cls=Root,
    name="swarmctl",
    help="Drive a swarm: services, nodes, networks, images.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,  # `shells` has it
    context_settings=CONTEXT_SETTINGS,
)


def _print_version(value: bool) -> None:
    if value:
        from swarm.version import VERSION

        typer.echo(f"swarmctl version {VERSION}")
        raise typer.Exit


@app.callback()
def _program(
    context: typer.Context,
    host: Annotated[
        str | None,
        typer.Option(
            "--host", "-H", envvar="SWARM_HOST", metavar="ADDRESS",
            help="Manager to talk to: unix:///PATH/control.sock or HOST:PORT[,HOST:PORT…]",
        ),
    ] = None,
    tls: Annotated[
        str | None,
        typer.Option("--tls", envvar="SWARM_TLS", metavar="DIR", help="Directory with node.key, node.pem and ca.pem"),
    ] = None,
    lab: Annotated[
        str | None,
        typer.Option(
            "--lab", envvar="SWARM_LAB", metavar="NAME", autocompletion=completion.labs,
            help="Talk to this lab on this machine",
        ),
    ] = None,
    node: Annotated[
        str | None,
        typer.Option(
            "--node", envvar="SWARM_NODE", metavar="NAME", autocompletion=completion.hosts,
            help="Talk to this host of the lab, and to no other",
        ),
    ] = None,
    _install_completion: shells.Install = None,
    _show_completion: shells.Show = None,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit")
    ] = False,
) -> None:  # fmt: skip
    # What is written on the command line beats what the environment says of the other way to name a place.
    if _is_option(context, "host"):
        lab, node = (lab if _is_option(context, "lab") else None), (node if _is_option(context, "node") else None)
    elif _is_option(context, "lab") or _is_option(context, "node"):
        host = None
    elif _is_option(context, "tls"):
        lab = node = None
    if _is_option(context, "tls") and not host:
        raise typer.BadParameter(
            "the certificate is for a manager's network port; give that with --host HOST:PORT", param_hint="--tls"
        )
    context.obj = Target(host=host, tls=tls, lab=lab, node=node)


def _is_option(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code."""
    try:
        if shells.ASKS_FOR_COMPLETION in os.environ:
            shells.prepare()
        words = shells.with_login_shell(arguments)
        result = typer.main.get_command(app).main(words, prog_name=shells.PROGRAM, standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except (KeyboardInterrupt, typer.Abort, BrokenPipeError, SystemExit) as end:
        return _ended(end)
    except Exception as error:
        if os.environ.get("SWARMCTL_DEBUG", "") not in ("", "0"):
            raise
        return _report(error)


def _ended(end: BaseException) -> int:
    """The exit code of a command that was ended from outside, or by typer."""
    reason = end.__cause__ or end.__context__
    if isinstance(end, KeyboardInterrupt) or (isinstance(end, typer.Abort) and isinstance(reason, KeyboardInterrupt)):
        return EXIT_INTERRUPTED
    if isinstance(end, BrokenPipeError):
        # Whoever read us has enough. The rest of the buffer must not fail again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(end, SystemExit):
        if isinstance(reason, BrokenPipeError):  # typer has seen it first
            return 0
        return end.code if isinstance(end.code, int) else EXIT_INTERNAL
    return _complain("aborted", EXIT_INTERNAL)


def _report(error: Exception) -> int:
    """Prints an error as a sentence and returns its exit code."""
    show = getattr(error, "show", None)
    if show is not None:  # a usage error of typer's; it prints the usage of the command too
        show()
        return int(getattr(error, "exit_code", EXIT_USAGE))
    # Not imported for its own sake: a SwarmError can only come from where the module is loaded already.
    errors = sys.modules.get("swarm.errors")
    if errors is not None and isinstance(error, errors.SwarmError):
        return _complain(str(error), error.exit_code)
    if isinstance(error, UnicodeEncodeError) and error.encoding == "utf-8":  # bytes of an argument that are no text
        return _complain(f"{error.object!r} is not text in UTF-8", EXIT_USAGE)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror.lower()}", EXIT_INTERNAL)
    return _complain(
        f"swarmctl failed unexpectedly ({type(error).__name__}: {error}); SWARMCTL_DEBUG=1 shows where", EXIT_INTERNAL
    )


def _complain(sentence: str, exit_code: int) -> int:
    print(f"Error: {visible(sentence)}", file=sys.stderr)  # noqa: T201 – the program's own output
    return exit_code


def main() -> None:
    """Entry point of the program."""
    gc.disable()  # a command is over before collecting would pay
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        code = code or 0
    # Skips tearing down gRPC's threads and the interpreter: nothing is left to be written.
    os._exit(code)
