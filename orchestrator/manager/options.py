"""The command line of the manager process, and where its files are."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from swarm.identity import TlsFiles
from swarm.names import (
    CLUSTER_PORT,
    CONTROL_SOCKET,
    ENROLMENT_PORT,
    MANAGER_METRICS_PORT,
    NODE_SOCKET,
    RUN_DIRECTORY,
    STATE_DIRECTORY,
)


@dataclass(frozen=True)
class Places:
    """The files of a host that the manager knows."""

    state: Path
    run: Path

    @property
    def certificates(self) -> TlsFiles:
        return TlsFiles(self.state / "certificates")

    @property
    def manager(self) -> Path:
        return self.state / "manager"

    @property
    def bootstrap(self) -> Path:
        """The first transaction, until it is committed."""
        return self.manager / "bootstrap"

    @property
    def raft(self) -> Path:
        return self.manager / "raft"

    @property
    def data_key(self) -> Path:
        """What the log and its snapshots on this host's disk are sealed with; beside the node's key, mode 0600."""
        return self.state / "certificates" / "raft.key"

    @property
    def recovery(self) -> Path:
        """What a recovered or restored manager has to commit first, until it has."""
        return self.manager / "recovery"

    @property
    def superseded(self) -> Path:
        """Why this manager must not run any more: the swarm went on without it."""
        return self.manager / "superseded"

    @property
    def control_socket(self) -> Path:
        return self.run / CONTROL_SOCKET

    @property
    def pid_file(self) -> Path:
        """Locked as long as a manager runs here; holds its process id."""
        return self.run / "manager.pid"


@dataclass(frozen=True)
class InitOptions:
    """How a new cluster begins."""

    places: Places
    advertise: str
    hostname: str
    cluster_port: int
    spec: Path | None
    availability: str


@dataclass(frozen=True)
class RunOptions:
    """How a manager runs."""

    places: Places
    listen: str
    advertise: str
    cluster_port: int
    enrolment_port: int
    metrics: str  # HOST:PORT; empty: none
    metrics_token: Path | None
    join: tuple[str, ...]
    ready_fd: int | None
    agent_socket: Path


@dataclass(frozen=True)
class OfflineOptions:
    """What is done while no manager runs."""

    command: str  # recover, restore or inspect
    places: Places
    advertise: str
    hostname: str
    cluster_port: int
    dry_run: bool
    file: Path | None
    seen_epoch: int = 0  # the highest one that this host's agent knows


def parse(arguments: Sequence[str] | None = None) -> InitOptions | RunOptions | OfflineOptions:
    """The options of the command; ends the process with usage and exit code 2 where they make no sense."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.manager", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_init(commands.add_parser("init", help="make a new cluster's authority and this node's identity"))
    _add_run(commands.add_parser("run", help="run the manager of this node"))
    _add_offline(commands)
    options = parser.parse_args(arguments)
    if options.command == "inspect":
        nowhere = Places(STATE_DIRECTORY, RUN_DIRECTORY)
        return OfflineOptions("inspect", nowhere, "", "", CLUSTER_PORT, True, options.file)
    places = Places(options.state_dir.absolute(), options.run_dir.absolute())
    if options.command == "init":
        return InitOptions(
            places, options.advertise, options.hostname, options.cluster_port, options.spec, options.availability
        )
    if options.command in ("recover", "restore"):
        return OfflineOptions(
            options.command,
            places,
            options.advertise,
            options.hostname,
            options.cluster_port,
            getattr(options, "dry_run", False),
            getattr(options, "file", None),
            options.seen_epoch,
        )
    return RunOptions(
        places=places,
        listen=options.listen,
        advertise=options.advertise,
        cluster_port=options.cluster_port,
        enrolment_port=options.enrolment_port,
        metrics=options.metrics,
        metrics_token=options.metrics_token,
        join=tuple(address for address in options.join.split(",") if address),
        ready_fd=options.ready_fd,
        agent_socket=options.agent_socket or places.run / NODE_SOCKET,
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state-dir", type=Path, default=STATE_DIRECTORY, help="what survives a reboot")
    parser.add_argument("--run-dir", type=Path, default=RUN_DIRECTORY, help="sockets and process ids")
    parser.add_argument(
        "--advertise", required=True, metavar="IP", help="the address that other nodes reach this one at"
    )
    parser.add_argument("--listen", default="0.0.0.0", metavar="IP", help="the address to listen on")
    parser.add_argument("--cluster-port", type=int, default=CLUSTER_PORT)


def _add_init(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument("--hostname", required=True)
    parser.add_argument("--spec", type=Path, help="the cluster's spec: a serialized ClusterSpec")
    parser.add_argument("--availability", choices=("active", "pause", "drain"), default="active")


def _add_offline(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    recover = commands.add_parser("recover", help="make this manager the only one, after the others were lost for good")
    restore = commands.add_parser("restore", help="found a cluster of one manager with the state of a snapshot")
    inspect = commands.add_parser("inspect", help="say what a snapshot holds")
    recover.add_argument("--dry-run", action="store_true", help="only say what that would mean")
    for parser in (restore, inspect):
        parser.add_argument("file", type=Path, metavar="FILE")
    for parser in (recover, restore):
        _add_common(parser)
        parser.add_argument("--hostname", required=True)
        parser.add_argument("--seen-epoch", type=int, default=0, help="the highest that this host's agent knows")


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument("--enrolment-port", type=int, default=ENROLMENT_PORT)
    parser.add_argument(
        "--metrics",
        default=f"127.0.0.1:{MANAGER_METRICS_PORT}",
        metavar="HOST:PORT",
        help="where Prometheus asks; another address than loopback needs --metrics-token; empty: nowhere",
    )
    parser.add_argument(
        "--metrics-token", type=Path, metavar="FILE", help="serve metrics over TLS, to whoever knows this"
    )
    parser.add_argument(
        "--join", default="", metavar="HOST:PORT,…", help="managers of the cluster to become a member of"
    )
    parser.add_argument(
        "--ready-fd", type=int, metavar="N", help="a descriptor to write a line to once this manager serves"
    )
    parser.add_argument("--agent-socket", type=Path, metavar="PATH", help="the agent's socket on this host")
