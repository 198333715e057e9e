"""Which managers and which node daemon a command talks to.

`Target` holds what the user said (flags or environment); `find` looks at the host and returns where to knock: the
managers' control sockets or addresses, and the local daemons' sockets. The order: `--host`; `--lab`/`--node`; this host's
own `/run/swarm`; the lab of this machine (`swarm.labs.implied` says which). Nothing here opens a connection to a manager.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from swarm import labs
from swarm.labs import NODE_SOCKET

RUN_DIRECTORY = Path("/run/swarm")
LAB_DIRECTORY = labs.RUN_ROOT
CONTROL_SOCKET = "control.sock"
CLUSTER_PORT = 2378


@dataclass(frozen=True)
class Endpoint:
    """One place to knock at: a Unix socket, or HOST:PORT with the certificate in `tls`."""

    name: str  # for messages: "m1", "this host", "10.0.0.1:2378"
    address: str
    tls: Path | None = None

    @property
    def socket(self) -> Path | None:
        """The socket's path; None for a network address."""
        return Path(self.address) if self.address.startswith("/") else None


@dataclass(frozen=True)
class Places:
    """Where to knock, in order. `lab` is the lab's name where it is one, `host` that of the only host that was meant."""

    control: tuple[Endpoint, ...]
    daemons: tuple[Endpoint, ...]
    lab: str = ""
    host: str = ""
    remote: bool = False  # over the network


@dataclass(frozen=True)
class Target:
    """What the user said about where to talk."""

    host: str | None = None
    tls: str | None = None
    lab: str | None = None
    node: str | None = None

    def find(self, run_directory: Path | None = None, lab_directory: Path | None = None) -> Places:
        """Raises InvalidArgument for settings that make no sense, NotFound for a lab or node that is not there,
        FailedPrecondition where several labs could be meant."""
        run_directory = run_directory or RUN_DIRECTORY
        lab_directory = lab_directory or LAB_DIRECTORY
        if self.host and (self.lab or self.node):
            raise _invalid(
                "--host and --lab or --node exclude each other; give one (see SWARM_HOST, SWARM_LAB, SWARM_NODE)"
            )
        if self.host:
            return _named(self.host, self.tls)
        if self.lab or self.node:
            name = self.lab or labs.implied(lab_directory)
            if name is None:
                raise labs.no_lab(labs.DEFAULT_LAB, lab_directory)
            return _lab(lab_directory, name, self.node)
        here = _host("this host", run_directory)
        if here.control or here.daemons:
            return here
        name = labs.implied(lab_directory)
        return _lab(lab_directory, name, None) if name is not None else here


def _named(host: str, tls: str | None) -> Places:
    if host.startswith("unix://"):
        path = Path(host.removeprefix("unix://"))
        if not path.is_absolute():
            raise _invalid(
                f"--host {host}: the path of a socket starts with a slash, as in unix:///run/swarm/control.sock"
            )
        if path.is_dir():
            return _host(str(path), path)
        daemon = path.with_name(NODE_SOCKET)
        daemons = (Endpoint(str(daemon), str(daemon)),) if daemon.exists() else ()
        return Places((Endpoint(str(path), str(path)),), daemons)
    if host.startswith("/"):
        return _named(f"unix://{host}", tls)
    if not tls:
        raise _invalid(
            f"--host {host}: a manager's network port needs a certificate; give the directory that `swarmctl cert issue` "
            "wrote with --tls or SWARM_TLS"
        )
    addresses = [_with_port(word.strip().removeprefix("tcp://")) for word in host.split(",") if word.strip()]
    if not addresses:
        raise _invalid(f"--host {host!r} names no manager; write HOST:PORT or unix:///PATH/control.sock")
    return Places(tuple(Endpoint(address, address, Path(tls)) for address in addresses), (), remote=True)


def _with_port(address: str) -> str:
    name, colon, port = address.rpartition(":")
    if not colon or address.endswith("]") or (address.count(":") > 1 and not address.startswith("[")):
        bare = address if address.startswith("[") or ":" not in address else f"[{address}]"
        return f"{bare}:{CLUSTER_PORT}"
    if not name or not port.isdigit() or not 0 < int(port) < 65536:
        raise _invalid(f"--host {address}: {port!r} is not a port; write HOST:PORT, as in 10.0.0.1:{CLUSTER_PORT}")
    return address


def _host(name: str, directory: Path) -> Places:
    control, daemon = directory / CONTROL_SOCKET, directory / NODE_SOCKET
    return Places(
        (Endpoint(name, str(control)),) if _exists(control) else (),
        (Endpoint(name, str(daemon)),) if _exists(daemon) else (),
    )


def _lab(lab_directory: Path, name: str, node: str | None) -> Places:
    nodes = labs.read_hosts(name, lab_directory)
    if node is not None:
        chosen = [one for one in nodes if one.get("name") == node]
        if not chosen:
            raise labs.no_host(name, node, (str(one.get("name")) for one in nodes))
        nodes = chosen
    control: list[Endpoint] = []
    daemons: list[Endpoint] = []
    # Managers first. A host that was promoted is known by its socket, whatever the lab's file says of it.
    for one in sorted(nodes, key=lambda one: one.get("role") != "manager"):
        places = _host(str(one.get("name")), Path(str(one.get("run_dir"))))
        control.extend(places.control)
        daemons.extend(places.daemons)
    return Places(tuple(control), tuple(daemons), lab=name, host=node or "")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        return True  # in a directory that we may not enter: knocking will say so


def _invalid(sentence: str) -> Exception:
    from swarm.errors import InvalidArgument

    return InvalidArgument(sentence)
