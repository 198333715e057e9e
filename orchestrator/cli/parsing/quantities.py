"""Durations, sizes and CPUs: `1h30m`, `512m`, `0.5`. Pure.

`where` is the flag, for the complaint.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from google.protobuf.duration_pb2 import Duration
from swarm.errors import InvalidArgument

_NANOS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
    "d": 86_400_000_000_000,
}
_TERM = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h|d)")
_MAX_NANOS = 100 * 365 * _NANOS["d"]

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([bkmgtp]?)(?:ib|b)?", re.IGNORECASE)
_BYTES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_MAX_INT64 = (1 << 63) - 1


def duration(text: str, where: str) -> Duration:
    """A duration of one or more terms with units (ns, us, ms, s, m, h, d); a bare 0 is allowed."""
    word = text.strip()
    nanos = 0
    if word != "0":
        position = 0
        for term in _TERM.finditer(word):
            if term.start() != position:
                break
            nanos += int(Decimal(term[1]) * _NANOS[term[2]])
            position = term.end()
        if not word or position != len(word):
            hint = f"; {word} seconds are written {word}s" if _is_number(word) else ""
            raise InvalidArgument(f"{where} {text!r} is not a duration: write it as 500ms, 10s or 1h30m{hint}")
    if nanos > _MAX_NANOS:
        raise InvalidArgument(f"{where} {text!r} is too long: at most 100 years")
    return Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)


def byte_count(text: str, where: str) -> int:
    """Bytes from `1073741824`, `512m`, `1.5GiB`; units are powers of 1024 with or without the i, as with docker."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidArgument(f"{where} {text!r} is not a size: write it in bytes or as 64k, 512m or 2g")
    count = int(Decimal(match[1]) * _BYTES[match[2].lower()])
    if count > _MAX_INT64:
        raise InvalidArgument(f"{where} {text!r} is more than fits into 63 bits")
    return count


def nano_cpus(text: str, where: str) -> int:
    """Billionths of a CPU from `0.5` or `2`."""
    try:
        value = Decimal(text.strip())
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite() or value < 0:
        raise InvalidArgument(f"{where} {text!r} is not a number of CPUs: write it as 0.5 or 2")
    if value > _MAX_INT64 // 10**9:
        raise InvalidArgument(f"{where} {text!r} is more CPUs than there can be")
    nano = value * 10**9
    if nano != int(nano):
        raise InvalidArgument(f"{where} {text!r} is too precise: at most nine digits after the point")
    return int(nano)


def count(text: str, where: str, maximum: int = 2**63 - 1) -> int:
    """A whole number that is not negative."""
    if not re.fullmatch(r"[0-9]+", text.strip()):
        raise InvalidArgument(f"{where} {text!r} is not a number: write a whole number that is not negative")
    value = int(text)
    if value > maximum:
        raise InvalidArgument(f"{where} {text} is out of range: at most {maximum}")
    return value


def _is_number(word: str) -> bool:
    return re.fullmatch(r"[0-9]+(\.[0-9]*)?", word) is not None
