"""`swarmctl node ls | inspect | ps | update | promote | demote | rm`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from swarm.errors import Conflict, InvalidArgument, SwarmError
from swarm.names import NODE_LEFT
from swarm.v1 import control_pb2 as control
from swarm.v1 import types_pb2 as types

from orchestrator.cli import completion, output, words
from orchestrator.cli.invocation import (
    FilterFlag,
    Nodes,
    filters,
    for_each,
    inspect_each,
    listed,
    reading,
    session,
)
from orchestrator.cli.lazy import takes
from orchestrator.cli.messages import as_json
from orchestrator.cli.output import Cell, InspectOptions, SwarmListOptions
from orchestrator.cli.parsing.fields import labels
from orchestrator.cli.pretty import node_lines
from orchestrator.cli.task_table import print_tasks

if TYPE_CHECKING:
    from swarm.v1.control_pb2_grpc import ControlStub

    from orchestrator.cli.caller import Caller

T = TypeVar("T")

COLUMNS = ("ID", "HOSTNAME", "STATUS", "AVAILABILITY", "MANAGER STATUS", "ENGINE VERSION", "ADDRESS")
SELF = "self"
MAX_CONFLICTS = 5
_AVAILABILITIES = {
    "active": types.AVAILABILITY_ACTIVE,
    "pause": types.AVAILABILITY_PAUSE,
    "drain": types.AVAILABILITY_DRAIN,
}
_ROLES = {"worker": types.NODE_ROLE_WORKER, "manager": types.NODE_ROLE_MANAGER}
_STATUS_STYLES = {types.NODE_STATE_READY: "green", types.NODE_STATE_DOWN: "red"}


@takes(SwarmListOptions)
def ls(context: typer.Context, filter_: FilterFlag = None, *, options: SwarmListOptions) -> None:
    """List nodes."""
    wanted = filters(filter_)
    managers = reading(context, options.stale)
    nodes: list[types.Node] = []
    statuses: dict[str, str] = {}
    for page in listed(managers, lambda stub: stub.ListNodes, wanted):
        nodes.extend(page.nodes)
        statuses = manager_statuses(page)
    here = self_id(managers) if options.format == "table" and not options.quiet else ""
    output.print_list(
        options,
        COLUMNS,
        sorted(nodes, key=lambda node: (node.role != types.NODE_ROLE_MANAGER, name_of(node), node.id)),
        row=lambda node: node_row(node, statuses.get(node.id, ""), here),
        identity=lambda node: node.id,
        document=lambda node: {**as_json(node), "manager_status": statuses.get(node.id) or None},
    )
    if options.format == "table" and not options.quiet:
        for hint in left_behind(nodes):
            output.note(hint)


def left_behind(nodes: Sequence[types.Node]) -> Iterable[str]:
    """What to do about nodes that are only listed because nobody removed them: they left, or their host joined anew."""
    present = {node.description.address for node in nodes if node.status.state == types.NODE_STATE_READY}
    for node in nodes:
        if node.status.state != types.NODE_STATE_DOWN:
            continue
        if node.description.address in present:
            why = "its host is a member again, as another node"
        elif node.status.message == NODE_LEFT:
            why = "it left the swarm"
        else:
            continue
        yield f"Node {name_of(node)} {node.id}: {why}; `swarmctl node rm {node.id}` takes it off the list."


def manager_statuses(answer: control.ListNodesResponse) -> dict[str, str]:
    """By node id: Leader, Reachable or Unreachable."""
    found = {member.node_id: "Reachable" if member.reachable else "Unreachable" for member in answer.members}
    found.update({member.node_id: "Leader" for member in answer.members if member.leader})
    if answer.leader_id:
        found[answer.leader_id] = "Leader"
    return found


def node_row(node: types.Node, manager_status: str, here: str) -> list[str | Cell]:
    """A line of `node ls`; `here` is the id of the node that answered."""
    state = words.enum_word(types.NodeState.DESCRIPTOR, node.status.state).capitalize() or "Unknown"
    availability = words.enum_word(types.Availability.DESCRIPTOR, node.spec.availability).capitalize() or "Active"
    return [
        f"{node.id} {'*' if node.id == here else ' '}",
        Cell(name_of(node), "bold"),
        Cell(state, _STATUS_STYLES.get(node.status.state, "yellow")),
        Cell(availability, "" if availability == "Active" else "yellow"),
        Cell(manager_status, {"Leader": "bold green", "Unreachable": "red"}.get(manager_status, "")),
        node.description.engine_version,
        node.description.address,
    ]


def name_of(node: types.Node) -> str:
    return node.spec.name or node.description.hostname


def self_id(managers: Caller[ControlStub]) -> str:
    """The node that answers us."""
    return managers.call(lambda stub: stub.GetInfo, control.GetInfoRequest()).node_id


def _resolve_self(managers: Caller[ControlStub], reference: str) -> str:
    return self_id(managers) if reference == SELF else reference


@takes(InspectOptions)
def inspect(context: typer.Context, nodes: Nodes, *, options: InspectOptions) -> None:
    """Show nodes in full; `self` is the node that answers."""
    managers = reading(context, options.stale)

    def get(reference: str) -> types.Node:
        wanted = control.GetRequest(reference=_resolve_self(managers, reference))
        return managers.call(lambda stub: stub.GetNode, wanted).node

    if not options.pretty:
        inspect_each(nodes, get, document=as_json, pretty=None)
        return
    # Who leads is known of all managers together.
    statuses = manager_statuses(managers.call(lambda stub: stub.ListNodes, control.ListRequest(page_size=1)))
    inspect_each(nodes, get, document=as_json, pretty=lambda node: node_lines(node, statuses.get(node.id, "")))


@takes(SwarmListOptions)
def ps(
    context: typer.Context,
    nodes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NODE]…", help="Names or ids (default: self)", autocompletion=completion.nodes),
    ] = None,
    filter_: FilterFlag = None,
    *,
    options: SwarmListOptions,
) -> None:
    """List the tasks on nodes."""
    wanted = filters(filter_)
    managers = reading(context, options.stale)
    chosen = []
    for reference in nodes or [SELF]:
        request = control.GetRequest(reference=_resolve_self(managers, reference))
        node = managers.call(lambda stub: stub.GetNode, request).node
        chosen.append(control.Filter(key="node", value=node.id))
    print_tasks(managers, [*chosen, *wanted], options)


@dataclass
class NodeFlags:
    """The flags of `node update`."""

    availability: Annotated[
        str | None, typer.Option("--availability", metavar="active|pause|drain", help="Whether it takes tasks")
    ] = None
    role: Annotated[str | None, typer.Option("--role", metavar="worker|manager", help="What it shall be")] = None
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Name in place of the host's own")] = None
    label_add: Annotated[list[str] | None, typer.Option("--label-add", metavar="KEY=VALUE", help="Set a label")] = None
    label_rm: Annotated[list[str] | None, typer.Option("--label-rm", metavar="KEY", help="Remove a label")] = None


@takes(NodeFlags)
def update(
    context: typer.Context,
    node: Annotated[str, typer.Argument(metavar="NODE", help="Name or id", autocompletion=completion.nodes)],
    *,
    options: NodeFlags,
) -> None:
    """Change a node's availability, role, name or labels."""
    changed = _changer(options)
    change_node(session(context).control(), node, changed)
    output.line(node)


def _changer(options: NodeFlags) -> Callable[[types.NodeSpec], None]:
    """What the flags do to a spec. Raises InvalidArgument before anything is called."""
    availability = _word(options.availability, _AVAILABILITIES, "--availability")
    role = _word(options.role, _ROLES, "--role")
    added = labels(options.label_add or (), "--label-add")

    def change(spec: types.NodeSpec) -> None:
        if availability is not None:
            spec.availability = availability
        if role is not None:
            spec.desired_role = role
        if options.name is not None:
            spec.name = options.name
        for key in options.label_rm or ():
            spec.labels.pop(key, None)
        spec.labels.update(added)

    return change


def _word(text: str | None, known: Mapping[str, T], where: str) -> T | None:
    if text is not None and text not in known:
        raise InvalidArgument(f"{where} {text!r} is not known; write one of {', '.join(known)}")
    return None if text is None else known[text]


def change_node(managers: Caller[ControlStub], reference: str, change: Callable[[types.NodeSpec], None]) -> types.Node:
    """Reads a node, changes its spec and writes it with the version read; repeated where somebody else was quicker."""
    reference = _resolve_self(managers, reference)
    for attempt in range(MAX_CONFLICTS):
        read = managers.call(lambda stub: stub.GetNode, control.GetRequest(reference=reference)).node
        request = control.UpdateNodeRequest(reference=read.id, spec=read.spec, version=read.meta.version)
        change(request.spec)
        try:
            return managers.call(lambda stub: stub.UpdateNode, request).node
        except Conflict:
            if attempt == MAX_CONFLICTS - 1:
                raise
    raise AssertionError("the loop returns or raises")


def promote(context: typer.Context, nodes: Nodes) -> None:
    """Make nodes managers."""
    _set_role(context, nodes, types.NODE_ROLE_MANAGER, "promoted to a manager")


def demote(context: typer.Context, nodes: Nodes) -> None:
    """Make managers workers again."""
    _set_role(context, nodes, types.NODE_ROLE_WORKER, "demoted to a worker")


def _set_role(context: typer.Context, nodes: list[str], role: int, done: str) -> None:
    managers = session(context).control()
    already = "manager" if role == types.NODE_ROLE_MANAGER else "worker"

    def change(reference: str) -> None:
        before: list[int] = []

        def set_role(spec: types.NodeSpec) -> None:
            before.append(spec.desired_role)
            spec.desired_role = role  # type: ignore[assignment]

        change_node(managers, reference, set_role)
        output.line(f"Node {reference} is already a {already}." if before[-1] == role else f"Node {reference} {done}.")

    for_each(_own_last(managers, nodes) if role == types.NODE_ROLE_WORKER else nodes, change)


def _own_last(managers: Caller[ControlStub], nodes: list[str]) -> list[str]:
    """The nodes with that of the manager which we talk to at the end: once demoted, it may not hand on what is left to do."""
    if len(nodes) < 2:
        return nodes
    own = self_id(managers)

    def is_own(reference: str) -> bool:
        if reference in (SELF, own):
            return True
        try:
            return managers.call(lambda stub: stub.GetNode, control.GetRequest(reference=reference)).node.id == own
        except SwarmError:
            return False  # its turn will tell

    return sorted(nodes, key=is_own)


def rm(
    context: typer.Context,
    nodes: Nodes,
    force: Annotated[
        bool,
        typer.Option("--force", "-f", help="Even if it is not down: its certificate is revoked, its tasks given up"),
    ] = False,
) -> None:
    """Remove nodes from the swarm."""
    managers = session(context).control()

    def remove(reference: str) -> None:
        request = control.RemoveNodeRequest(reference=_resolve_self(managers, reference), force=force)
        managers.call(lambda stub: stub.RemoveNode, request)
        output.line(reference)

    for_each(nodes, remove)
