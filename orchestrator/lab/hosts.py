"""The processes of one host: starting its daemon, finding everything that belongs to it, pulling its plug.

A process belongs to a host when its network namespace is the host's or one of its containers', when it is in the host's
cgroup, or when it was started with the host's run directory. Nothing else is ever signalled.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import grpc
from swarm.channels import open_local
from swarm.errors import DeadlineExceeded, InternalError, SwarmError, from_rpc
from swarm.v1 import node_pb2, node_pb2_grpc

from orchestrator.lab import wiring
from orchestrator.lab.layout import LabHost

SOCKET_TIMEOUT = 30.0  # seconds for a daemon to answer after its start: five interpreters share few cores
KILL_ROUNDS = 50


@dataclass(frozen=True)
class HostProcesses:
    """Process ids of a host."""

    daemon: int | None
    manager: int | None
    all: frozenset[int]


def spawn(
    arguments: list[str], *, namespace: Path, log: Path, environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts a daemon inside a network namespace, in a session of its own, its output appended to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            ["nsenter", f"--net={namespace}", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
            cwd="/",
        )


async def start_daemon(host: LabHost, *options: str, log_level: str = "info") -> None:
    """Starts `swarmd` of the host, with further `options`, and waits until it answers on its socket."""
    await wiring.provide_run_directory(host.run_directory)
    host.state_directory.mkdir(parents=True, exist_ok=True)
    arguments = [
        sys.executable, "-m", "agent.main",
        "--state-dir", str(host.state_directory),
        "--run-dir", str(host.run_directory),
        "--cgroup-parent", host.cgroup,
        "--hostname", host.name,
        "--log-level", log_level,
        *options,
    ]  # fmt: skip
    daemon = spawn(arguments, namespace=host.namespace_path, log=host.log)
    try:
        async with asyncio.timeout(SOCKET_TIMEOUT):
            while await daemon_state(host) is None:
                if daemon.poll() is not None:
                    raise InternalError(f"swarmd of {host.name} ended at once: {last_lines(host.log)}")
                await asyncio.sleep(0.05)
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"swarmd of {host.name} does not answer on {host.node_socket} after {SOCKET_TIMEOUT:g} s: {last_lines(host.log)}"
        ) from error


async def daemon_state(host: LabHost, timeout: float = 2.0) -> node_pb2.LocalState | None:
    """What the host's daemon says of itself; None where it does not answer."""
    if not host.node_socket.exists():
        return None
    async with open_local(host.node_socket) as channel:
        try:
            return await node_pb2_grpc.LocalNodeStub(channel).GetState(node_pb2.GetStateRequest(), timeout=timeout)
        except grpc.RpcError:
            return None


async def initialise(host: LabHost, request: node_pb2.InitRequest, timeout: float) -> node_pb2.InitResponse:
    """`swarm init` on the host. Raises the daemon's SwarmError."""
    async with open_local(host.node_socket) as channel:
        try:
            return await node_pb2_grpc.LocalNodeStub(channel).Init(request, timeout=timeout)
        except grpc.RpcError as error:
            raise from_rpc(error, host.name) from error


async def join(host: LabHost, token: str, addresses: list[str], timeout: float) -> None:
    """`swarm join` on the host. Raises the daemon's SwarmError."""
    request = node_pb2.LocalJoinRequest(token=token, addresses=addresses, advertise_address=host.address)
    async with open_local(host.node_socket) as channel:
        try:
            await node_pb2_grpc.LocalNodeStub(channel).Join(request, timeout=timeout)
        except grpc.RpcError as error:
            raise from_rpc(error, host.name) from error


def processes(host: LabHost) -> HostProcesses:
    """All processes that belong to the host now."""
    namespaces = {_inode(host.namespace_path)}
    containers = host.run_directory / "netns"
    if containers.is_dir():
        namespaces |= {_inode(path) for path in containers.iterdir()}
    namespaces.discard(None)
    in_cgroup = {
        int(word) for directory in wiring.cgroups_of(host.cgroup) for word in _read(directory / "cgroup.procs").split()
    }
    found: set[int] = set()
    daemon = manager = None
    for pid in _pids():
        command = _read(Path(f"/proc/{pid}/cmdline")).split("\0")
        mine = str(host.run_directory) in command or pid in in_cgroup
        if not mine and _inode(Path(f"/proc/{pid}/ns/net")) not in namespaces:
            continue
        found.add(pid)
        if "agent.main" in command and "nsenter" not in command[0]:
            daemon = pid
        elif "orchestrator.manager" in command and "run" in command:
            manager = pid
    found.discard(os.getpid())
    return HostProcesses(daemon, manager, frozenset(found))


async def pull_plug(host: LabHost) -> None:
    """Power loss: every process killed, what memory held (namespaces, mounts, the run directory) gone; the disk stays."""
    for _ in range(KILL_ROUNDS):
        alive = processes(host).all
        if not alive:
            break
        kill(alive)
        await asyncio.sleep(0.05)
    else:
        raise SwarmError(f"processes of {host.name} survive SIGKILL: {sorted(processes(host).all)}")
    await wiring.unmount_below(host.run_directory, host.state_directory)
    await wiring.unwire_host(host)
    wiring.remove_cgroups(host.cgroup)
    shutil.rmtree(host.run_directory, ignore_errors=True)


def kill(pids: Iterable[int], signal_number: int = signal.SIGKILL) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal_number)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def last_lines(log: Path, count: int = 3) -> str:
    """The end of a log, for an error's sentence."""
    lines = _read(log).strip().splitlines()
    return " | ".join(lines[-count:]) if lines else f"nothing was written to {log}"


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
