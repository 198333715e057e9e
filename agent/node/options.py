"""The options of `swarmd`."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from swarm.names import (
    AGENT_METRICS_PORT,
    MANAGER_METRICS_PORT,
    NODE_SOCKET,
    RUN_DIRECTORY,
    STATE_DIRECTORY,
)
from swarm.version import VERSION

LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class Options:
    """Where a node keeps its things, and what it says of itself."""

    state: Path = STATE_DIRECTORY
    run: Path = RUN_DIRECTORY
    cgroup_parent: str = "/swarm"
    hostname: str = ""
    metrics: str = f"127.0.0.1:{AGENT_METRICS_PORT}"  # empty: off
    manager_metrics: str = f"127.0.0.1:{MANAGER_METRICS_PORT}"
    log_level: str = "info"
    log_file: Path | None = None
    labels: dict[str, str] = field(default_factory=dict)
    advertise_address: str = ""  # empty: as when the node joined

    @property
    def node_socket(self) -> Path:
        return self.run / NODE_SOCKET

    @property
    def certificates(self) -> Path:
        return self.state / "certificates"


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Exits with a usage message where the arguments make no sense."""
    parser = argparse.ArgumentParser(prog="swarmd", description="The node daemon of a swarm.")
    parser.add_argument("--version", action="version", version=f"swarmd version {VERSION}")
    parser.add_argument("--state-dir", type=Path, default=STATE_DIRECTORY, help="what survives a reboot (%(default)s)")
    parser.add_argument("--run-dir", type=Path, default=RUN_DIRECTORY, help="sockets, namespaces (%(default)s)")
    parser.add_argument("--cgroup-parent", default="/swarm", help="cgroup of the containers (%(default)s)")
    parser.add_argument("--hostname", default="", help="this node's name (the host's)")
    parser.add_argument(
        "--metrics",
        type=_listener,
        default=f"127.0.0.1:{AGENT_METRICS_PORT}",
        metavar="ADDR:PORT",
        help="Prometheus metrics of the agent, or off (%(default)s)",
    )
    parser.add_argument(
        "--manager-metrics",
        type=_listener,
        default=f"127.0.0.1:{MANAGER_METRICS_PORT}",
        metavar="ADDR:PORT",
        help="Prometheus metrics of the manager, or off (%(default)s)",
    )
    parser.add_argument("--log-level", choices=LOG_LEVELS, default="info")
    parser.add_argument("--log-file", type=Path, default=None, help="append the log to a file instead of stderr")
    parser.add_argument(
        "--labels", action="append", default=[], metavar="KEY=VALUE", help="engine label of this node; may be repeated"
    )
    parser.add_argument(
        "--advertise-addr", default="", metavar="IP", help="this node's address from now on, where it has changed"
    )
    chosen = parser.parse_args(arguments)
    labels: dict[str, str] = {}
    for each in ",".join(chosen.labels).split(","):
        name, separator, value = each.partition("=")
        if each and not (name and separator):
            parser.error(f"--labels: {each!r} is not KEY=VALUE")
        if each:
            labels[name] = value
    return Options(
        chosen.state_dir.absolute(),
        chosen.run_dir.absolute(),
        chosen.cgroup_parent,
        chosen.hostname or socket.gethostname(),
        chosen.metrics,
        chosen.manager_metrics,
        chosen.log_level,
        chosen.log_file.absolute() if chosen.log_file is not None else None,
        labels,
        chosen.advertise_addr,
    )


def _listener(text: str) -> str:
    """ADDR:PORT, or "" for off."""
    if text == "off":
        return ""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 <= int(port) < 1 << 16:
        raise argparse.ArgumentTypeError(f"{text!r} is neither ADDR:PORT nor off")
    return text
