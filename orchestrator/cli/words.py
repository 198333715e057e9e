"""Times, sizes and enum values as people read them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.descriptor import EnumDescriptor

MINUTE, HOUR, DAY, WEEK, MONTH, YEAR = 60.0, 3600.0, 86400.0, 604800.0, 2592000.0, 31536000.0

# Up to how many seconds a unit is used, and how long it is.
_STEPS: tuple[tuple[float, float, str], ...] = (
    (MINUTE, 1.0, "second"),
    (HOUR, MINUTE, "minute"),
    (2 * DAY, HOUR, "hour"),
    (2 * WEEK, DAY, "day"),
    (2 * MONTH, WEEK, "week"),
    (2 * YEAR, MONTH, "month"),
    (float("inf"), YEAR, "year"),
)


def about(seconds: float) -> str:
    """`5 seconds`, `about a minute`, `3 hours`."""
    if seconds < 1:
        return "less than a second"
    length, unit = next((length, unit) for below, length, unit in _STEPS if seconds < below)
    count = int(seconds // length)
    if count == 1:
        return {"second": "1 second", "minute": "about a minute", "hour": "about an hour"}.get(unit, f"1 {unit}")
    return f"{count} {unit}s"


def ago(seconds: float) -> str:
    """`5 seconds ago`; a clock that is behind ours is now."""
    return f"{about(max(0.0, seconds))} ago"


def size(count: float) -> str:
    """Bytes with decimal units and three digits, as image sizes are written: `1.23MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g}TB"


def memory(count: int) -> str:
    """Bytes with binary units: `512MiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.4g}{unit}"
        value /= 1024
    return f"{value:.4g}TiB"


def cpus(nano: int) -> str:
    """`1.5` from 1500000000."""
    return f"{nano / 1e9:g}"


def duration(seconds: float) -> str:
    """`1h30m`, `10s`, `500ms`: as the flags take it."""
    milliseconds = round(seconds * 1000)
    if milliseconds <= 0:
        # Below a millisecond there are microseconds, as with every other program that writes durations so.
        return f"{round(seconds * 1e6)}us" if seconds > 0 else "0s"
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    whole, rest = divmod(rest, 1000)
    words = [f"{count}{unit}" for count, unit in ((hours, "h"), (minutes, "m"), (whole, "s"), (rest, "ms")) if count]
    return "".join(words)


def enum_word(descriptor: EnumDescriptor, number: int) -> str:
    """`on-failure` from RESTART_CONDITION_ON_FAILURE: the word that flags take; empty for the unspecified value."""
    value = descriptor.values_by_number.get(number)
    if value is None:
        return str(number)
    if number == 0:
        return ""
    prefix = descriptor.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return value.name.removeprefix(prefix).lower().replace("_", "-")


def short_id(identity: str, whole: bool = False) -> str:
    """The first 12 characters of an id, without the `sha256:` of an image's."""
    if whole:
        return identity
    return identity.removeprefix("sha256:")[:12]


def visible(text: str) -> str:
    """`text` with the characters that a terminal would obey written out: hosts' names and what containers print are
    strangers' words. Tabs and ends of lines stay."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in "\t\n" else character.encode("unicode_escape").decode()
        for character in text
    )


def shorten(text: str, length: int, whole: bool = False) -> str:
    """At most `length` characters in one line."""
    line = " ".join(text.split())
    return line if whole or len(line) <= length else line[: length - 1] + "…"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
