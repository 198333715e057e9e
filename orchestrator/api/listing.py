"""Filters and pages of lists.

Filters of one key are alternatives, of different keys all must hold. Objects come in the order of (name, id); a page ends
with a token that names the last object of it, so that what is created or removed between two pages neither repeats nor
hides another.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from google.protobuf.message import Message
from swarm.errors import InvalidArgument
from swarm.v1 import control_pb2

T = TypeVar("T", bound=Message)

MAX_PAGE = 1000
MAX_PAGE_BYTES = 3 << 20  # messages stay under 4 MiB

Predicate = Callable[[T, str], bool]  # (object, value of the filter)


def matching(
    objects: Iterable[T], filters: Sequence[control_pb2.Filter], predicates: Mapping[str, Predicate[T]]
) -> list[T]:
    """The objects that pass `filters`. Raises InvalidArgument for a key that is not in `predicates`."""
    wanted: dict[str, list[str]] = {}
    for entry in filters:
        if entry.key not in predicates:
            raise InvalidArgument(f"filter {entry.key!r} is not known here; known are {', '.join(sorted(predicates))}")
        wanted.setdefault(entry.key, []).append(entry.value)
    return [
        obj
        for obj in objects
        if all(any(predicates[key](obj, value) for value in values) for key, values in wanted.items())
    ]


def label_matches(labels: Mapping[str, str], value: str) -> bool:
    """`k`: the label is there; `k=v`: it has that value."""
    key, equals, wanted = value.partition("=")
    return key in labels and (not equals or labels[key] == wanted)


def page(
    objects: Iterable[T], key: Callable[[T], tuple[str, str]], page_size: int, page_token: str
) -> tuple[list[T], str]:
    """One page in the order of `key` (name, id), and the token of the next one (empty at the end)."""
    if page_size > MAX_PAGE:
        raise InvalidArgument(f"page_size: at most {MAX_PAGE} objects come in one page")
    after = _decode(page_token) if page_token else None
    remaining = sorted((obj for obj in objects if after is None or key(obj) > after), key=key)
    taken: list[T] = []
    size = 0
    for obj in remaining:
        size += obj.ByteSize()
        if taken and (len(taken) == (page_size or MAX_PAGE) or size > MAX_PAGE_BYTES):
            return taken, _encode(key(taken[-1]))
        taken.append(obj)
    return taken, ""


def fitting(objects: Iterable[T], most: int) -> list[T]:
    """The first of `objects`, at most `most`, and no more than fit into a message."""
    taken: list[T] = []
    size = 0
    for obj in objects:
        size += obj.ByteSize()
        if len(taken) == most or size > MAX_PAGE_BYTES:
            break
        taken.append(obj)
    return taken


def _encode(key: tuple[str, str]) -> str:
    return base64.urlsafe_b64encode("\0".join(key).encode()).decode()


def _decode(token: str) -> tuple[str, str]:
    try:
        name, id_ = base64.urlsafe_b64decode(token.encode()).decode().split("\0")
    except (ValueError, binascii.Error) as error:
        raise InvalidArgument("page_token: this token was not handed out by a list") from error
    return name, id_
