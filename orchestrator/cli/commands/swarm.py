"""`swarmctl swarm init | join | join-token | leave | update | ca`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from swarm.errors import Conflict, InvalidArgument
from swarm.names import ENROLMENT_PORT
from swarm.v1 import control_pb2 as control
from swarm.v1 import node_pb2 as node
from swarm.v1 import types_pb2 as types

from orchestrator.cli import output
from orchestrator.cli.invocation import session
from orchestrator.cli.lazy import takes
from orchestrator.cli.messages import as_json
from orchestrator.cli.parsing import quantities
from orchestrator.cli.parsing.fields import labels

if TYPE_CHECKING:
    from swarm.v1.control_pb2_grpc import ControlStub

    from orchestrator.cli.caller import Caller

MEMBERSHIP_TIMEOUT = 120.0  # seconds for founding and joining: keys, certificates, the manager's first start
LEAVE_TIMEOUT = 300.0  # seconds: a demotion, and tasks that drain and end; longer than swarmd takes before it gives up
MAX_CONFLICTS = 5
_MAX_UINT32 = 2**32 - 1
_AVAILABILITIES = {
    "active": types.AVAILABILITY_ACTIVE,
    "pause": types.AVAILABILITY_PAUSE,
    "drain": types.AVAILABILITY_DRAIN,
}

Availability = Annotated[
    str, typer.Option("--availability", metavar="active|pause|drain", help="Whether this host takes tasks")
]
Advertise = Annotated[
    str,
    typer.Option("--advertise-addr", metavar="IP[:PORT]", help="Address for the others (default: the default route's)"),
]
Listen = Annotated[str, typer.Option("--listen-addr", metavar="IP", help="Address to listen at (default: 0.0.0.0)")]


@dataclass
class ClusterFlags:
    """The settings of the swarm itself, of `swarm init` and `swarm update`."""

    cert_expiry: Annotated[
        str | None,
        typer.Option("--cert-expiry", metavar="DURATION", help="Validity of nodes' certificates (default 90d)"),
    ] = None
    dispatcher_heartbeat: Annotated[
        str | None,
        typer.Option("--dispatcher-heartbeat", metavar="DURATION", help="Period of heartbeats (default: by size)"),
    ] = None
    task_history_limit: Annotated[
        str | None, typer.Option("--task-history-limit", metavar="N", help="Ended tasks kept for each slot (default 5)")
    ] = None
    default_registry: Annotated[
        str | None, typer.Option("--default-registry", metavar="HOST:PORT", help="What short image names refer to")
    ] = None
    label_add: Annotated[
        list[str] | None, typer.Option("--label-add", metavar="KEY=VALUE", help="Set a label of the swarm")
    ] = None
    label_rm: Annotated[
        list[str] | None, typer.Option("--label-rm", metavar="KEY", help="Remove a label of the swarm")
    ] = None

    def apply(self, spec: types.ClusterSpec) -> None:
        """Sets what was named. Raises InvalidArgument."""
        if self.cert_expiry is not None:
            spec.node_certificate_validity.CopyFrom(quantities.duration(self.cert_expiry, "--cert-expiry"))
        if self.dispatcher_heartbeat is not None:
            period = quantities.duration(self.dispatcher_heartbeat, "--dispatcher-heartbeat")
            spec.heartbeat_period.CopyFrom(period)
        if self.task_history_limit is not None:
            limit = quantities.count(self.task_history_limit, "--task-history-limit", _MAX_UINT32)
            spec.task_history_limit = limit
        if self.default_registry is not None:
            spec.default_registry = self.default_registry
        for key in self.label_rm or ():
            spec.labels.pop(key, None)
        spec.labels.update(labels(self.label_add or (), "--label-add"))


@dataclass
class InitFlags(ClusterFlags):
    """The flags of `swarm init`."""

    advertise_addr: Advertise = ""
    listen_addr: Listen = ""
    availability: Availability = "active"
    default_addr_pool: Annotated[
        list[str] | None, typer.Option("--default-addr-pool", metavar="CIDR", help="Where subnets come from")
    ] = None
    default_addr_pool_mask_length: Annotated[
        str | None,
        typer.Option("--default-addr-pool-mask-length", metavar="N", help="Prefix length of subnets (default 20)"),
    ] = None
    force_new_cluster: Annotated[
        bool, typer.Option("--force-new-cluster", help="The same as `swarm recover --force`, on a manager")
    ] = False


@takes(InitFlags)
def init(context: typer.Context, *, options: InitFlags) -> None:
    """Found a swarm on this host, which becomes its first manager."""
    if options.force_new_cluster:
        from orchestrator.cli.commands.recovery import recover_here

        recover_here(session(context), dry_run=False)
        return
    spec = types.ClusterSpec(address_pools=options.default_addr_pool or ())
    options.apply(spec)
    if options.default_addr_pool_mask_length is not None:
        length = quantities.count(options.default_addr_pool_mask_length, "--default-addr-pool-mask-length", 30)
        spec.subnet_prefix_length = length
    request = node.InitRequest(
        advertise_address=options.advertise_addr,
        listen_address=options.listen_addr,
        spec=spec,
        availability=_availability(options.availability),
    )
    answer = session(context).local().call(lambda stub: stub.Init, request, timeout=MEMBERSHIP_TIMEOUT)
    output.line(f"Swarm initialized: this host, {answer.node_id}, is now a manager.")
    output.line()
    output.line("To add a worker to this swarm, run on it:")
    output.line()
    output.line(f"    {join_command(answer.worker_token, answer.address)}")
    output.line()
    output.line("To add a manager, run `swarmctl swarm join-token manager` and follow what it says.")


def join_command(token: str, address: str) -> str:
    return f"swarmctl swarm join --token {token} {address}"


@dataclass
class JoinFlags:
    """The flags of `swarm join`."""

    token: Annotated[str, typer.Option("--token", metavar="TOKEN", help="Of `swarm join-token`, or @FILE")]
    advertise_addr: Advertise = ""
    listen_addr: Listen = ""
    availability: Availability = "active"


@takes(JoinFlags)
def join(
    context: typer.Context,
    addresses: Annotated[
        list[str], typer.Argument(metavar="HOST[:PORT]…", help=f"Managers, tried in order (port {ENROLMENT_PORT})")
    ],
    *,
    options: JoinFlags,
) -> None:
    """Join this host to a swarm, as what the token says: worker or manager."""
    from orchestrator.cli.commands.service_create import read_text

    token = options.token
    if token.startswith("@"):
        token = read_text(token[1:]).strip()  # so that the secret shows in no list of processes
    request = node.LocalJoinRequest(
        token=token,
        addresses=addresses,
        advertise_address=options.advertise_addr,
        listen_address=options.listen_addr,
        availability=_availability(options.availability),
    )
    answer = session(context).local().call(lambda stub: stub.Join, request, timeout=MEMBERSHIP_TIMEOUT)
    role = "manager" if answer.role == types.NODE_ROLE_MANAGER else "worker"
    output.line(f"This node joined a swarm as a {role}.")


def join_token(
    context: typer.Context,
    role: Annotated[str, typer.Argument(metavar="worker|manager", help="What hosts with this token become")],
    rotate: Annotated[bool, typer.Option("--rotate", help="Make a new one; the old one is worth nothing then")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the token only")] = False,
) -> None:
    """Show or rotate a join token."""
    if role not in ("worker", "manager"):
        raise InvalidArgument(f"{role!r} is not a role; write worker or manager")
    managers = session(context).control()
    if rotate:
        number = types.NODE_ROLE_WORKER if role == "worker" else types.NODE_ROLE_MANAGER
        answer = managers.call(lambda stub: stub.RotateJoinToken, control.RotateJoinTokenRequest(role=number))
    else:
        answer = managers.call(lambda stub: stub.GetJoinTokens, control.GetJoinTokensRequest())
    token = answer.worker if role == "worker" else answer.manager
    if quiet:
        output.line(token)
        return
    if rotate:
        output.line(f"Successfully rotated the {role} join token.")
        output.line()
    output.line(f"To add a {role} to this swarm, run on it:")
    output.line()
    output.line(f"    {join_command(token, ' '.join(answer.addresses))}")


def leave(
    context: typer.Context,
    force: Annotated[bool, typer.Option("--force", "-f", help="Even if the swarm loses its quorum, or itself")] = False,
) -> None:
    """Take this host out of its swarm."""
    caller = session(context).local()
    caller.call(lambda stub: stub.Leave, node.LeaveRequest(force=force), timeout=LEAVE_TIMEOUT)
    output.line("Node left the swarm.")


@takes(ClusterFlags)
def update(context: typer.Context, *, options: ClusterFlags) -> None:
    """Change settings of the swarm."""
    options.apply(types.ClusterSpec())  # complains before anything is called
    _change_cluster(session(context).control(), options)
    output.line("Swarm updated.")


def _change_cluster(managers: Caller[ControlStub], options: ClusterFlags) -> None:
    for attempt in range(MAX_CONFLICTS):
        read = managers.call(lambda stub: stub.GetCluster, control.GetClusterRequest()).cluster
        request = control.UpdateClusterRequest(spec=read.spec, version=read.meta.version)
        options.apply(request.spec)
        try:
            managers.call(lambda stub: stub.UpdateCluster, request)
            return
        except Conflict:
            if attempt == MAX_CONFLICTS - 1:
                raise


def ca(
    context: typer.Context,
    output_format: Annotated[str, typer.Option("--format", metavar="pem|json", help="How to print")] = "pem",
) -> None:
    """Print the certificate of the swarm's authority."""
    output.check_format(output_format, ("pem", "json"))
    cluster = session(context).control().call(lambda stub: stub.GetCluster, control.GetClusterRequest()).cluster
    if output_format == "json":
        output.print_json({"certificate_pem": as_json(cluster.ca)["certificate_pem"]})
    else:
        output.line(cluster.ca.certificate_pem.decode().rstrip("\n"))


def _availability(word: str) -> types.Availability.ValueType:
    if word not in _AVAILABILITIES:
        raise InvalidArgument(f"--availability {word!r} is not known; write one of {', '.join(_AVAILABILITIES)}")
    return _AVAILABILITIES[word]
