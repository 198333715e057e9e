"""`swarmctl service update`."""

from __future__ import annotations

import os

import typer
from swarm.errors import InvalidArgument

from orchestrator.cli import output, progress
from orchestrator.cli.invocation import Service, session
from orchestrator.cli.lazy import takes
from orchestrator.cli.service_changes import change_service, network_ids, roll_back
from orchestrator.cli.service_specs import networks_named, updated_spec
from orchestrator.cli.update_flags import UpdateFlags
from orchestrator.cli.waiting import wait_seconds


@takes(UpdateFlags)
def update(context: typer.Context, service: Service, *, options: UpdateFlags) -> None:
    """Change a service.

    Only what is named changes; tasks are replaced as the service's --update-… settings say.
    """
    seconds = wait_seconds(options)
    managers = session(context).control()
    if options.rollback:
        _refuse_more(options)
        changed = roll_back(managers, service)
    else:
        ids = network_ids(managers, networks_named(options))
        changed = change_service(
            managers,
            service,
            lambda spec: updated_spec(spec, options, environment=os.environ, network_ids=ids),
            no_resolve_image=options.no_resolve_image,
        )
    output.line(service)
    if not options.detach:
        progress.wait(managers, changed, rolling_back=options.rollback, quiet=options.quiet, timeout=seconds)


def _refuse_more(options: UpdateFlags) -> None:
    """Raises InvalidArgument where --rollback comes with a change."""
    plain = UpdateFlags(
        rollback=True,
        detach=options.detach,
        quiet=options.quiet,
        wait_timeout=options.wait_timeout,
        with_registry_auth=options.with_registry_auth,
        no_resolve_image=options.no_resolve_image,
    )
    if options != plain:
        raise InvalidArgument(
            "--rollback returns to the task spec of the previous revision; give it without other changes"
        )
