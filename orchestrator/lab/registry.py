"""The lab's image registry: Debian's `docker-registry` in the switch namespace, under the cluster's TLS.

Its certificate is issued by the cluster, and it accepts only clients that show a certificate of the cluster: what a host of
the lab builds and pushes, every other host can pull, and nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from pathlib import Path

from swarm import process
from swarm.errors import DeadlineExceeded, InternalError
from swarm.identity import TlsFiles, write_atomically

from orchestrator.lab import hosts
from orchestrator.lab.layout import LabHost, LabLayout

START_TIMEOUT = 15.0


def _directory(layout: LabLayout) -> Path:
    return layout.state_directory / "registry"


def _configuration(layout: LabLayout) -> str:
    directory = _directory(layout)
    return f"""version: 0.1
log:
  level: warn
storage:
  filesystem:
    rootdirectory: {directory / "data"}
  delete:
    enabled: true
http:
  addr: {layout.registry}
  tls:
    certificate: {directory / "node.pem"}
    key: {directory / "node.key"}
    clientcas:
      - {directory / "ca.pem"}
"""


async def issue_certificate(layout: LabLayout, manager: LabHost, ca_pem: bytes) -> None:
    """Has the cluster, whose CA certificate is `ca_pem`, sign the registry's certificate, as an operator would. One that
    another cluster of the same hosts signed is replaced, and the registry that shows it ended."""
    files = TlsFiles(_directory(layout))
    if files.exists() and files.ca.read_bytes() == ca_pem:
        return
    stop(layout.state_directory)
    program = Path(sys.executable).parent / "swarmctl"
    await process.run(
        [
            program, "--host", f"unix://{manager.control_socket}",
            "cert", "issue", "--role", "server", "--address", layout.registry_address,
            "--output", files.directory, "--force", "registry",
        ],
        timeout=30,
    )  # fmt: skip


def running(state_directory: Path) -> int | None:
    """The process id of the registry whose files lie below a lab's state directory."""
    configuration = str(state_directory / "registry" / "registry.yml")
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and configuration in (entry / "cmdline").read_text(errors="replace").split("\0"):
                return int(entry.name)
    return None


async def start(layout: LabLayout) -> None:
    """Starts the registry where it does not run, and waits until it accepts connections."""
    if running(layout.state_directory) is not None:
        return
    directory = _directory(layout)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    configuration = directory / "registry.yml"
    write_atomically(configuration, _configuration(layout).encode())
    log = layout.state_directory / "registry.log"
    program = hosts.spawn(
        ["docker-registry", "serve", str(configuration)],
        namespace=Path("/run/netns") / layout.switch_namespace,
        log=log,
        environment={"OTEL_TRACES_EXPORTER": "none"},
    )
    address = (layout.registry_address, int(layout.registry.rsplit(":", 1)[1]))
    try:
        async with asyncio.timeout(START_TIMEOUT):
            while not await asyncio.to_thread(_accepts, address):
                if program.poll() is not None:
                    raise InternalError(f"the lab's registry ended at once: {hosts.last_lines(log)}")
                await asyncio.sleep(0.05)
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"the lab's registry does not listen on {layout.registry}: {hosts.last_lines(log)}"
        ) from error


def _accepts(address: tuple[str, int]) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=1):
        return True
    return False


def stop(state_directory: Path) -> None:
    """Ends the registry of a lab, also of one of which only this is left."""
    pid = running(state_directory)
    if pid is not None:
        hosts.kill([pid])
