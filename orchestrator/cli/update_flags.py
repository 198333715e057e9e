"""The flags that only `service update` has; apart from those of `service_flags`, which a `service create` loads each time.

Annotations are evaluated with the class, as there.
"""

from dataclasses import dataclass
from typing import Annotated

import typer

from orchestrator.cli.service_flags import SettingFlags, Text, Words
from orchestrator.cli.waiting import WaitFlags


@dataclass(repr=False, match_args=False)
class UpdateFlags(SettingFlags, WaitFlags):
    """The flags of `service update`."""

    image: Annotated[Text, typer.Option("--image", metavar="IMAGE", help="New image")] = None
    args: Annotated[Text, typer.Option("--args", metavar="WORDS", help="New arguments, split as by a shell")] = None
    force: Annotated[bool, typer.Option("--force", help="Replace the tasks even if nothing changed")] = False
    rollback: Annotated[bool, typer.Option("--rollback", help="Return to the previous revision")] = False
    publish_add: Annotated[Words, typer.Option("--publish-add", "-p", metavar="PORTS", help="Publish a port")] = None
    publish_rm: Annotated[
        Words, typer.Option("--publish-rm", metavar="PORTS", help="Stop publishing: 80, 80/udp or 8080:80")
    ] = None
    env_add: Annotated[Words, typer.Option("--env-add", "-e", metavar="NAME=VALUE", help="Set a variable")] = None
    env_rm: Annotated[Words, typer.Option("--env-rm", metavar="NAME", help="Remove a variable")] = None
    label_add: Annotated[Words, typer.Option("--label-add", metavar="KEY=VALUE", help="Set a service label")] = None
    label_rm: Annotated[Words, typer.Option("--label-rm", metavar="KEY", help="Remove a service label")] = None
    container_label_add: Annotated[
        Words, typer.Option("--container-label-add", metavar="KEY=VALUE", help="Set a label of the containers")
    ] = None
    container_label_rm: Annotated[
        Words, typer.Option("--container-label-rm", metavar="KEY", help="Remove a label of the containers")
    ] = None
    network_add: Annotated[Words, typer.Option("--network-add", metavar="NETWORK", help="Join a network")] = None
    network_rm: Annotated[Words, typer.Option("--network-rm", metavar="NETWORK", help="Leave a network")] = None
    constraint_add: Annotated[
        Words, typer.Option("--constraint-add", metavar="EXPRESSION", help="Add a constraint")
    ] = None
    constraint_rm: Annotated[
        Words, typer.Option("--constraint-rm", metavar="EXPRESSION", help="Remove a constraint")
    ] = None
    placement_pref_add: Annotated[
        Words, typer.Option("--placement-pref-add", metavar="PREFERENCE", help="Add a preference")
    ] = None
    placement_pref_rm: Annotated[
        Words, typer.Option("--placement-pref-rm", metavar="PREFERENCE", help="Remove a preference")
    ] = None
    mount_add: Annotated[
        Words, typer.Option("--mount-add", metavar="MOUNT", help="Add a mount, or replace the one of its target")
    ] = None
    mount_rm: Annotated[Words, typer.Option("--mount-rm", metavar="TARGET", help="Remove the mount of a target")] = None
    group_add: Annotated[Words, typer.Option("--group-add", metavar="GROUP", help="Add a group")] = None
    group_rm: Annotated[Words, typer.Option("--group-rm", metavar="GROUP", help="Remove a group")] = None
    host_add: Annotated[Words, typer.Option("--host-add", metavar="NAME:ADDRESS", help="Add a line to /etc/hosts")] = (
        None
    )
    host_rm: Annotated[Words, typer.Option("--host-rm", metavar="NAME[:ADDRESS]", help="Remove such lines")] = None
    dns_add: Annotated[Words, typer.Option("--dns-add", metavar="ADDRESS", help="Add a name server")] = None
    dns_rm: Annotated[Words, typer.Option("--dns-rm", metavar="ADDRESS", help="Remove a name server")] = None
    dns_search_add: Annotated[Words, typer.Option("--dns-search-add", metavar="DOMAIN", help="Add a search domain")] = (
        None
    )
    dns_search_rm: Annotated[
        Words, typer.Option("--dns-search-rm", metavar="DOMAIN", help="Remove a search domain")
    ] = None
    dns_option_add: Annotated[
        Words, typer.Option("--dns-option-add", metavar="OPTION", help="Add an option of the resolver")
    ] = None
    dns_option_rm: Annotated[
        Words, typer.Option("--dns-option-rm", metavar="OPTION", help="Remove an option of the resolver")
    ] = None
    cap_add: Annotated[Words, typer.Option("--cap-add", metavar="CAPABILITY", help="Add a capability")] = None
    cap_drop: Annotated[Words, typer.Option("--cap-drop", metavar="CAPABILITY", help="Drop a capability")] = None
    sysctl_add: Annotated[Words, typer.Option("--sysctl-add", metavar="KEY=VALUE", help="Set a kernel parameter")] = (
        None
    )
    sysctl_rm: Annotated[Words, typer.Option("--sysctl-rm", metavar="KEY", help="Remove a kernel parameter")] = None
    ulimit_add: Annotated[
        Words, typer.Option("--ulimit-add", metavar="NAME=SOFT[:HARD]", help="Set a resource limit")
    ] = None
    ulimit_rm: Annotated[Words, typer.Option("--ulimit-rm", metavar="NAME", help="Remove a resource limit")] = None
