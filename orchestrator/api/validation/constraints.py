"""The syntax of placement constraints and preferences: `node.labels.zone == a`, `node.role != manager`."""

from __future__ import annotations

import re

from orchestrator.api.validation.fields import refuse

_CONSTRAINT = re.compile(r"\s*(?P<key>[^\s=!]+)\s*(?P<operator>==|!=)\s*(?P<value>.*?)\s*")
_VALUE = re.compile(r"(?i)[a-z0-9:\-_\s.*()?+\[\]\\^$|/]+")
PLAIN_KEYS = frozenset(
    {"node.id", "node.hostname", "node.name", "node.role", "node.platform.os", "node.platform.arch", "node.ip"}
)
LABEL_PREFIXES = ("node.labels.", "engine.labels.")
_ROLES = frozenset({"manager", "worker"})
_KNOWN = "node.id, node.hostname, node.role, node.ip, node.platform.os, node.platform.arch, node.labels.… and engine.labels.…"


def check_constraint(field: str, text: str) -> None:
    """Raises InvalidArgument where `text` is not KEY == VALUE or KEY != VALUE with a key that nodes have."""
    match = _CONSTRAINT.fullmatch(text)
    if match is None:
        raise refuse(field, f"{text!r} is not a constraint; write `KEY==VALUE` or `KEY!=VALUE`")
    key, value = match["key"], match["value"]
    _check_key(field, key)
    if not value or not _VALUE.fullmatch(value):
        raise refuse(field, f"{text!r} compares with {value!r}, which is not a value that nodes can have")
    if key == "node.role" and value not in _ROLES:
        raise refuse(field, f"{text!r}: a role is `manager` or `worker`")


def check_preference(field: str, text: str) -> None:
    """Raises InvalidArgument where `text` is not a key by whose values tasks can be spread."""
    _check_key(field, text)
    if not text.startswith(LABEL_PREFIXES):
        raise refuse(field, f"{text!r}: tasks spread over node.labels.… or engine.labels.… only")


def _check_key(field: str, key: str) -> None:
    if key in PLAIN_KEYS:
        return
    for prefix in LABEL_PREFIXES:
        if key.startswith(prefix) and len(key) > len(prefix):
            return
    raise refuse(field, f"{key!r} is not known; constraints can name {_KNOWN}")
