"""Netlink: framing, attributes, batches of requests with their acknowledgements, dumps.

A batch of any number of requests costs a few system calls. Each request says in words what it does and which refusals
mean that it was done already, so that a failure becomes a sentence. Written out here because a general library costs 20 MB
and a third of a second at every start of an agent, and the agent needs twelve messages.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

NETLINK_ROUTE = 0
NETLINK_SOCK_DIAG = 4
NETLINK_NETFILTER = 12

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400

NLMSG_ERROR = 2
NLMSG_DONE = 3
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

SOL_NETLINK = 270
NETLINK_EXT_ACK = 11
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
NLMSGERR_ATTR_MSG = 1

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")

RECEIVE_BYTES = 1 << 18
BATCH_BYTES = 32 * 1024  # the kernel handles a batch before send returns; acknowledgements must fit the receive buffer
BATCH_REQUESTS = 128
TIMEOUT_SECONDS = 10


class KernelRefused(OSError):
    """The kernel refused a request; `what` says which."""

    def __init__(self, number: int, what: str, detail: str) -> None:
        super().__init__(number, f"cannot {what}: {os.strerror(number)}{f' ({detail})' if detail else ''}")


@dataclass(frozen=True)
class Request:
    """One message. `ignore` names refusals that mean that there was nothing to do."""

    type: int
    flags: int
    payload: bytes
    what: str
    ignore: frozenset[int] = frozenset()


EXISTS = frozenset({errno.EEXIST})
# What a removal is refused with where the object, or the interface that it was on, is gone.
GONE = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL})


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    length = 4 + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + b"\0" * (-length % 4)


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def u8(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=B", value))


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def nested(kind: int, *values: bytes) -> bytes:
    return attribute(kind | NLA_F_NESTED, b"".join(values))


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes of a message, by type; of several of one type the last."""
    return dict(_attributes(data))


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            return
        yield kind & NLA_TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


class NetlinkSocket:
    """A netlink socket of the namespace that the calling thread is in; it stays there. Not for use by two threads at once."""

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.settimeout(TIMEOUT_SECONDS)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        self._socket.bind((0, 0))
        self._sequence = 0

    def __enter__(self) -> NetlinkSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def execute(self, requests: Iterable[Request]) -> None:
        """Carries the requests out in order. All are tried; then the first refusal is raised as KernelRefused."""
        refused: KernelRefused | None = None
        for batch in _batches(list(requests)):
            refused = self._execute_batch(batch) or refused
        if refused is not None:
            raise refused

    def _execute_batch(self, batch: Sequence[Request]) -> KernelRefused | None:
        waiting: dict[int, Request] = {}
        frames = []
        for request in batch:
            self._sequence += 1
            waiting[self._sequence] = request
            flags = request.flags | NLM_F_REQUEST | NLM_F_ACK
            frames.append(_frame(request.type, flags, self._sequence, request.payload))
        self._socket.send(b"".join(frames))
        first: KernelRefused | None = None
        while waiting:
            for kind, flags, sequence, payload in self._receive():
                if kind != NLMSG_ERROR or sequence not in waiting:
                    continue
                request = waiting.pop(sequence)
                number = -_ERROR.unpack_from(payload)[0]
                if number and number not in request.ignore:
                    first = first or KernelRefused(number, request.what, _extended_message(flags, payload))
        return first

    def dump(self, kind: int, payload: bytes, flags: int = NLM_F_DUMP) -> list[bytes]:
        """The payloads of all answers to a dump request."""
        self._sequence += 1
        self._socket.send(_frame(kind, NLM_F_REQUEST | flags, self._sequence, payload))
        found: list[bytes] = []
        while True:
            for answer, _, sequence, body in self._receive():
                if sequence != self._sequence:
                    continue
                if answer == NLMSG_DONE:
                    return found
                if answer == NLMSG_ERROR:
                    raise KernelRefused(-_ERROR.unpack_from(body)[0], "list kernel objects", "")
                found.append(body)

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        data = self._socket.recv(RECEIVE_BYTES)
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
            if length < _HEADER.size:
                return
            yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
            offset += (length + 3) & ~3


def _frame(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    length = _HEADER.size + len(payload)
    return _HEADER.pack(length, kind, flags, sequence, 0) + payload + b"\0" * (-length % 4)


def _batches(requests: list[Request]) -> Iterator[list[Request]]:
    batch: list[Request] = []
    size = 0
    for request in requests:
        if batch and (size + len(request.payload) > BATCH_BYTES or len(batch) == BATCH_REQUESTS):
            yield batch
            batch, size = [], 0
        batch.append(request)
        size += len(request.payload) + _HEADER.size
    if batch:
        yield batch


def _extended_message(flags: int, payload: bytes) -> str:
    """The kernel's own words on a refusal, where it gives some: they follow the request that it echoes."""
    if not flags & NLM_F_ACK_TLVS:
        return ""
    (echoed,) = struct.unpack_from("=I", payload, 4)
    start = 4 + (_HEADER.size if flags & NLM_F_CAPPED else (echoed + 3) & ~3)
    message = attributes(payload[start:]).get(NLMSGERR_ATTR_MSG, b"")
    return message.rstrip(b"\0").decode(errors="replace")
