"""Checks of single values, shared by the specs: names, labels, durations, numbers, lists without duplicates."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping

from google.protobuf.duration_pb2 import Duration
from swarm.clock import seconds_of
from swarm.errors import InvalidArgument

MAX_NAME = 63  # a DNS label: names of services and networks are looked up
MAX_LABELS = 256
MAX_LABEL_BYTES = 64 << 10  # of all labels of one object
MAX_DURATION = 365 * 86400.0  # seconds
_NAME = re.compile(r"[a-zA-Z0-9](?:[-_]*[a-zA-Z0-9])*")
_DOTTED_NAME = re.compile(r"[a-zA-Z0-9](?:[-_.]*[a-zA-Z0-9])*")


def refuse(field: str, problem: str) -> InvalidArgument:
    """The error of a field: `task.container.env: …`."""
    return InvalidArgument(f"{field}: {problem}")


def check_name(field: str, name: str, *, dots: bool = False) -> None:
    """A name that people choose and that becomes a DNS label."""
    if not name:
        raise refuse(field, "a name is needed")
    allowed = "letters, digits, '-', '_'" + (" and '.'" if dots else "")
    if len(name) > MAX_NAME:
        raise refuse(field, f"{name[:MAX_NAME]!r}… has {len(name)} characters; at most {MAX_NAME} are allowed")
    if not (_DOTTED_NAME if dots else _NAME).fullmatch(name):
        raise refuse(field, f"{name!r} must consist of {allowed}, and begin and end with a letter or digit")


def check_text(field: str, value: str, *, maximum: int = 4096, empty: bool = True) -> None:
    """Text without the characters that nothing can carry."""
    if not value and not empty:
        raise refuse(field, "must not be empty")
    if "\0" in value:
        raise refuse(field, "must not contain a NUL character")
    if len(value) > maximum:
        raise refuse(field, f"has {len(value)} characters; at most {maximum} are allowed")


def check_labels(field: str, labels: Mapping[str, str]) -> None:
    if len(labels) > MAX_LABELS:
        raise refuse(field, f"has {len(labels)} labels; at most {MAX_LABELS} are allowed")
    size = 0
    for key, value in labels.items():
        if not key or not key.isprintable() or any(character.isspace() or character == "=" for character in key):
            raise refuse(field, f"{key!r} is not a label name: it must not be empty or contain spaces or '='")
        check_text(f"{field}.{key}", value, maximum=MAX_LABEL_BYTES)
        size += len(key) + len(value)
    if size > MAX_LABEL_BYTES:
        raise refuse(field, f"is {size} bytes large; at most {MAX_LABEL_BYTES} are allowed")


def check_duration(
    field: str, value: Duration, *, minimum: float = 0.0, or_zero: bool = True, maximum: float = MAX_DURATION
) -> None:
    """Seconds between `minimum` and `maximum`; 0 stands for the default where `or_zero`."""
    seconds = seconds_of(value)
    if seconds < 0:
        raise refuse(field, f"{seconds:g} s is negative; give a duration of 0 or more")
    if seconds == 0 and or_zero:
        return
    if seconds < minimum:
        raise refuse(field, f"{seconds:g} s is too short; give at least {minimum:g} s")
    if seconds > maximum:
        raise refuse(field, f"{seconds:g} s is too long; at most {maximum:g} s are allowed")


def check_range(field: str, value: float, minimum: float, maximum: float) -> None:
    if not minimum <= value <= maximum:
        raise refuse(field, f"{value:g} is out of range; give a number from {minimum:g} to {maximum:g}")


def check_enum(field: str, name_of_value: str | None, value: int) -> None:
    """`name_of_value` is what the enum calls `value`, None where this version does not know it."""
    if name_of_value is None:
        raise refuse(field, f"the value {value} is not known to this version")


def check_count(field: str, count: int, maximum: int) -> None:
    if count > maximum:
        raise refuse(field, f"has {count} entries; at most {maximum} are allowed")


def first_duplicate(values: Iterable[Hashable]) -> Hashable | None:
    seen: set[Hashable] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
