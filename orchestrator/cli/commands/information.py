"""`swarmctl info` and `swarmctl version`."""

from __future__ import annotations

import platform
from typing import Annotated, Any

import typer
from swarm.errors import SwarmError
from swarm.v1 import control_pb2 as control
from swarm.v1 import types_pb2 as types
from swarm.version import VERSION

from orchestrator.cli import output, words
from orchestrator.cli.commands.nodes import name_of
from orchestrator.cli.invocation import listed, session
from orchestrator.cli.messages import as_json
from orchestrator.cli.session import Session

Format = Annotated[str, typer.Option("--format", "-f", metavar="table|json", help="How to print")]


def info(
    context: typer.Context,
    output_format: Format = "table",
    _stale: Annotated[
        bool, typer.Option("--stale", help="Changes nothing: one manager's own view is what this command always shows")
    ] = False,
) -> None:
    """Show this host, its swarm and the managers' consensus."""
    output.check_format(output_format)
    made = session(context)
    states = made.states()
    failure: SwarmError | None = None
    swarm = None
    try:
        swarm = made.control().call(lambda stub: stub.GetInfo, control.GetInfoRequest())
    except SwarmError as error:
        failure = error
    if output_format == "json":
        output.print_json(
            {"swarm": as_json(swarm) if swarm is not None else None, "nodes": [as_json(state) for state in states]}
        )
    else:
        names = _names(made) if swarm is not None else {}
        for state in states:
            _host_lines(state, names)
        if swarm is not None:
            _swarm_lines(swarm, names)
    if failure is not None and not states:
        raise failure
    if failure is not None and any(state.role == types.NODE_ROLE_MANAGER for state in states):
        raise failure


def _names(made: Session) -> dict[str, str]:
    """Names of nodes by id; none where they cannot be had: ids tell the same, less readably."""
    try:
        managers = made.control(stale=True)  # that of the manager that tells the rest; works without a leader
        return {
            node.id: name_of(node)
            for page in listed(managers, lambda stub: stub.ListNodes, timeout=2.0)
            for node in page.nodes
        }
    except SwarmError:
        return {}


def _named(node_id: str, names: dict[str, str]) -> str:
    return f"{names[node_id]} ({node_id})" if names.get(node_id) else node_id or "none"


def _host_lines(state: Any, names: dict[str, str]) -> None:
    role = words.enum_word(types.NodeRole.DESCRIPTOR, state.role)
    output.line(f"Node: {_named(state.node_id, names)}")
    for name, text in (
        ("State", state.state + (f" ({state.message})" if state.message else "")),
        ("Role", role),
        ("Address", state.address),
        ("Tasks", str(state.tasks)),
        ("Managers", ", ".join(state.managers)),
        ("Version", state.version),
    ):
        if text:
            output.line(f" {name}: {text}")


def _swarm_lines(swarm: control.GetInfoResponse, names: dict[str, str]) -> None:
    output.line(f"Swarm: {swarm.cluster_id}")
    output.line(f" Answered by: {_named(swarm.node_id, names)}")
    output.line(f" Leader: {_named(swarm.leader_id, names)}")
    output.line(f" Nodes: {swarm.nodes}")
    output.line(f" Managers: {swarm.managers}")
    output.line(f" Services: {swarm.services}")
    output.line(f" Tasks: {swarm.tasks}")
    output.line(f" Version: {swarm.version}")
    raft = swarm.raft
    output.line(
        f" Consensus: {raft.role}, term {raft.term}, index {raft.commit_index} committed, {raft.applied_index} applied"
    )
    for member in raft.members:
        words_of = [_named(member.node_id, names), member.address, "reachable" if member.reachable else "unreachable"]
        if member.leader:
            words_of.append("leader")
        output.line(f"  {'  '.join(words_of)}")


def version(context: typer.Context, output_format: Format = "table") -> None:
    """Show the version of this program and, where one answers, of the manager."""
    output.check_format(output_format)
    client = {"version": VERSION, "python": platform.python_version()}
    manager = _manager_version(context)
    if output_format == "json":
        output.print_json({"client": client, "manager": {"version": manager} if manager else None})
        return
    output.line(f"Client: {client['version']} (Python {client['python']})")
    if manager:
        output.line(f"Manager: {manager}")


def _manager_version(context: typer.Context) -> str:
    try:
        return session(context).control().call(lambda stub: stub.GetInfo, control.GetInfoRequest(), timeout=2.0).version
    except SwarmError:
        return ""  # the client's version is an answer by itself
