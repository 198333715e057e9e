"""Builds and programs one container's namespace: interfaces, addresses, routes, sysctls, nftables.

Thin: everything is decided in a `Wiring` and in `Table`s. Runs on a thread of `NamespaceThreads` that starts in the host's
namespace.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from swarm.errors import InvalidArgument

from agent.network import namespaces, rtnetlink
from agent.network.host_kernel import remove_links
from agent.network.layout import (
    INGRESS_ROUTES,
    INGRESS_RULE_PRIORITY,
    MARK_MASK,
    MARK_PREFIX,
    port_alias,
)
from agent.network.namespaces import NamespaceThreads, write_sysctl
from agent.network.netlink import NetlinkSocket, Request
from agent.network.nft import NftContexts
from agent.network.wiring import Interface, Wiring

# Before there is any interface, so that each begins with them. Unprivileged programs may serve low ports and ping, as with
# other container engines. Published ports arrive from addresses that another interface leads to.
NAMESPACE_SYSCTLS = {
    "net.ipv6.conf.default.disable_ipv6": "1",
    "net.ipv4.conf.all.rp_filter": "0",
    "net.ipv4.conf.default.rp_filter": "0",
    "net.ipv4.ip_unprivileged_port_start": "0",
    "net.ipv4.ping_group_range": "0 2147483647",
}
_SYSCTL_NAME = re.compile(r"net\.[a-z0-9_.-]+")
LAST_RESORT_PRIORITY = 4096  # of a default route through the ingress network


@dataclass(frozen=True)
class Tools:
    """What jobs work with."""

    threads: NamespaceThreads
    contexts: NftContexts


def reserve(tools: Tools, path: Path) -> None:
    """Makes the namespace, without any interface, where it is not there yet. Raises OSError."""
    if namespaces.is_namespace(path):
        return
    try:
        namespaces.create(path)
        for name, value in NAMESPACE_SYSCTLS.items():
            with contextlib.suppress(FileNotFoundError):
                write_sysctl(name, value)
    except BaseException:
        namespaces.delete(path)
        raise
    finally:
        tools.threads.leave()


def build(tools: Tools, path: Path, wiring: Wiring, sysctls: Mapping[str, str], rules: str) -> None:
    """Puts everything into the namespace, made where it was not reserved. On failure nothing stays behind. Raises OSError and
    SwarmError."""
    for name in sysctls:
        if not _SYSCTL_NAME.fullmatch(name) or ".." in name:
            raise InvalidArgument(f'sysctl "{name}": only net.… can be set in a container\'s network')
    try:
        reserve(tools, path)
        with contextlib.ExitStack() as sockets:
            with tools.threads.inside(path):
                inner = sockets.enter_context(NetlinkSocket())
                nft = sockets.enter_context(tools.contexts.open())
            _join(path, wiring.interfaces)
            links = {link.name: link.index for link in rtnetlink.list_links(inner)}
            inner.execute(_inner_requests(wiring, links))
            nft.run(rules)
        if sysctls:
            with tools.threads.inside(path):
                for name, value in sysctls.items():
                    _set_asked(name, value)
    except BaseException:
        tools.threads.leave()
        tear_down(path, [interface.port for interface in wiring.interfaces])
        raise


def _set_asked(name: str, value: str) -> None:
    try:
        write_sysctl(name, value)
    except OSError as error:
        raise InvalidArgument(f'sysctl "{name}" cannot be set to "{value}": {error.strerror}') from error


def _join(path: Path, interfaces: Iterable[Interface]) -> None:
    """Makes the pairs, each with one end in the namespace."""
    namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with NetlinkSocket() as outer:
            for interface in interfaces:
                pair = rtnetlink.add_veth(
                    interface.port,
                    peer=interface.name,
                    peer_mac=interface.mac,
                    peer_namespace=namespace,
                    mtu=interface.mtu,
                    master=socket.if_nametoindex(interface.bridge),
                )
                outer.execute([pair, rtnetlink.set_alias(interface.port, port_alias(path.name))])
        for interface in interfaces:
            with contextlib.suppress(FileNotFoundError):
                write_sysctl(f"net.ipv6.conf.{interface.port}.disable_ipv6", "1")
    finally:
        os.close(namespace)


def _inner_requests(wiring: Wiring, links: Mapping[str, int]) -> Iterable[Request]:
    yield rtnetlink.set_link(links["lo"], "start the loopback interface", up=True)
    for interface in wiring.interfaces:
        index = links[interface.name]
        yield rtnetlink.set_link(index, f"start {interface.name}", up=True)
        if interface.ingress and wiring.primary is not None:
            # Whatever arrives here is led to the primary address (task_rules): answers to neighbours must come from it too.
            yield rtnetlink.add_address(index, interface.cidr, interface.name, route=False)
            yield rtnetlink.add_route(interface.cidr, index=index, source=wiring.primary.address)
        else:
            yield rtnetlink.add_address(index, interface.cidr, interface.name)
    leading = wiring.default_route
    if leading is not None:
        priority = LAST_RESORT_PRIORITY if leading.ingress else 0
        yield rtnetlink.add_route("", gateway=leading.gateway, index=links[leading.name], priority=priority)
    ingress = wiring.ingress
    if ingress is not None and ingress.gateway:
        yield rtnetlink.add_route("", gateway=ingress.gateway, index=links[ingress.name], table=INGRESS_ROUTES)
        yield rtnetlink.add_mark_rule(MARK_PREFIX, MARK_MASK, INGRESS_ROUTES, INGRESS_RULE_PRIORITY)


def program(tools: Tools, path: Path, commands: str) -> None:
    """Runs nftables commands inside the namespace, as one transaction."""
    with tools.threads.inside(path), tools.contexts.open() as nft:
        nft.run(commands)


def program_host(tools: Tools, commands: str) -> None:
    """Runs nftables commands in the host's namespace, as one transaction."""
    with tools.contexts.open() as nft:
        nft.run(commands)


def tear_down(path: Path, ports: Iterable[str]) -> None:
    """Removes interfaces and namespace. Not an error where they are gone."""
    remove_ports(ports)
    namespaces.delete(path)


def remove_ports(ports: Iterable[str]) -> None:
    """Removes the host's ends of pairs, and with them the containers' ends, all in one step."""
    indexes = []
    for port in ports:
        with contextlib.suppress(OSError):  # gone already
            indexes.append(socket.if_nametoindex(port))
    if indexes:
        with NetlinkSocket() as netlink:
            remove_links(netlink, indexes)
