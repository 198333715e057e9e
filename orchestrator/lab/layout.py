"""What a lab consists of and where its parts lie. Pure: names, addresses and paths, no I/O but for reading and writing
the lab's own description (`lab.json`).

A lab NAME has a switch namespace `lab-NAME-switch` that holds a bridge and the registry, a namespace `lab-NAME-HOST` for
each host, and one link into the machine's own namespace, through which people reach published ports and containers reach
outside. Labs live side by side: each takes a /24 of 198.18.0.0/15, the block set aside for tests of network devices
(RFC 2544).
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from swarm import labs
from swarm.errors import InvalidArgument, ResourceExhausted
from swarm.identity import write_atomically
from swarm.labs import DESCRIPTION, no_host
from swarm.names import CONTROL_SOCKET, NODE_SOCKET

POOL = ipaddress.ip_network("198.18.0.0/15")
RUN_ROOT = labs.RUN_ROOT
STATE_ROOT = Path("/var/lib/swarm-lab")
CGROUP_ROOT = "/swarm-lab"

GATEWAY_HOST_NUMBER = 254  # the machine itself
REGISTRY_HOST_NUMBER = 253  # in the switch namespace
MAX_HOSTS = 200
REGISTRY_PORT = 5000
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,20}")


@dataclass(frozen=True)
class LabHost:
    """One host: a namespace, an address, and directories of its own."""

    lab: str
    name: str
    role: str  # manager, worker
    address: str

    @property
    def namespace(self) -> str:
        return f"lab-{self.lab}-{self.name}"

    @property
    def namespace_path(self) -> Path:
        return Path("/run/netns") / self.namespace

    @property
    def run_directory(self) -> Path:
        return RUN_ROOT / self.lab / self.name

    @property
    def state_directory(self) -> Path:
        return STATE_ROOT / self.lab / self.name

    @property
    def log(self) -> Path:
        return self.state_directory / "logs" / "swarmd.log"

    @property
    def cgroup(self) -> str:
        return f"{CGROUP_ROOT}/{self.lab}/{self.name}"

    @property
    def node_socket(self) -> Path:
        return self.run_directory / NODE_SOCKET

    @property
    def control_socket(self) -> Path:
        return self.run_directory / CONTROL_SOCKET


@dataclass(frozen=True)
class LabLayout:
    """A whole lab. `number` tells which /24 of the pool it has."""

    name: str
    number: int
    hosts: tuple[LabHost, ...]

    @property
    def subnet(self) -> ipaddress.IPv4Network:
        return subnet_of(self.number)

    @property
    def gateway(self) -> str:
        return str(self.subnet[GATEWAY_HOST_NUMBER])

    @property
    def registry_address(self) -> str:
        return str(self.subnet[REGISTRY_HOST_NUMBER])

    @property
    def registry(self) -> str:
        return f"{self.registry_address}:{REGISTRY_PORT}"

    @property
    def switch_namespace(self) -> str:
        return f"lab-{self.name}-switch"

    @property
    def uplink(self) -> str:
        """The interface in the machine's own namespace (at most 15 characters)."""
        return f"swlab{self.number}"

    @property
    def firewall_table(self) -> str:
        return f"swarm-lab-{self.name}"

    @property
    def run_directory(self) -> Path:
        return RUN_ROOT / self.name

    @property
    def state_directory(self) -> Path:
        return STATE_ROOT / self.name

    @property
    def file(self) -> Path:
        return self.run_directory / DESCRIPTION

    @property
    def copies(self) -> tuple[Path, Path]:
        """Of the description. The one in /run is what `swarmctl` goes by; the other one outlives a reboot, as the disks do."""
        return self.state_directory / DESCRIPTION, self.file

    @property
    def managers(self) -> tuple[LabHost, ...]:
        return tuple(host for host in self.hosts if host.role == "manager")

    @property
    def size(self) -> str:
        """`3 managers and 1 worker`."""
        managers = len(self.managers)
        return f"{_counted(managers, 'manager')} and {_counted(len(self.hosts) - managers, 'worker')}"

    def host(self, name: str) -> LabHost:
        """Raises NotFound with the names that there are."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise no_host(self.name, name, (host.name for host in self.hosts))

    def save(self) -> None:
        """For `swarmctl`, which finds the lab's sockets here, and for the next call of this program."""
        document = {
            "name": self.name,
            "number": self.number,
            "registry": self.registry,
            "nodes": [{**asdict(host), "run_dir": str(host.run_directory)} for host in self.hosts],
        }
        for file in self.copies:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(document, indent=1).encode(), mode=0o644)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def subnet_of(number: int) -> ipaddress.IPv4Network:
    """The /24 of lab `number`."""
    return ipaddress.IPv4Network((int(POOL.network_address) + (number << 8), 24))


def plan(name: str, managers: int, workers: int, taken: Iterable[ipaddress.IPv4Network]) -> LabLayout:
    """A layout in the first /24 of the pool that overlaps none of `taken`.

    Raises InvalidArgument for a bad name or size, ResourceExhausted where the pool is used up.
    """
    check_name(name)
    if managers < 1:
        raise InvalidArgument(f"--managers {managers}: a lab needs at least one manager")
    if workers < 0 or managers + workers > MAX_HOSTS:
        raise InvalidArgument(f"--managers {managers} --workers {workers}: a lab has 1 to {MAX_HOSTS} hosts")
    used = list(taken)
    for number in range(1 << (24 - POOL.prefixlen)):
        subnet = subnet_of(number)
        if not any(subnet.overlaps(other) for other in used):
            break
    else:
        raise ResourceExhausted(f"every /24 of {POOL} is in use on this machine; take a lab down first")
    names = [("manager", f"m{i + 1}") for i in range(managers)] + [("worker", f"w{i + 1}") for i in range(workers)]
    hosts = tuple(LabHost(name, host, role, str(subnet[i + 1])) for i, (role, host) in enumerate(names))
    return LabLayout(name, number, hosts)


def check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidArgument(f"lab name {name!r}: use 1 to 21 lower-case letters, digits and dashes")


def load(name: str) -> LabLayout | None:
    """The layout of a lab that was built before; None where there is none or its description is damaged."""
    check_name(name)
    for root in (RUN_ROOT, STATE_ROOT):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            document = json.loads((root / name / DESCRIPTION).read_text())
            hosts = tuple(LabHost(name, node["name"], node["role"], node["address"]) for node in document["nodes"])
            return LabLayout(name, int(document["number"]), hosts)
    return None


def known_labs() -> list[str]:
    """The names of all labs that have a directory on this machine."""
    found: set[str] = set()
    for root in (RUN_ROOT, STATE_ROOT):
        if root.is_dir():
            found.update(entry.name for entry in root.iterdir() if entry.is_dir() and _NAME.fullmatch(entry.name))
    return sorted(found)
