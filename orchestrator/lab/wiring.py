"""The lab's cables: namespaces, the switch, links into the machine's own namespace, and the way outside.

Every function may be called again over what is already there; `unwire` removes everything, also of a lab of which only
parts are left.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
from pathlib import Path

from swarm import process
from swarm.errors import SwarmError

from orchestrator.lab.layout import CGROUP_ROOT, LabHost, LabLayout

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
FORWARDING_BEFORE = "forwarding-before"


async def _ip(*lines: str, namespace: str = "") -> None:
    """Runs `ip -batch`; lines that only repeat what is there may fail."""
    arguments = ["ip", *(("-n", namespace) if namespace else ()), "-force", "-batch", "-"]
    await process.run(arguments, stdin="\n".join(lines).encode() + b"\n", check=False)


def namespace_exists(namespace: str) -> bool:
    return (Path("/run/netns") / namespace).exists()


async def taken_subnets() -> list[ipaddress.IPv4Network]:
    """Every IPv4 network that this machine has a route to, but for the default one."""
    routes = json.loads((await process.run(["ip", "-4", "-json", "route", "show", "table", "all"])).stdout or b"[]")
    found = []
    for route in routes:
        destination = str(route.get("dst", "default"))
        if destination != "default":
            found.append(ipaddress.IPv4Network(destination, strict=False))
    return found


async def wire_switch(layout: LabLayout) -> None:
    """The switch, the machine's own link to it, and masquerading for what leaves the lab."""
    switch, link = layout.switch_namespace, layout.uplink
    if not namespace_exists(switch):
        await process.run(["ip", "netns", "add", switch])
    await _ip(
        "link add br0 type bridge",
        "link set lo up",
        "link set br0 up",
        f"addr add {layout.registry_address}/24 dev br0",
        f"route add default via {layout.gateway}",
        namespace=switch,
    )
    await _ip(f"link add {link} type veth peer name uplink netns {switch}")
    await _ip("link set uplink master br0 up", namespace=switch)
    await _ip(f"addr add {layout.gateway}/24 dev {link}", f"link set {link} up")
    await _ip(f"route add default via {layout.gateway}", namespace=switch)
    before = layout.run_directory.parent / FORWARDING_BEFORE
    if not before.exists():
        before.write_text(FORWARDING.read_text())
    FORWARDING.write_text("1")
    await process.run(["nft", "-f", "-"], stdin=_outside_rules(layout).encode())


def _outside_rules(layout: LabLayout) -> str:
    table = f"table ip {layout.firewall_table}"
    return (
        f"{table}\ndelete {table}\n{table} {{\n"
        " chain outside {\n  type nat hook postrouting priority srcnat;\n"
        f'  ip saddr {layout.subnet} oifname != "{layout.uplink}" oifname != "lo" masquerade\n }}\n}}\n'
    )


async def wire_host(layout: LabLayout, host: LabHost) -> None:
    """A host's namespace and its cable to the switch."""
    if not namespace_exists(host.namespace):
        await process.run(["ip", "netns", "add", host.namespace])
    await _ip(
        f"link add {host.name} type veth peer name eth0 netns {host.namespace}",
        f"link set {host.name} master br0 up",
        namespace=layout.switch_namespace,
    )
    await _ip(
        "link set lo up",
        f"addr add {host.address}/24 dev eth0",
        "link set eth0 up",
        f"route add default via {layout.gateway}",
        namespace=host.namespace,
    )


async def set_link(layout: LabLayout, host: LabHost, *, up: bool) -> None:
    """Pulls or plugs the host's cable, at the switch."""
    await process.run(["ip", "-n", layout.switch_namespace, "link", "set", host.name, "up" if up else "down"])


async def link_is_up(layout: LabLayout, host: LabHost) -> bool:
    shown = await process.run(["ip", "-n", layout.switch_namespace, "-json", "link", "show", host.name], check=False)
    links = json.loads(shown.stdout or b"[]") if shown.exit_code == 0 else []
    return any("UP" in link.get("flags", ()) for link in links)


async def unwire_host(host: LabHost) -> None:
    await _delete_namespace(host.namespace)


async def unwire(lab: str, layout: LabLayout | None, *, last: bool) -> None:
    """Removes every namespace, link and rule of the lab. `last`: no other lab is left on this machine."""
    prefix = f"lab-{lab}-"
    directory = Path("/run/netns")
    for namespace in sorted(directory.iterdir()) if directory.is_dir() else []:
        if namespace.name.startswith(prefix):
            await _delete_namespace(namespace.name)
    if layout is not None:
        await _ip(f"link del {layout.uplink}")
    await process.run(["nft", "delete", "table", "ip", f"swarm-lab-{lab}"], check=False)
    before = Path("/run/swarm-lab") / FORWARDING_BEFORE
    if last and before.exists():
        FORWARDING.write_text(before.read_text())
        before.unlink()


async def _delete_namespace(namespace: str) -> None:
    if namespace_exists(namespace):
        await process.run(["ip", "netns", "del", namespace], check=False)


async def unmount_below(*directories: Path) -> None:
    """Detaches every mount below the directories, the innermost first."""
    for _ in range(3):  # a mount may cover another
        mounts = mounts_below(*directories)
        if not mounts:
            return
        for point in mounts:
            await process.run(["umount", "-l", point], check=False)
    left = mounts_below(*directories)
    if left:
        raise SwarmError(f"cannot unmount {left[0]}; `umount -l` it by hand and repeat")


def mounts_below(*directories: Path) -> list[str]:
    """Mount points below the directories, the deepest first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split(" ")[4].replace("\\040", " ")
        if any(Path(point).is_relative_to(directory) for directory in directories):
            found.append(point)
    return sorted(found, key=len, reverse=True)


def cgroups_of(path: str) -> list[Path]:
    """The directories of one cgroup and its children in every mounted hierarchy (v1, hybrid, v2), children first."""
    return [directory for top in _tops(path) for directory in _with_children(top)]


def _tops(path: str) -> list[Path]:
    roots = [
        Path(line.split(" ")[4])
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if " - cgroup" in line
    ]
    return [root / path.lstrip("/") for root in roots if (root / path.lstrip("/")).is_dir()]


def _with_children(top: Path) -> list[Path]:
    return [*(child for entry in top.iterdir() if entry.is_dir() for child in _with_children(entry)), top]


def remove_cgroups(path: str) -> None:
    """Removes a cgroup with its children and parents; what still has processes or other children stays."""
    while path:
        for directory in cgroups_of(path):
            with contextlib.suppress(OSError):  # EBUSY: not empty
                directory.rmdir()
        path = path.rsplit("/", 1)[0]
        if not path.startswith(CGROUP_ROOT) or any(len(_with_children(top)) > 1 for top in _tops(path)):
            return
