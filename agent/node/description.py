"""What a node says of itself: resources, versions, and the address that others reach it at."""

from __future__ import annotations

import ipaddress
import os
import platform
import re
import socket
import struct
from collections.abc import Mapping
from pathlib import Path

from swarm.errors import InvalidArgument
from swarm.v1 import types_pb2 as types
from swarm.version import VERSION

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def describe(hostname: str, address: str, agent_port: int, labels: Mapping[str, str]) -> types.NodeDescription:
    machine = platform.machine()
    return types.NodeDescription(
        hostname=hostname,
        os="linux",
        architecture=_ARCHITECTURES.get(machine, machine),
        resources=types.Resources(nano_cpus=len(os.sched_getaffinity(0)) * 10**9, memory_bytes=_memory_bytes()),
        engine_version=VERSION,
        kernel=platform.release(),
        address=address,
        agent_port=agent_port,
        engine_labels=dict(labels),
    )


def _memory_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    found = re.search(r"^MemTotal:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def advertised(address: str) -> str:
    """The IP address that others reach this node at: `address` where it is one, the address of the interface of that name,
    or – where it is empty – of the default route's interface. Raises InvalidArgument where that says nothing."""
    if not address:
        return _of_default_route()
    try:
        parsed = ipaddress.ip_address(address.strip("[]"))
    except ValueError as error:
        if address in _interfaces():
            return _of_interface(address)
        raise InvalidArgument(
            f"the address to advertise, {address!r}, is neither an IP address nor an interface of this host"
        ) from error
    if parsed.is_unspecified or parsed.is_multicast:
        raise InvalidArgument(f"the address to advertise, {address}, is not one that other nodes could reach")
    return str(parsed)


def split_advertised(text: str) -> tuple[str, int | None]:
    """IP[:PORT] → (IP, PORT or None); an interface's name in place of the IP. Raises InvalidArgument."""
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        if not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise InvalidArgument(f"{text!r} is not an address: write IP or IP:PORT with a port from 1 to 65535")
        return host, int(port)
    return text, None


def _interfaces() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def _of_default_route(routes: Path = Path("/proc/net/route")) -> str:
    """The interface of the IPv4 default route with the smallest metric."""
    found: list[tuple[int, str]] = []
    for line in routes.read_text().splitlines()[1:]:
        fields = line.split()
        if len(fields) >= 8 and fields[1] == "00000000" and fields[7] == "00000000":
            found.append((int(fields[6]), fields[0]))
    if not found:
        raise InvalidArgument(
            "this host has no default route, so its address cannot be guessed; name it with --advertise-addr"
        )
    return _of_interface(min(found)[1])


def _of_interface(name: str) -> str:
    import fcntl

    request = struct.pack("256s", name.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), 0x8915, request)  # SIOCGIFADDR, netdevice(7)
        except OSError as error:
            raise InvalidArgument(
                f"the interface {name} has no IPv4 address; name the address with --advertise-addr"
            ) from error
    return socket.inet_ntoa(answer[20:24])


def check_own(address: str) -> None:
    """Raises InvalidArgument where `address` is not one of this host: tunnels could not be bound to it."""
    _check_bindable(address, "advertise", "--advertise-addr")


def check_listening(address: str) -> None:
    """Raises InvalidArgument where servers could not listen at `address`; where it is empty, they listen at all."""
    if not address:
        return
    try:
        ipaddress.ip_address(address)
    except ValueError as error:
        raise InvalidArgument(
            f"the address to listen at, {address!r}, is not an IP address; give one of this host's, without a port"
        ) from error
    _check_bindable(address, "listen at", "--listen-addr, or leave it out to listen at all of them")


def _check_bindable(address: str, purpose: str, remedy: str) -> None:
    """Raises InvalidArgument where a socket of this host cannot have the address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            raise InvalidArgument(
                f"the address to {purpose}, {address}, is not an address of this host ({error.strerror or error}); "
                f"name one of its interfaces' addresses with {remedy}"
            ) from error
