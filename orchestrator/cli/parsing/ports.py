"""Published ports: `8080:80/udp`, `8000-8003:80-83`, `published=8080,target=80,mode=host`. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from swarm.errors import InvalidArgument
from swarm.v1 import types_pb2 as types

from orchestrator.cli.parsing.fields import pairs

PROTOCOLS = {"tcp": types.PORT_PROTOCOL_TCP, "udp": types.PORT_PROTOCOL_UDP}
MODES = {"ingress": types.PUBLISH_MODE_INGRESS, "host": types.PUBLISH_MODE_HOST}
_KEYS = ("name", "target", "published", "protocol", "mode")


def published(text: str, where: str = "--publish") -> list[types.PortConfig]:
    """The ports that one --publish means: several where it names a range.

    `80` publishes port 80 of the tasks at a port that the swarm chooses.
    """
    return _long(text, where) if "=" in text else _short(text, where)


def _short(text: str, where: str) -> list[types.PortConfig]:
    ports, slash, protocol = text.partition("/")
    outside, colon, target = ports.rpartition(":")
    if ":" in outside or "." in outside or "[" in outside:
        raise InvalidArgument(
            f"{where} {text!r} names an address: a service's port is published on every address of its hosts; "
            f"write {outside.rpartition(':')[2] or 'PUBLISHED'}:{target}"
        )
    if colon and not outside:
        raise InvalidArgument(f"{where} {text!r} lacks the published port before the colon; write 8080:{target or 80}")
    return _ranges(text, where, outside, target, protocol if slash else "tcp", "ingress", "")


def _long(text: str, where: str) -> list[types.PortConfig]:
    given = pairs(text, where, _KEYS)
    if not given.get("target"):
        raise InvalidArgument(f"{where} {text!r} lacks target=PORT, the port inside the container")
    return _ranges(
        text,
        where,
        given.get("published", ""),
        given["target"],
        given.get("protocol", "tcp"),
        given.get("mode", "ingress"),
        given.get("name", ""),
    )


def _ranges(  # noqa: PLR0917 – the parts of one port, and what they were written as
    text: str, where: str, outside: str, target: str, protocol: str, mode: str, name: str
) -> list[types.PortConfig]:
    if protocol.lower() not in PROTOCOLS:
        raise InvalidArgument(f"{where} {text!r}: {protocol!r} is not a protocol; write tcp or udp")
    if mode not in MODES:
        raise InvalidArgument(f"{where} {text!r}: {mode!r} is not a mode; write ingress or host")
    inside = _range(target, text, where)
    opened = _range(outside, text, where) if outside and outside != "0" else None
    if opened is not None and len(opened) != len(inside):
        raise InvalidArgument(
            f"{where} {text!r}: {len(opened)} published ports cannot lead to {len(inside)} ports of the container; "
            "write ranges of the same length"
        )
    return [
        types.PortConfig(
            name=name,
            protocol=PROTOCOLS[protocol.lower()],
            target_port=port,
            published_port=opened[number] if opened is not None else 0,
            mode=MODES[mode],
        )
        for number, port in enumerate(inside)
    ]


def _range(word: str, text: str, where: str) -> range:
    first, dash, last = word.partition("-")
    low = _port(first, text, where)
    high = _port(last, text, where) if dash else low
    if high < low:
        raise InvalidArgument(f"{where} {text!r}: the range {word} ends before it starts")
    return range(low, high + 1)


def _port(word: str, text: str, where: str) -> int:
    if not (word.isascii() and word.isdigit() and 0 < int(word) < 65536):
        raise InvalidArgument(f"{where} {text!r}: {word!r} is not a port; write a number from 1 to 65535")
    return int(word)


@dataclass(frozen=True)
class PortPattern:
    """What --publish-rm removes: a target port, or one pair of published and target port."""

    target: int
    published: int | None
    protocol: int

    def matches(self, port: types.PortConfig) -> bool:
        protocol = port.protocol or types.PORT_PROTOCOL_TCP
        return (
            port.target_port == self.target
            and protocol == self.protocol
            and self.published in (None, port.published_port)
        )


def patterns(text: str, where: str = "--publish-rm") -> list[PortPattern]:
    """`80`, `80/udp`, `8080:80`, ranges and the long form."""
    return [
        PortPattern(port.target_port, port.published_port or None, port.protocol) for port in published(text, where)
    ]


def describe(ports: Iterable[types.PortConfig]) -> str:
    """`*:8080->80/tcp, *:53->53/udp`; those without a number yet as `*:?->80/tcp`."""
    return ", ".join(
        f"*:{port.published_port or '?'}->{port.target_port}/{'udp' if port.protocol == types.PORT_PROTOCOL_UDP else 'tcp'}"
        for port in ports
    )
