"""Protobuf messages as JSON for people and scripts.

Every field of a message is there, under its name in the `.proto` file, so that the shape does not depend on the values:
an unset message is null, of a `oneof` only the chosen member shows. Numbers are numbers, enum values and durations the
words that flags take (`on-failure`, `1h30m`), times RFC 3339 in UTC, bytes text where they are text (PEM) and base64
where not.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import Message

from orchestrator.cli import words


def as_json(message: Message) -> dict[str, Any]:
    """A message as what `json.dumps` takes."""
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        oneof = field.containing_oneof
        if oneof is not None and message.WhichOneof(oneof.name) != field.name:
            continue
        found[field.name] = _field(message, field)
    return found


def _field(message: Any, field: Any) -> Any:
    value = getattr(message, field.name)
    if not field.is_repeated:
        if field.message_type is not None and not message.HasField(field.name):
            return None
        return _value(field, value)
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        of = entry.fields_by_name["value"]
        return {str(key): _value(of, value[key]) for key in sorted(value)}
    return [_value(field, item) for item in value]


def _value(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        convert: Callable[[Any], Any] = _WELL_KNOWN.get(str(field.message_type.full_name), as_json)
        return convert(value)
    if field.enum_type is not None:
        return words.enum_word(field.enum_type, value) or None
    if isinstance(value, bytes):
        return _text(value)
    # A 32-bit float shows its conversion otherwise: 0.20000000298.
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _text(value: bytes) -> str:
    try:
        return value.decode("ascii")
    except UnicodeDecodeError:
        return base64.b64encode(value).decode()


_WELL_KNOWN: dict[str, Callable[[Any], Any]] = {
    "google.protobuf.Timestamp": lambda moment: rfc3339(moment.seconds, moment.nanos),
    "google.protobuf.Duration": lambda span: words.duration(span.seconds + span.nanos / 1e9),
}


def rfc3339(seconds: int, nanos: int) -> str:
    """`2026-01-31T12:00:00.123456789Z`; a whole second has no fraction."""
    whole = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{nanos:09d}".rstrip("0").rstrip(".")
    return f"{whole}{fraction}Z"
