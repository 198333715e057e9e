"""What the resolver knows of a view: the names of each network, as plain JSON values.

Pure. A service's name and aliases lead to its virtual IP, or to its serving tasks where it has none; `tasks.NAME` always leads
to the serving tasks. A container's hostname leads to its address as soon as the task has one, healthy or not: members of a
cluster must find each other before they are healthy. A service's name goes before a hostname.
"""

from __future__ import annotations

from typing import Any

from swarm.v1 import types_pb2 as types

from agent.network.interface import NetworkView, OverlayView
from agent.network.layout import RESOLVER_ADDRESS

Record = dict[str, Any]


def network_records(view: NetworkView) -> dict[str, Record]:
    """The records of every network but ingress, by network id."""
    return {overlay.network.id: _records(overlay) for overlay in view.overlays if not overlay.network.spec.ingress}


def _records(overlay: OverlayView) -> Record:
    hostnames: dict[str, list[str]] = {}
    reverse: dict[str, str] = {}
    serving: dict[str, list[str]] = {}
    for endpoint in overlay.endpoints:
        if endpoint.serving:
            serving.setdefault(endpoint.service_id, []).append(endpoint.address)
        if endpoint.hostname:
            hostnames.setdefault(endpoint.hostname.lower(), []).append(endpoint.address)
            reverse[endpoint.address] = endpoint.hostname
    names: dict[str, list[str]] = {}
    for service in overlay.services:
        tasks = sorted(serving.get(service.service_id, ()))
        for name in dict.fromkeys((service.name.lower(), *(alias.lower() for alias in service.aliases))):
            names.setdefault(name, []).extend([service.virtual_ip] if service.virtual_ip else tasks)
            names.setdefault(f"tasks.{name}", []).extend(tasks)
        if service.virtual_ip:
            reverse[service.virtual_ip] = service.name
    return {
        "name": overlay.network.spec.name,
        "subnet": overlay.network.subnet,
        "names": {name: sorted(addresses) for name, addresses in {**hostnames, **names}.items()},
        "reverse": reverse,
    }


def resolv_conf(dns: types.DnsConfig | None, host: str) -> str:
    """The container's /etc/resolv.conf. `host` is the host's: its search domains serve where the service names none."""
    search = list(dns.search) if dns is not None and dns.search else _search_domains(host)
    options = list(dns.options) if dns is not None else []
    if not any(option.startswith("ndots:") for option in options):
        options.append("ndots:0")
    lines = [f"nameserver {RESOLVER_ADDRESS}"]
    if search and search != ["."]:
        lines.append(f"search {' '.join(search)}")
    lines.append(f"options {' '.join(options)}")
    return "\n".join(lines) + "\n"


def _search_domains(text: str) -> list[str]:
    found: list[str] = []
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if words and words[0] in ("search", "domain"):
            found = words[1:]
    return found


def hosts_file(hostname: str, addresses: tuple[str, ...], extra: tuple[str, ...]) -> str:
    """The container's /etc/hosts. `extra`: "ADDRESS NAME …" lines."""
    lines = [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        *("\t".join(line.split(maxsplit=1)) for line in extra),
        *(f"{address}\t{hostname}" for address in addresses if hostname),
    ]
    return "\n".join(lines) + "\n"
