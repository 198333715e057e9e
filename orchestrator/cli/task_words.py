"""What is said of a task, wherever it shows up. Pure."""

from __future__ import annotations

from swarm.v1 import types_pb2 as types

from orchestrator.cli import words


def task_label(task: types.Task) -> str:
    return f"{task.service_name}.{task.slot or task.node_id[:12]}"


def problem_of(task: types.Task) -> str:
    """Why a task failed, or why it gets no address or no node; empty where all is well."""
    if task.status.error:
        output_line = task.status.container.last_output
        if output_line and output_line not in task.status.error:
            return f"{task.status.error} (last output: {words.shorten(output_line, 120)})"
        return task.status.error
    if task.status.state == types.TASK_STATE_NEW:
        return task.status.message  # the allocator only speaks where something is missing
    if task.status.state == types.TASK_STATE_PENDING and task.status.message.startswith("no suitable node"):
        return task.status.message
    return ""
