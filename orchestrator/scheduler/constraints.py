"""Placement constraints and preferences: their grammar, and what they say about a node.

`KEY == VALUE` or `KEY != VALUE`, where KEY is node.id, node.hostname, node.role, node.platform.os, node.platform.arch,
node.labels.NAME or engine.labels.NAME. Values are compared without regard to case; a label that a node lacks is empty.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from swarm.errors import InvalidArgument
from swarm.v1.types_pb2 import NODE_ROLE_MANAGER, Node

from orchestrator.store.tables import node_name

_EXPRESSION = re.compile(r"([A-Za-z][\w.\-/]*)\s*(==|!=)(.*)")
_PLAIN_KEYS = ("node.id", "node.hostname", "node.role", "node.platform.os", "node.platform.arch")
_LABEL_PREFIXES = ("node.labels.", "engine.labels.")


@dataclass(frozen=True)
class Constraint:
    key: str
    equal: bool
    value: str

    def allows(self, node: Node) -> bool:
        return (attribute(node, self.key).casefold() == self.value.casefold()) == self.equal


@lru_cache(maxsize=4096)
def parse_constraint(text: str) -> Constraint:
    """Raises InvalidArgument where `text` is not of the form above."""
    match = _EXPRESSION.fullmatch(text.strip())
    if match is None:
        raise InvalidArgument(f'constraint "{text}" is not of the form KEY==VALUE or KEY!=VALUE')
    key, operator, value = match.groups()
    check_key(key)
    if not value.strip():
        raise InvalidArgument(f'constraint "{text}" names no value')
    return Constraint(key, operator == "==", value.strip())


def check_key(key: str) -> None:
    """Raises InvalidArgument where `key` names no attribute of a node."""
    if key in _PLAIN_KEYS or any(key.startswith(prefix) and key != prefix for prefix in _LABEL_PREFIXES):
        return
    raise InvalidArgument(
        f'"{key}" is not an attribute of a node; use {", ".join(_PLAIN_KEYS)}, node.labels.NAME or engine.labels.NAME'
    )


def attribute(node: Node, key: str) -> str:
    """What a node says about a key; empty where it says nothing."""
    if key.startswith("node.labels."):
        return node.spec.labels.get(key.removeprefix("node.labels."), "")
    if key.startswith("engine.labels."):
        return node.description.engine_labels.get(key.removeprefix("engine.labels."), "")
    plain = {
        "node.id": node.id,
        "node.hostname": node.description.hostname or node_name(node),
        "node.role": "manager" if node.role == NODE_ROLE_MANAGER else "worker",
        "node.platform.os": node.description.os,
        "node.platform.arch": node.description.architecture,
    }
    return plain.get(key, "")
