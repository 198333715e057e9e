"""What an agent may say, before any of it goes into the log: pure checks of form and size.

A node's certificate proves who speaks, not that it speaks sense. Whatever is stored here is replicated to all managers and
sent to other nodes, so that one broken or hostile agent could fill the log, or hold up the statuses of all others with one
that fits into no entry.
"""

from __future__ import annotations

import ipaddress

from swarm.errors import InvalidArgument
from swarm.v1 import dispatcher_pb2 as dispatcher
from swarm.v1 import types_pb2 as types

MAX_STATUS_BYTES = 8 << 10  # an honest one has some hundred
MAX_STATUS_TEXT = 500  # characters of each text in a longer one
MAX_DESCRIPTION_BYTES = 64 << 10  # mostly labels
MAX_WORD = 256  # characters of a host's name, of a boot's id
_CUT = "… (cut)"


def check_hello(hello: dispatcher.SessionHello) -> None:
    """Raises InvalidArgument, naming what is wrong."""
    if not 0 < len(hello.boot_id) <= MAX_WORD:
        raise InvalidArgument("a session begins with a hello that names the agent's boot")
    description = hello.description
    if description.ByteSize() > MAX_DESCRIPTION_BYTES:
        raise InvalidArgument(
            f"the node's description is {description.ByteSize()} bytes large, {MAX_DESCRIPTION_BYTES} are allowed; give the "
            "node fewer or shorter labels"
        )
    if len(description.hostname) > MAX_WORD or not description.hostname.isprintable():
        raise InvalidArgument(f"the host's name must be at most {MAX_WORD} printable characters")
    if description.address:
        try:
            ipaddress.ip_address(description.address)
        except ValueError as error:
            raise InvalidArgument(f"the node's address {description.address[:MAX_WORD]!r} is no IP address") from error


def bounded(status: types.TaskStatus) -> types.TaskStatus:
    """The status, or a copy with shorter texts where it is too large. Raises InvalidArgument where that does not help."""
    if status.ByteSize() <= MAX_STATUS_BYTES:
        return status
    short = types.TaskStatus()
    short.CopyFrom(status)
    short.message, short.error = _cut(status.message), _cut(status.error)
    if status.HasField("container"):
        short.container.last_output = _cut(status.container.last_output)
    if short.ByteSize() > MAX_STATUS_BYTES:
        raise InvalidArgument(
            f"a task's status of {short.ByteSize()} bytes is larger than the {MAX_STATUS_BYTES} allowed"
        )
    return short


def _cut(text: str) -> str:
    return text if len(text) <= MAX_STATUS_TEXT else text[: MAX_STATUS_TEXT - len(_CUT)] + _CUT
