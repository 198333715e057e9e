"""Names for the shell's completion: from the cluster (quick, so from any replica), and of labs and their hosts. Silent whatever
happens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 1.0  # seconds; whoever presses the tab key waits for it


def services(ctx: typer.Context, incomplete: str) -> list[str]:
    return _names(ctx, incomplete, _service_names)


def nodes(ctx: typer.Context, incomplete: str) -> list[str]:
    return _names(ctx, incomplete, _node_names)


def networks(ctx: typer.Context, incomplete: str) -> list[str]:
    return _names(ctx, incomplete, _network_names)


def labs(incomplete: str) -> list[str]:
    from swarm.labs import described

    from orchestrator.cli import target

    return [name for name in described(target.LAB_DIRECTORY) if name.startswith(incomplete)]


def hosts(ctx: typer.Context, incomplete: str) -> list[str]:
    """The hosts of the lab that is named so far, or meant."""
    from swarm.labs import implied, read_hosts

    from orchestrator.cli import target

    try:
        lab = ctx.find_root().params.get("lab") or implied(target.LAB_DIRECTORY) or ""
        names = [str(host.get("name")) for host in read_hosts(lab, target.LAB_DIRECTORY)]
    except Exception:  # noqa: BLE001 – as in `_names`
        return []
    return sorted(name for name in names if name.startswith(incomplete))


def _service_names(control: Any) -> list[str]:
    from swarm.v1.control_pb2 import ListRequest

    answer = control.call(lambda stub: stub.ListServices, ListRequest(), timeout=PATIENCE)
    return [summary.service.spec.name for summary in answer.services]


def _node_names(control: Any) -> list[str]:
    from swarm.v1.control_pb2 import ListRequest

    answer = control.call(lambda stub: stub.ListNodes, ListRequest(), timeout=PATIENCE)
    return [node.spec.name or node.description.hostname or node.id for node in answer.nodes]


def _network_names(control: Any) -> list[str]:
    from swarm.v1.control_pb2 import ListRequest

    answer = control.call(lambda stub: stub.ListNetworks, ListRequest(), timeout=PATIENCE)
    return [network.spec.name for network in answer.networks]


def _names(ctx: typer.Context, incomplete: str, fetch: Callable[[Any], list[str]]) -> list[str]:
    from orchestrator.cli.session import Session
    from orchestrator.cli.target import Target

    try:
        chosen = ctx.find_root().params
        target = Target(**{name: chosen.get(name) for name in ("host", "tls", "lab", "node")})
        made = Session(target.find(), patience=PATIENCE)
        try:
            return sorted(name for name in fetch(made.control(stale=True)) if name.startswith(incomplete))
        finally:
            made.close()
    except Exception:  # noqa: BLE001 – a message here would land in the middle of somebody's command line
        return []
