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
from orchestrator.cli.invocation import session
from orchestrator.cli.messages import as_json
from orchestrator.cli.session import Session

Format = Annotated[str, typer.Option("--format", "-f", metavar="table|json", help="How to print")]


def info(context: typer.Context, output_format: Format = "table") -> None:
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
        for state in states:
            _host_lines(state)
        if swarm is not None:
            _swarm_lines(swarm)
    if failure is not None and not states:
        raise failure
    if failure is not None and any(state.role == types.NODE_ROLE_MANAGER for state in states):
        raise failure


def _host_lines(state: Any) -> None:
    role = words.enum_word(types.NodeRole.DESCRIPTOR, state.role)
    output.line(f"Node: {state.node_id or 'none'}")
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


def _swarm_lines(swarm: control.GetInfoResponse) -> None:
    output.line(f"Swarm: {swarm.cluster_id}")
    output.line(f" Answered by: {swarm.node_id}")
    output.line(f" Leader: {swarm.leader_id or 'none'}")
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
        words_of = [member.node_id, member.address, "reachable" if member.reachable else "unreachable"]
        if member.leader:
            words_of.append("leader")
        output.line(f"  {'  '.join(words_of)}")


def version(context: typer.Context, output_format: Format = "table") -> None:
    """Show the version of this program and, where one answers, of the manager."""
    output.check_format(output_format)
    client = {"version": VERSION, "python": platform.python_version()}
    manager = _manager_version(session(context))
    if output_format == "json":
        output.print_json({"client": client, "manager": {"version": manager} if manager else None})
        return
    output.line(f"Client: {client['version']} (Python {client['python']})")
    if manager:
        output.line(f"Manager: {manager}")


def _manager_version(made: Session) -> str:
    try:
        return made.control().call(lambda stub: stub.GetInfo, control.GetInfoRequest(), timeout=2.0).version
    except SwarmError:
        return ""  # the client's version is an answer by itself
