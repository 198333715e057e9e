"""`swarmctl cert issue`: a certificate for a person, or for a service beside the swarm.

The key is made here and never leaves this host; the managers see a signing request only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from swarm.errors import AlreadyExists, InvalidArgument, SwarmError
from swarm.identity import TlsFiles
from swarm.keys import new_key_and_request
from swarm.names import CLUSTER_PORT
from swarm.v1 import control_pb2 as control

from orchestrator.cli import output
from orchestrator.cli.invocation import session

if TYPE_CHECKING:
    from swarm.v1.control_pb2_grpc import ControlStub

    from orchestrator.cli.caller import Caller

ROLES = ("admin", "viewer", "server")


def issue(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who it is for: a person, or a server's name")],
    *,
    directory: Annotated[
        str, typer.Option("--output", "-o", metavar="DIR", help="Where node.key, node.pem and ca.pem are written")
    ],
    role: Annotated[
        str,
        typer.Option("--role", metavar="admin|viewer|server", help="What it allows: all, reading, or being a server"),
    ] = "admin",
    address: Annotated[
        list[str] | None, typer.Option("--address", metavar="ADDRESS", help="Host name or IP address of a server")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the certificate in DIR")] = False,
) -> None:
    """Make a key and have the swarm certify it."""
    if role not in ROLES:
        raise InvalidArgument(f"--role {role!r} is not known; write one of {', '.join(ROLES)}")
    if role == "server" and not address:
        raise InvalidArgument("--role server needs --address: the host names and IP addresses that it answers at")
    if role != "server" and address:
        raise InvalidArgument("--address belongs to --role server: people have no address")
    files = TlsFiles(Path(directory))
    if files.key.exists() and not force:
        raise AlreadyExists(f"{directory} holds a key already; name another directory, or replace it with --force")
    managers = session(context).control()
    keys = new_key_and_request(name)
    answer = managers.call(
        lambda stub: stub.IssueCertificate,
        control.IssueCertificateRequest(csr_pem=keys.csr_pem, role=role, name=name, addresses=address or ()),
    )
    files.write(keys.key_pem, answer.certificate_pem, answer.ca_pem)
    output.line(f"Certificate of {name} ({role}) written to {directory}")
    if role != "server":
        where = _manager_addresses(managers)
        output.note(f"Use it with: swarmctl --host {where} --tls {directory} service ls")


def _manager_addresses(managers: Caller[ControlStub]) -> str:
    """Of all managers, as `--host` takes them."""
    try:
        members = managers.call(lambda stub: stub.GetInfo, control.GetInfoRequest()).raft.members
    except SwarmError:
        return f"HOST-OF-A-MANAGER:{CLUSTER_PORT}"  # the certificate is made; what is left is a hint
    return ",".join(member.address for member in members)
