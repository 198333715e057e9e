"""The flags of `service create`, and those that `service update` (`update_flags`) has too, named as docker's.

A flag that was not given is None (or an empty list): creating then takes the default, updating leaves what is there. What
the flags mean for a spec is in `service_specs`.

Annotations are evaluated with the class here, not kept as text, and the classes get no methods that nobody calls: making
either anew costs each command some milliseconds.
"""

from dataclasses import dataclass
from typing import Annotated

import typer

from orchestrator.cli.waiting import WaitFlags

Text = str | None
Words = list[str] | None
Switch = bool | None


@dataclass(repr=False, match_args=False)
class SettingFlags:
    """What `create` and `update` set by the same flags."""

    replicas: Annotated[Text, typer.Option("--replicas", metavar="N", help="Number of tasks")] = None
    replicas_max_per_node: Annotated[
        Text, typer.Option("--replicas-max-per-node", metavar="N", help="Most tasks on one node (0: unlimited)")
    ] = None
    limit_cpu: Annotated[Text, typer.Option("--limit-cpu", metavar="CPUS", help="Most CPUs a task may use")] = None
    limit_memory: Annotated[Text, typer.Option("--limit-memory", metavar="BYTES", help="Most memory of a task")] = None
    limit_pids: Annotated[
        Text, typer.Option("--limit-pids", metavar="N", help="Most processes of a task (0: unlimited)")
    ] = None
    reserve_cpu: Annotated[
        Text, typer.Option("--reserve-cpu", metavar="CPUS", help="CPUs that a node must have free for a task")
    ] = None
    reserve_memory: Annotated[
        Text, typer.Option("--reserve-memory", metavar="BYTES", help="Memory that a node must have free for a task")
    ] = None
    restart_condition: Annotated[
        Text, typer.Option("--restart-condition", metavar="none|on-failure|any", help="When to replace an ended task")
    ] = None
    restart_delay: Annotated[
        Text, typer.Option("--restart-delay", metavar="DURATION", help="Wait before a replacement (default: growing)")
    ] = None
    restart_max_attempts: Annotated[
        Text, typer.Option("--restart-max-attempts", metavar="N", help="Give up after this many replacements")
    ] = None
    restart_window: Annotated[
        Text, typer.Option("--restart-window", metavar="DURATION", help="Within which the attempts are counted")
    ] = None
    update_parallelism: Annotated[
        Text, typer.Option("--update-parallelism", metavar="N", help="Tasks updated at a time (0: all; default 1)")
    ] = None
    update_delay: Annotated[Text, typer.Option("--update-delay", metavar="DURATION", help="Pause between updates")] = (
        None
    )
    update_failure_action: Annotated[
        Text,
        typer.Option(
            "--update-failure-action", metavar="pause|continue|rollback", help="What a failed update leads to"
        ),
    ] = None
    update_monitor: Annotated[
        Text,
        typer.Option("--update-monitor", metavar="DURATION", help="How long an updated task is watched for failure"),
    ] = None
    update_max_failure_ratio: Annotated[
        Text,
        typer.Option("--update-max-failure-ratio", metavar="RATIO", help="Failures tolerated in an update, 0 to 1"),
    ] = None
    update_order: Annotated[
        Text, typer.Option("--update-order", metavar="stop-first|start-first", help="Order within an update")
    ] = None
    rollback_parallelism: Annotated[
        Text,
        typer.Option("--rollback-parallelism", metavar="N", help="Tasks rolled back at a time (0: all; default 1)"),
    ] = None
    rollback_delay: Annotated[
        Text, typer.Option("--rollback-delay", metavar="DURATION", help="Pause between rollbacks")
    ] = None
    rollback_failure_action: Annotated[
        Text,
        typer.Option("--rollback-failure-action", metavar="pause|continue", help="What a failed rollback leads to"),
    ] = None
    rollback_monitor: Annotated[
        Text,
        typer.Option(
            "--rollback-monitor", metavar="DURATION", help="How long a task rolled back is watched for failure"
        ),
    ] = None
    rollback_max_failure_ratio: Annotated[
        Text,
        typer.Option("--rollback-max-failure-ratio", metavar="RATIO", help="Failures tolerated in a rollback, 0 to 1"),
    ] = None
    rollback_order: Annotated[
        Text, typer.Option("--rollback-order", metavar="stop-first|start-first", help="Order within a rollback")
    ] = None
    stop_grace_period: Annotated[
        Text, typer.Option("--stop-grace-period", metavar="DURATION", help="Between stop signal and kill (default 10s)")
    ] = None
    stop_signal: Annotated[Text, typer.Option("--stop-signal", metavar="SIGNAL", help="Signal that stops a task")] = (
        None
    )
    health_cmd: Annotated[Text, typer.Option("--health-cmd", metavar="COMMAND", help="Command that checks health")] = (
        None
    )
    health_interval: Annotated[
        Text, typer.Option("--health-interval", metavar="DURATION", help="Time between checks (default 30s)")
    ] = None
    health_timeout: Annotated[
        Text, typer.Option("--health-timeout", metavar="DURATION", help="Longest time of a check (default 30s)")
    ] = None
    health_retries: Annotated[
        Text,
        typer.Option("--health-retries", metavar="N", help="Failed checks in a row that make unhealthy (default 3)"),
    ] = None
    health_start_period: Annotated[
        Text, typer.Option("--health-start-period", metavar="DURATION", help="Time to start before failures count")
    ] = None
    health_start_interval: Annotated[
        Text, typer.Option("--health-start-interval", metavar="DURATION", help="Time between checks while starting")
    ] = None
    no_healthcheck: Annotated[bool, typer.Option("--no-healthcheck", help="Ignore the image's health check too")] = (
        False
    )
    user: Annotated[Text, typer.Option("--user", "-u", metavar="USER[:GROUP]", help="User of the processes")] = None
    workdir: Annotated[Text, typer.Option("--workdir", "-w", metavar="DIR", help="Working directory")] = None
    hostname: Annotated[Text, typer.Option("--hostname", metavar="NAME", help="Host name in the container")] = None
    entrypoint: Annotated[
        Text, typer.Option("--entrypoint", metavar="COMMAND", help="Replaces the image's entry point")
    ] = None
    read_only: Annotated[Switch, typer.Option("--read-only/--no-read-only", help="Root file system read-only")] = None
    tty: Annotated[Switch, typer.Option("--tty/--no-tty", "-t", help="Give the tasks a terminal")] = None
    init: Annotated[Switch, typer.Option("--init/--no-init", help="Run an init that forwards signals and reaps")] = None
    endpoint_mode: Annotated[
        Text, typer.Option("--endpoint-mode", metavar="vip|dnsrr", help="What the service's name resolves to")
    ] = None
    no_resolve_image: Annotated[
        bool,
        typer.Option("--no-resolve-image", help="Do not ask the registry what the tag means: each host takes its own"),
    ] = False
    with_registry_auth: Annotated[
        bool, typer.Option("--with-registry-auth", help="Accepted for compatibility: hosts use their own logins")
    ] = False


@dataclass(repr=False, match_args=False)
class CreateFlags(SettingFlags, WaitFlags):
    """The flags of `service create`."""

    name: Annotated[Text, typer.Option("--name", metavar="NAME", help="Default: the image's own name")] = None
    mode: Annotated[str, typer.Option("--mode", metavar="replicated|global", help="How tasks are counted")] = (
        "replicated"
    )
    publish: Annotated[
        Words,
        typer.Option(
            "--publish", "-p", metavar="PORTS", help="8080:80, 53:53/udp or published=8080,target=80,mode=host"
        ),
    ] = None
    env: Annotated[Words, typer.Option("--env", "-e", metavar="NAME=VALUE", help="Environment variable")] = None
    env_file: Annotated[
        Words, typer.Option("--env-file", metavar="FILE", help="File with a NAME=VALUE on each line")
    ] = None
    label: Annotated[Words, typer.Option("--label", "-l", metavar="KEY=VALUE", help="Label of the service")] = None
    container_label: Annotated[
        Words, typer.Option("--container-label", metavar="KEY=VALUE", help="Label of the containers")
    ] = None
    network: Annotated[
        Words, typer.Option("--network", metavar="NETWORK", help="Network to join: NAME or name=NAME,alias=ALIAS")
    ] = None
    constraint: Annotated[
        Words, typer.Option("--constraint", metavar="EXPRESSION", help="Where tasks may run: node.labels.zone==a")
    ] = None
    placement_pref: Annotated[
        Words, typer.Option("--placement-pref", metavar="PREFERENCE", help="How to spread: spread=node.labels.zone")
    ] = None
    mount: Annotated[
        Words, typer.Option("--mount", metavar="MOUNT", help="type=volume,source=data,target=/data[,ro]")
    ] = None
    group: Annotated[Words, typer.Option("--group", metavar="GROUP", help="Further group of the user")] = None
    host: Annotated[Words, typer.Option("--host", metavar="NAME:ADDRESS", help="Line for /etc/hosts")] = None
    dns: Annotated[Words, typer.Option("--dns", metavar="ADDRESS", help="Name server")] = None
    dns_search: Annotated[Words, typer.Option("--dns-search", metavar="DOMAIN", help="Search domain")] = None
    dns_option: Annotated[Words, typer.Option("--dns-option", metavar="OPTION", help="Option of the resolver")] = None
    cap_add: Annotated[Words, typer.Option("--cap-add", metavar="CAPABILITY", help="Add a capability")] = None
    cap_drop: Annotated[Words, typer.Option("--cap-drop", metavar="CAPABILITY", help="Drop a capability")] = None
    sysctl: Annotated[Words, typer.Option("--sysctl", metavar="KEY=VALUE", help="Kernel parameter")] = None
    ulimit: Annotated[Words, typer.Option("--ulimit", metavar="NAME=SOFT[:HARD]", help="Resource limit")] = None
