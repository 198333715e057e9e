"""What every command shares: the session of its context, arguments named several at a time, lists by pages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from orchestrator.cli import completion
from orchestrator.cli.target import Target
from orchestrator.cli.words import visible

if TYPE_CHECKING:
    import grpc
    from swarm.v1.control_pb2 import Filter, ListRequest, Replica
    from swarm.v1.control_pb2_grpc import ControlStub

    from orchestrator.cli.caller import Caller
    from orchestrator.cli.session import Session

T = TypeVar("T")
PAGE_SIZE = 1000
MAX_PAGES = 10_000  # a server that never ends a list is broken

Service = Annotated[str, typer.Argument(metavar="SERVICE", help="Name or id", autocompletion=completion.services)]
Services = Annotated[
    list[str], typer.Argument(metavar="SERVICE…", help="Names or ids", autocompletion=completion.services)
]
Nodes = Annotated[list[str], typer.Argument(metavar="NODE…", help="Names or ids", autocompletion=completion.nodes)]
Networks = Annotated[
    list[str], typer.Argument(metavar="NETWORK…", help="Names or ids", autocompletion=completion.networks)
]
FilterFlag = Annotated[
    list[str] | None,
    typer.Option("--filter", "-f", metavar="KEY=VALUE", help="Show only what matches; may be repeated"),
]


def session(context: typer.Context) -> Session:
    """The session that the command's global options ask for; closed with the command."""
    from orchestrator.cli.session import Session

    target = context.find_root().obj
    made = Session((target if isinstance(target, Target) else Target()).find())
    context.call_on_close(made.close)
    return made


def reading(context: typer.Context, stale: bool) -> Caller[ControlStub]:
    """The managers, for a command that only reads. With `stale` it ends by saying how old its answer may be."""
    managers = session(context).control(stale=stale)
    if stale:
        context.call_on_close(lambda: _tell_replica(managers.replica))
    return managers


def _tell_replica(replica: Replica | None) -> None:
    from orchestrator.cli import output

    if replica is None:
        return
    age = "may be a moment behind" if replica.leader_id else "knows no leader: later changes may be missing"
    output.note(f"Read at index {replica.index} from the replica of manager {replica.node_id}, which {age}.")


def filters(words: Iterable[str] | None) -> list[Filter]:
    """`label=a=b` → key `label`, value `a=b`. Raises a usage error without `=`."""
    from swarm.v1.control_pb2 import Filter

    found = []
    for word in words or ():
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{word!r} is not KEY=VALUE, as in name=web", param_hint="'--filter'")
        found.append(Filter(key=key, value=value))
    return found


def pages(fetch: Callable[[str], T]) -> Iterator[T]:
    """All pages of a list: `fetch` takes a page token and returns an answer that carries `next_page_token`."""
    token = ""
    for _ in range(MAX_PAGES):
        answer: Any = fetch(token)
        yield answer
        token = answer.next_page_token
        if not token:
            return


def listed(
    managers: Caller[ControlStub],
    method: Callable[[ControlStub], grpc.UnaryUnaryMultiCallable[ListRequest, T]],
    filters: Iterable[Filter] = (),
    **call: Any,
) -> Iterator[T]:
    """The pages of one of the managers' plain lists. `call` goes to `Caller.call`."""
    from swarm.v1.control_pb2 import ListRequest

    return pages(
        lambda token: managers.call(method, ListRequest(filters=filters, page_size=PAGE_SIZE, page_token=token), **call)
    )


def for_each(references: Iterable[str], action: Callable[[str], None]) -> None:
    """Does `action` for each, complains about those that fail and goes on; ends with the first failure's exit code."""
    from swarm.errors import SwarmError

    failed: SwarmError | None = None
    for reference in references:
        try:
            action(reference)
        except SwarmError as error:
            sys.stdout.flush()
            sys.stderr.write(f"Error: {visible(str(error))}\n")
            failed = failed or error
    if failed is not None:
        raise typer.Exit(failed.exit_code)


def inspect_each(
    references: Iterable[str],
    get: Callable[[str], T],
    *,
    document: Callable[[T], Any],
    pretty: Callable[[T], Iterable[str]] | None,
) -> None:
    """Shows each object: those found as one JSON array (or as text for people), the others as errors."""
    from orchestrator.cli import output

    found: list[T] = []
    try:
        for_each(references, lambda reference: found.append(get(reference)))
    finally:
        if pretty is None:
            output.print_json([document(one) for one in found])
        else:
            for number, one in enumerate(found):
                if number:
                    output.line()
                for text in pretty(one):
                    output.line(text)
