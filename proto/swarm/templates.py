"""Placeholders in a service's environment, host name and mount sources: `{{.Task.Slot}}`, as Docker Swarm writes them.

Each task fills them in for itself. The managers check them when a service is written, so that a misspelled one is an error
and not a text that reaches the container.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from swarm.errors import InvalidArgument
from swarm.names import is_host_name, is_volume_name, task_name
from swarm.v1 import types_pb2 as types

# Names and semantics: docs.docker.com/engine/reference/commandline/service_create, "Create services using templates".
PLACEHOLDERS = (
    ".Service.ID", ".Service.Name", ".Service.Labels.KEY", ".Node.ID", ".Node.Hostname", ".Node.Platform.OS",
    ".Node.Platform.Architecture", ".Task.ID", ".Task.Name", ".Task.Slot",
)  # fmt: skip
_ACTION = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.DOTALL)
_LABEL = re.compile(r'(?:index\s+\.Service\.Labels\s+"([^"]*)"|\.Service\.Labels\.([A-Za-z0-9_]+))')
_TEXT = re.compile(r'"([^"\\]*)"|`([^`]*)`')  # {{"{{"}}: the braces themselves


@dataclass(frozen=True)
class Values:
    """What the placeholders of one task stand for."""

    plain: Mapping[str, str]
    labels: Mapping[str, str] = field(default_factory=dict)  # of the service
    missing_label: str = ""


# What a check fills in: fit for any place that takes a name.
SAMPLE = Values({name: "11" for name in PLACEHOLDERS if name != ".Service.Labels.KEY"}, missing_label="11")


def values_of(task: types.Task, spec: types.ServiceSpec, node: types.NodeDescription) -> Values:
    """`spec`: of the task's revision; `node`: the one that the task is assigned to."""
    return Values(
        {
            ".Service.ID": task.service_id,
            ".Service.Name": task.service_name,
            ".Node.ID": task.node_id,
            ".Node.Hostname": node.hostname,
            ".Node.Platform.OS": node.os,
            ".Node.Platform.Architecture": node.architecture,
            ".Task.ID": task.id,
            ".Task.Name": f"{task_name(task.service_name, task.slot, task.node_id)}.{task.id}",
            ".Task.Slot": str(task.slot or task.node_id),
        },
        dict(spec.labels),
    )


def expanded(text: str, values: Values) -> str:
    """The text with its placeholders filled in. Raises InvalidArgument for one that there is not."""
    return _ACTION.sub(lambda found: _value(found, values), text) if "{{" in text else text


def _value(found: re.Match[str], values: Values) -> str:
    name = found[1]
    if name in values.plain:
        return values.plain[name]
    if label := _LABEL.fullmatch(name):
        return values.labels.get(label[1] or label[2], values.missing_label)
    if literal := _TEXT.fullmatch(name):
        return literal[1] or literal[2] or ""
    raise InvalidArgument(
        f"{found[0][:80]!r} is no placeholder; there are {', '.join(PLACEHOLDERS)}"
        ' (write {{"{{"}} where two braces are meant)'
    )


def has_placeholders(container: types.ContainerSpec) -> bool:
    """Whether anything is to be filled in: what that would be is not worth finding out otherwise."""
    return any(
        "{{" in text for text in (container.hostname, *container.env, *(mount.source for mount in container.mounts))
    )


def expand_container(container: types.ContainerSpec, values: Values) -> types.ContainerSpec:
    """The container with every placeholder filled in; itself where it has none. Raises InvalidArgument where what comes out is
    no host name or no volume's name."""
    if not has_placeholders(container):
        return container
    filled = types.ContainerSpec()
    filled.CopyFrom(container)
    filled.hostname = expanded(container.hostname, values)
    if filled.hostname != container.hostname and not is_host_name(filled.hostname):
        raise InvalidArgument(f"the host name {container.hostname!r} becomes {filled.hostname!r}, which is none")
    filled.env[:] = [expanded(entry, values) for entry in container.env]
    for mount in filled.mounts:
        template, mount.source = mount.source, expanded(mount.source, values)
        is_named = mount.type == types.MOUNT_TYPE_VOLUME and mount.source != template
        if is_named and not is_volume_name(mount.source):
            raise InvalidArgument(f"the volume {template!r} becomes {mount.source!r}, which is no volume's name")
    return filled
