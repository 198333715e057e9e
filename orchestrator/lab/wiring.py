"""The lab's cables: namespaces, the switch, links into the machine's own namespace, and the way outside.

Every function may be called again over what is already there; `unwire` removes everything, also of a lab of which only
parts are left. Links, addresses and routes are made through pyroute2.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import re
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarm import process
from swarm.errors import InternalError, SwarmError

from orchestrator.lab.layout import CGROUP_ROOT, LabHost, LabLayout

if TYPE_CHECKING:
    from pyroute2 import AsyncIPRoute

NAMESPACES = Path("/run/netns")
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
FORWARDING_BEFORE = "forwarding-before"
RUN_BYTES = 256 << 20  # of a host's run directory, at most
_THERE_ALREADY = (errno.EEXIST,)
_GONE_ALREADY = (errno.ENOENT, errno.ENODEV)


@contextlib.asynccontextmanager
async def _netlink(namespace: str = "") -> AsyncIterator[AsyncIPRoute]:
    """Netlink of a namespace, of the machine's own where none is named."""
    from pyroute2 import AsyncIPRoute  # late: 0.2 s that only labs need

    descriptor = _netlink_socket(namespace) if namespace else None
    async with AsyncIPRoute(fileno=descriptor) as netlink:
        yield netlink


def _netlink_socket(namespace: str) -> int:
    """A netlink socket that belongs to the namespace: its descriptor, which is the caller's to close.

    Opened on a thread that ends with it. pyroute2 would fork for it, and a fork never returns where gRPC's threads are at work
    (gRPC stops them before a fork, and waits for ever for one that is busy).
    """
    from pyroute2 import netns

    opened: list[socket.socket | OSError] = []

    def open_inside() -> None:
        try:
            netns.setns(namespace, flags=0, fork=False)
            opened.append(socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, socket.NETLINK_ROUTE))
        except OSError as error:
            opened.append(error)

    thread = threading.Thread(target=open_inside, name=f"netlink of {namespace}")
    thread.start()
    thread.join()
    if isinstance(opened[0], OSError):
        raise InternalError(f"the lab's network: cannot enter the namespace {namespace}: {opened[0]}") from opened[0]
    return opened[0].detach()


@contextlib.contextmanager
def _tolerating(what: str, *numbers: int) -> Iterator[None]:
    """Ignores the kernel's refusal with one of the error numbers; any other is told as a SwarmError."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as error:
        if error.code not in numbers:
            raise InternalError(f"the lab's network: cannot {what}: {error}") from error


async def _index(netlink: AsyncIPRoute, name: str) -> int | None:
    found = await netlink.link_lookup(ifname=name)
    return int(found[0]) if found else None


async def _configure(netlink: AsyncIPRoute, name: str, *, address: str = "", route: str = "", master: str = "") -> None:
    """Sets a link up, with an address (CIDR), a default route and a bridge where they are given."""
    index = await _index(netlink, name)
    if index is None:
        raise InternalError(f"the lab's network: there is no link {name}")
    settings: dict[str, Any] = {"state": "up"}
    if master:
        settings["master"] = await _index(netlink, master)
    await netlink.link("set", index=index, **settings)
    if address:
        local, prefix = address.split("/")
        with _tolerating(f"give {name} the address {address}", *_THERE_ALREADY):
            await netlink.addr("add", index=index, address=local, prefixlen=int(prefix))
    if route:
        with _tolerating(f"route {name} through {route}", *_THERE_ALREADY):
            await netlink.route("add", dst="0.0.0.0/0", gateway=route)


def _mac(address: str) -> str:
    """The hardware address that goes with an IPv4 address of the lab, as lasting as that of a real machine. The kernel's own
    choice is a new one for a host that was started anew, and for a switch whenever a cable comes or goes: the others would
    look for it at the old one for up to a minute."""
    return f"02:00:{ipaddress.IPv4Address(address).packed.hex(':')}"


async def _add_cable(netlink: AsyncIPRoute, name: str, *, far_name: str, far_namespace: str, far_mac: str = "") -> None:
    """A pair of links: `name` here, `far_name` in another namespace."""
    peer = {"ifname": far_name, "net_ns_fd": far_namespace, **({"address": far_mac} if far_mac else {})}
    with _tolerating(f"lay the cable {name}", *_THERE_ALREADY):
        await netlink.link("add", ifname=name, kind="veth", peer=peer)


def namespace_exists(namespace: str) -> bool:
    """Whether it is there. Its file alone says nothing: where /run is on a disk, that outlives a reboot."""
    try:
        return (NAMESPACES / namespace).stat().st_dev == Path("/proc/self/ns/net").stat().st_dev
    except FileNotFoundError:
        return False


def namespaces_of(lab: str) -> list[str]:
    """The namespaces of a lab that are there, or whose files are left. The lab `a` does not own those of the lab `a-b`."""
    mine = re.compile(rf"lab-{re.escape(lab)}-(switch|[mw][0-9]+)")
    if not NAMESPACES.is_dir():
        return []
    return sorted(entry.name for entry in NAMESPACES.iterdir() if mine.fullmatch(entry.name))


async def _add_namespace(namespace: str) -> None:
    if not namespace_exists(namespace):
        (NAMESPACES / namespace).unlink(missing_ok=True)
        await process.run(["ip", "netns", "add", namespace])  # pyroute2's own way forks: see _netlink_socket


async def taken_subnets() -> list[ipaddress.IPv4Network]:
    """Every IPv4 network that this machine has a route to, but for the default one."""
    found = []
    async with _netlink() as netlink:
        async for route in await netlink.get_routes(family=2):
            destination = route.get("dst")
            if destination:
                found.append(ipaddress.IPv4Network((str(destination), int(route["dst_len"])), strict=False))
    return found


async def wire_switch(layout: LabLayout) -> None:
    """The switch, the machine's own link to it, and masquerading for what leaves the lab."""
    switch, link = layout.switch_namespace, layout.uplink
    await _add_namespace(switch)
    async with _netlink(switch) as inside, _netlink() as outside:
        with _tolerating("make the switch", *_THERE_ALREADY):
            await inside.link("add", ifname="br0", kind="bridge", address=_mac(layout.registry_address))
        await _add_cable(outside, link, far_name="uplink", far_namespace=switch)
        await _configure(inside, "lo")
        await _configure(outside, link, address=f"{layout.gateway}/24")
        await _configure(inside, "uplink", master="br0")
        await _configure(inside, "br0", address=f"{layout.registry_address}/24", route=layout.gateway)
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
    await _add_namespace(host.namespace)
    async with _netlink(layout.switch_namespace) as switch, _netlink(host.namespace) as inside:
        mac = _mac(str(host.address))
        await _add_cable(switch, host.name, far_name="eth0", far_namespace=host.namespace, far_mac=mac)
        await _configure(switch, host.name, master="br0")
        await _configure(inside, "lo")
        await _configure(inside, "eth0", address=f"{host.address}/24", route=layout.gateway)


async def set_link(layout: LabLayout, host: LabHost, *, up: bool) -> None:
    """Pulls or plugs the host's cable, at the switch."""
    async with _netlink(layout.switch_namespace) as switch:
        index = await _index(switch, host.name)
        if index is None:
            raise InternalError(f"the lab's switch has no cable to {host.name}")
        await switch.link("set", index=index, state="up" if up else "down")


async def link_is_up(layout: LabLayout, host: LabHost) -> bool:
    if not namespace_exists(layout.switch_namespace):
        return False
    async with _netlink(layout.switch_namespace) as switch:
        async for link in await switch.get_links():
            if link.get("ifname") == host.name:
                return bool(link["state"] == "up")
    return False


async def unwire_host(host: LabHost) -> None:
    """Its cable first: the kernel takes a namespace apart in the background, and an end of a cable that is still in the switch
    would look like one that is there."""
    switch = f"lab-{host.lab}-switch"
    if namespace_exists(switch):
        async with _netlink(switch) as inside:
            index = await _index(inside, host.name)
            if index is not None:
                with _tolerating(f"remove the cable of {host.name}", *_GONE_ALREADY):
                    await inside.link("del", index=index)
    _delete_namespace(host.namespace)


async def unwire(lab: str, layout: LabLayout | None, *, last: bool) -> None:
    """Removes every namespace, link and rule of the lab. `last`: no other lab is left on this machine."""
    for namespace in namespaces_of(lab):
        _delete_namespace(namespace)
    if layout is not None:
        async with _netlink() as outside:
            index = await _index(outside, layout.uplink)
            if index is not None:
                with _tolerating(f"remove {layout.uplink}", *_GONE_ALREADY):
                    await outside.link("del", index=index)
    await process.run(["nft", "delete", "table", "ip", f"swarm-lab-{lab}"], check=False)
    before = Path("/run/swarm-lab") / FORWARDING_BEFORE
    if last and before.exists():
        FORWARDING.write_text(before.read_text())
        before.unlink()


def _delete_namespace(namespace: str) -> None:
    from pyroute2 import netns

    if (NAMESPACES / namespace).exists():
        netns.remove(namespace)


async def provide_run_directory(directory: Path) -> None:
    """A host's /run is memory, which goes when the host does; so is that of a lab's host. One that is in use stays as it is."""
    directory.mkdir(parents=True, exist_ok=True)
    if not any(directory.iterdir()) and str(directory) not in mounts_below(directory):
        await process.run(["mount", "-t", "tmpfs", "-o", f"mode=0755,size={RUN_BYTES}", "tmpfs", directory])


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
    for line in _mounts():
        point = line.split(" ")[4].replace("\\040", " ")
        if any(Path(point).is_relative_to(directory) for directory in directories):
            found.append(point)
    return sorted(found, key=len, reverse=True)


def _mounts() -> list[str]:
    """The lines of the kernel's list. Somebody's directory may have a name that is not UTF-8."""
    return Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()


def cgroups_of(path: str) -> list[Path]:
    """The directories of one cgroup and its children in every mounted hierarchy (v1, hybrid, v2), children first."""
    return [directory for top in _tops(path) for directory in _with_children(top)]


def _tops(path: str) -> list[Path]:
    roots = [Path(line.split(" ")[4]) for line in _mounts() if " - cgroup" in line]
    return [root / path.lstrip("/") for root in roots if (root / path.lstrip("/")).is_dir()]


def _with_children(top: Path) -> list[Path]:
    try:
        entries = [entry for entry in top.iterdir() if entry.is_dir()]
    except FileNotFoundError:  # a container's group, which has just been removed
        return []
    return [*(child for entry in entries for child in _with_children(entry)), top]


def remove_cgroups(path: str) -> None:
    """Removes a cgroup with its children and parents; what still has processes or other children stays."""
    while path:
        for directory in cgroups_of(path):
            with contextlib.suppress(OSError):  # EBUSY: not empty
                directory.rmdir()
        path = path.rsplit("/", 1)[0]
        if not path.startswith(CGROUP_ROOT) or any(len(_with_children(top)) > 1 for top in _tops(path)):
            return
