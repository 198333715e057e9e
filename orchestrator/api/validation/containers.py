"""What a container may be told: image, process, environment, health check, mounts, limits."""

from __future__ import annotations

import ipaddress
import posixpath
import re
from collections.abc import Sequence

from swarm.errors import InvalidArgument
from swarm.names import MAX_HOST_NAME, is_domain, is_host_name, is_volume_name
from swarm.references import parse_image_reference
from swarm.signals import parse_signal
from swarm.templates import SAMPLE, expand_container
from swarm.v1 import types_pb2

from orchestrator.api.validation.fields import (
    check_count,
    check_duration,
    check_labels,
    check_text,
    first_duplicate,
    refuse,
)

MAX_ENTRIES = 1024  # of env, arguments, mounts, hosts
MAX_TEXT = 128 << 10  # of one argument or variable: Linux's own bound
SHORTEST_HEALTH_DURATION = 0.001  # seconds
MAX_TMPFS_MODE = 0o7777
MAX_USER = 256  # characters of a user's or group's name
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CAPABILITY = re.compile(r"(?i)(cap_)?[a-z_]+|all")
_SYSCTL = re.compile(r"[a-z0-9_]+([./][a-zA-Z0-9_*-]+)+")
_ULIMITS = frozenset(
    {
        *("core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice"),
        *("nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"),
    }
)


def check_container(field: str, spec: types_pb2.ContainerSpec) -> None:
    """Raises InvalidArgument, naming the part of `field` that is wrong."""
    try:
        spec = expand_container(spec, SAMPLE)
    except InvalidArgument as error:
        raise refuse(field, str(error)) from None
    try:
        parse_image_reference(spec.image)
    except InvalidArgument as error:
        raise refuse(f"{field}.image", str(error)) from None
    if spec.image_digest and not _DIGEST.fullmatch(spec.image_digest):
        raise refuse(f"{field}.image_digest", f"{spec.image_digest!r} is not `sha256:` and 64 hexadecimal digits")
    _check_process(field, spec)
    _check_environment(f"{field}.env", spec.env)
    check_labels(f"{field}.labels", spec.labels)
    check_duration(f"{field}.stop_grace_period", spec.stop_grace_period)
    if spec.HasField("health"):
        check_health(f"{field}.health", spec.health)
    check_mounts(f"{field}.mounts", spec.mounts)
    _check_names(field, spec)
    _check_privileges(field, spec)


def _check_process(field: str, spec: types_pb2.ContainerSpec) -> None:
    for name, words in (("command", spec.command), ("args", spec.args)):
        check_count(f"{field}.{name}", len(words), MAX_ENTRIES)
        for word in words:
            check_text(f"{field}.{name}", word, maximum=MAX_TEXT)
    if spec.command and not spec.command[0]:
        raise refuse(f"{field}.command", "its first word, the program, is empty")
    if spec.directory and not spec.directory.startswith("/"):
        raise refuse(f"{field}.directory", f"{spec.directory!r} must be an absolute path in the container")
    check_text(f"{field}.directory", spec.directory)
    check_text(f"{field}.user", spec.user, maximum=MAX_USER)
    if not _is_unbroken(spec.user) or spec.user.count(":") > 1:
        raise refuse(f"{field}.user", f"{spec.user!r} is not USER or USER:GROUP")
    check_count(f"{field}.groups", len(spec.groups), MAX_ENTRIES)
    for group in spec.groups:
        if not _is_unbroken(group) or not 0 < len(group) <= MAX_USER or ":" in group:
            raise refuse(f"{field}.groups", f"{group[:80]!r} is not a group; write a name or a number")
    if spec.stop_signal:
        _check_signal(f"{field}.stop_signal", spec.stop_signal)


def _check_signal(field: str, name: str) -> None:
    try:
        parse_signal(name)
    except InvalidArgument as error:
        raise refuse(field, str(error)) from None


def _check_environment(field: str, env: Sequence[str]) -> None:
    check_count(field, len(env), MAX_ENTRIES)
    for entry in env:
        name, equals, _ = entry.partition("=")
        if not equals or not name or any(character.isspace() for character in name):
            raise refuse(field, f"{entry[:80]!r} is not of the form NAME=VALUE")
        check_text(field, entry, maximum=MAX_TEXT)


def check_health(field: str, health: types_pb2.HealthConfig) -> None:
    check_count(f"{field}.test", len(health.test), MAX_ENTRIES)
    for word in health.test:
        check_text(f"{field}.test", word, maximum=MAX_TEXT)
    if health.test:
        kind = health.test[0]
        if kind not in ("NONE", "CMD", "CMD-SHELL"):
            raise refuse(f"{field}.test", f"begins with {kind!r}; it must begin with CMD, CMD-SHELL or NONE")
        if kind == "NONE" and len(health.test) > 1:
            raise refuse(f"{field}.test", "NONE takes no command")
        if kind == "CMD" and len(health.test) < 2:
            raise refuse(f"{field}.test", "CMD needs a program to run")
        if kind == "CMD-SHELL" and len(health.test) != 2:
            raise refuse(f"{field}.test", "CMD-SHELL needs exactly one line for the shell")
    for name in ("interval", "timeout", "start_interval"):
        check_duration(f"{field}.{name}", getattr(health, name), minimum=SHORTEST_HEALTH_DURATION)
    check_duration(f"{field}.start_period", health.start_period)


def check_mounts(field: str, mounts: Sequence[types_pb2.Mount]) -> None:
    check_count(field, len(mounts), MAX_ENTRIES)
    for mount in mounts:
        _check_mount(f"{field}[{mount.target}]", mount)
    twice = first_duplicate(_one_way(mount.target) for mount in mounts)
    if twice is not None:
        raise refuse(field, f"two mounts have the target {twice!r}")


def _one_way(path: str) -> str:
    """The plainest way to write an absolute path: `/a` for `//a`, `/./a` and `/a/`."""
    return posixpath.normpath("/" + path.lstrip("/"))  # which by itself leaves two leading slashes as they are


def _check_mount(field: str, mount: types_pb2.Mount) -> None:
    check_text(f"{field}.target", mount.target)
    check_text(f"{field}.source", mount.source)
    if not mount.target.startswith("/"):
        raise refuse(f"{field}.target", f"{mount.target!r} must be an absolute path in the container")
    if _one_way(mount.target) == "/" or ".." in mount.target.split("/"):
        raise refuse(f"{field}.target", f"{mount.target!r} cannot be mounted over")
    if mount.type == types_pb2.MOUNT_TYPE_BIND:
        if not mount.source.startswith("/"):
            raise refuse(f"{field}.source", f"a bind mount needs an absolute path of the host, not {mount.source!r}")
    elif mount.type == types_pb2.MOUNT_TYPE_VOLUME:
        if mount.source and not is_volume_name(mount.source):
            raise refuse(
                f"{field}.source", f"{mount.source!r} is not a volume name: two or more letters, digits, '_', '.', '-'"
            )
    elif mount.type == types_pb2.MOUNT_TYPE_TMPFS:
        if mount.source:
            raise refuse(f"{field}.source", "a tmpfs mount has no source; leave it out")
    else:
        raise refuse(f"{field}.type", "say bind, volume or tmpfs")
    if mount.type != types_pb2.MOUNT_TYPE_TMPFS and (mount.tmpfs_size_bytes or mount.tmpfs_mode):
        raise refuse(field, "size and mode are for tmpfs mounts only")
    if mount.tmpfs_size_bytes < 0:
        raise refuse(f"{field}.tmpfs_size_bytes", "must not be negative")
    if mount.tmpfs_mode > MAX_TMPFS_MODE:
        raise refuse(f"{field}.tmpfs_mode", f"{mount.tmpfs_mode:o} is not a file mode; give at most 7777 (octal)")


def _check_names(field: str, spec: types_pb2.ContainerSpec) -> None:
    if spec.hostname and not is_host_name(spec.hostname):
        raise refuse(f"{field}.hostname", f"{spec.hostname!r} is not a host name of at most {MAX_HOST_NAME} characters")
    check_count(f"{field}.hosts", len(spec.hosts), MAX_ENTRIES)
    for line in spec.hosts:
        words = line.split()
        if len(words) < 2 or not _is_address(words[0]) or not all(is_domain(name) for name in words[1:]):
            raise refuse(f"{field}.hosts", f"{line!r} is not `ADDRESS NAME`")
    for server in spec.dns.nameservers:
        if not _is_address(server):
            raise refuse(f"{field}.dns.nameservers", f"{server!r} is not an IP address")
    for domain in spec.dns.search:
        if domain != "." and not is_domain(domain.strip(".").replace("_", "-")):
            raise refuse(f"{field}.dns.search", f"{domain!r} is not a domain")
    for option in spec.dns.options:
        if not option or not _is_unbroken(option):
            raise refuse(f"{field}.dns.options", f"{option!r} is not a resolver option")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _check_privileges(field: str, spec: types_pb2.ContainerSpec) -> None:
    for name, capabilities in (("add", spec.capabilities_add), ("drop", spec.capabilities_drop)):
        for capability in capabilities:
            if not _CAPABILITY.fullmatch(capability):
                raise refuse(f"{field}.capabilities_{name}", f"{capability!r} is not a capability as NET_ADMIN or ALL")
    for key, value in spec.sysctls.items():
        if not _SYSCTL.fullmatch(key):
            raise refuse(f"{field}.sysctls", f"{key!r} is not a kernel setting as net.core.somaxconn")
        check_text(f"{field}.sysctls.{key}", value)
    for limit in spec.ulimits:
        if limit.name not in _ULIMITS:
            raise refuse(f"{field}.ulimits", f"{limit.name!r} is not a limit; known are {', '.join(sorted(_ULIMITS))}")
        if limit.soft < -1 or limit.hard < -1:
            raise refuse(f"{field}.ulimits.{limit.name}", "must be -1 (unlimited) or more")
        if limit.hard != -1 and (limit.soft == -1 or limit.soft > limit.hard):
            raise refuse(
                f"{field}.ulimits.{limit.name}", f"the soft limit {limit.soft} is above the hard limit {limit.hard}"
            )
    twice = first_duplicate(limit.name for limit in spec.ulimits)
    if twice is not None:
        raise refuse(f"{field}.ulimits", f"{twice} is given twice")


def _is_unbroken(text: str) -> bool:
    """Printable and without spaces; may be empty."""
    return text.isprintable() and not any(character.isspace() for character in text)
