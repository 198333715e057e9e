"""The OCI specification of a container: a pure function of its settings, its user and what the host offers.

Defaults are those of Docker, because images expect them: fourteen capabilities, masked and read-only parts of /proc and
/sys, a small set of devices, the system call filter of `seccomp`.  What the host cannot give is left out with a sentence in
`Specification.warnings`; what makes no sense raises InvalidArgument.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swarm.errors import InvalidArgument

from agent.runtime.interface import BindMount, ContainerSettings, TmpfsMount
from agent.runtime.seccomp import profile
from agent.runtime.users import Identity

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INIT_TARGET = "/sbin/docker-init"
CPU_PERIOD = 100_000  # µs, the kernel's default
MINIMUM_CPU_QUOTA = 1000  # µs, below it the kernel refuses
MINIMUM_MEMORY = 6 << 20  # bytes, as Docker: less does not hold a process

DEFAULT_CAPABILITIES = tuple(
    f"CAP_{name}"
    for name in (
        *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW"),
        *("SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
    )
)
ALL_CAPABILITIES = (
    *DEFAULT_CAPABILITIES,
    *(
        f"CAP_{name}"
        for name in (
            *(
                "AUDIT_CONTROL",
                "AUDIT_READ",
                "BLOCK_SUSPEND",
                "BPF",
                "CHECKPOINT_RESTORE",
                "DAC_READ_SEARCH",
                "IPC_LOCK",
            ),
            *("IPC_OWNER", "LEASE", "LINUX_IMMUTABLE", "MAC_ADMIN", "MAC_OVERRIDE", "NET_ADMIN", "NET_BROADCAST"),
            *("PERFMON", "SYSLOG", "SYS_ADMIN", "SYS_BOOT", "SYS_MODULE", "SYS_NICE", "SYS_PACCT", "SYS_PTRACE"),
            *("SYS_RAWIO", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "WAKE_ALARM"),
        )
    ),
)

MASKED_PATHS = (
    *("/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"),
    "/sys/devices/virtual/powercap",
)
READ_ONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

# (type, major, minor): null zero full random urandom tty console ptmx and the pseudo-terminals
_DEVICES = (
    *(("c", 1, minor) for minor in (3, 5, 7, 8, 9)),
    *(("c", 5, minor) for minor in (0, 1, 2)),
    ("c", 136, -1),
)
_RLIMITS = frozenset(
    (
        *("as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss"),
        *("rtprio", "rttime", "sigpending", "stack"),
    )
)
# Sysctls that belong to a namespace of the container; all others would change the host.
_SYSCTL_PREFIXES = ("net.", "fs.mqueue.")
_SYSCTL_NAMES = frozenset(
    (
        *("kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax"),
        *("kernel.shmmni", "kernel.shm_rmid_forced", "kernel.domainname"),
    )
)
UNLIMITED = (1 << 64) - 1


@dataclass(frozen=True)
class HostFacts:
    """What the specification depends on, read once by the runtime."""

    cgroup_version_2: bool
    may_raise_limits: bool  # CAP_SYS_RESOURCE
    capabilities: frozenset[str]  # that this process can hand on
    hard_limits: dict[str, int] = field(default_factory=dict)  # rlimit name → ours, UNLIMITED for none
    counts_swap: bool = False  # the kernel can limit it
    oom_score: int = 0  # our own; without CAP_SYS_RESOURCE no container gets a lower one
    init_program: Path | None = None  # a static init (tini)


@dataclass(frozen=True)
class Specification:
    document: dict[str, Any]  # config.json
    warnings: tuple[str, ...]


def specification(settings: ContainerSettings, who: Identity, host: HostFacts, cgroup_path: str) -> Specification:
    """The whole config.json. Raises InvalidArgument naming what is wrong."""
    warnings: list[str] = []
    if not settings.arguments:
        raise InvalidArgument("neither the service nor the image names a command; give one")
    capabilities = _capabilities(settings, host, warnings)
    arguments = list(settings.arguments)
    if settings.init:
        if host.init_program is None:
            raise InvalidArgument("the service asks for an init, but this host has none; install the package tini")
        arguments = [INIT_TARGET, "--", *arguments]
    process: dict[str, Any] = {
        "terminal": settings.terminal,
        "user": {"uid": who.uid, "gid": who.gid, "additionalGids": list(who.groups)},
        "args": arguments,
        "env": _environment(settings, who),
        "cwd": settings.directory or "/",
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
        "rlimits": _rlimits(settings, host, warnings),
        "noNewPrivileges": False,
        "oomScoreAdj": 0 if host.may_raise_limits else max(0, host.oom_score),
    }
    if settings.terminal:
        process["consoleSize"] = {"height": 24, "width": 80}
    namespaces: list[dict[str, str]] = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]
    namespaces.append({"type": "network", "path": str(settings.network_namespace)})
    if host.cgroup_version_2:
        namespaces.append({"type": "cgroup"})
    document = {
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": str(settings.rootfs), "readonly": settings.read_only},
        "hostname": settings.hostname,
        "mounts": _mounts(settings, host),
        # Only ours: to some runtimes annotations are orders (crun's run.oci.…), and labels are free text of people.
        "annotations": {key: value for key, value in settings.labels.items() if key.startswith("swarm.")},
        "linux": {
            "cgroupsPath": cgroup_path,
            "namespaces": namespaces,
            "resources": _resources(settings, host),
            "seccomp": profile(capabilities),
            "sysctl": _sysctls(settings),
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READ_ONLY_PATHS),
        },
    }
    return Specification(document, tuple(warnings))


def _environment(settings: ContainerSettings, who: Identity) -> list[str]:
    names = {pair.partition("=")[0] for pair in settings.environment}
    defaults = {"PATH": DEFAULT_PATH, "HOSTNAME": settings.hostname, "HOME": who.home}
    if settings.terminal:
        defaults["TERM"] = "xterm"
    return [f"{name}={value}" for name, value in defaults.items() if name not in names] + list(settings.environment)


def _capability(name: str) -> str:
    upper = name.upper()
    full = upper if upper.startswith("CAP_") else f"CAP_{upper}"
    if full not in ALL_CAPABILITIES and full != "CAP_ALL":
        raise InvalidArgument(f'"{name}" is not a capability; `man 7 capabilities` lists them')
    return full


def _capabilities(settings: ContainerSettings, host: HostFacts, warnings: list[str]) -> list[str]:
    added = {_capability(name) for name in settings.capabilities_add}
    dropped = {_capability(name) for name in settings.capabilities_drop}
    wanted = set() if "CAP_ALL" in dropped else set(DEFAULT_CAPABILITIES)
    if "CAP_ALL" in added:
        # "all" means what there is to give, so a host that has fewer is no reason for a warning
        wanted = set(ALL_CAPABILITIES) & host.capabilities
    wanted = (wanted - dropped) | (added - {"CAP_ALL"})
    missing = wanted - host.capabilities
    if missing:
        warnings.append(f"this host cannot give {', '.join(sorted(missing))}")
    return sorted(wanted & host.capabilities)


def _rlimits(settings: ContainerSettings, host: HostFacts, warnings: list[str]) -> list[dict[str, Any]]:
    found = []
    for name, soft, hard in settings.ulimits:
        short = name.lower().removeprefix("rlimit_")
        if short not in _RLIMITS:
            raise InvalidArgument(f'"{name}" is not a resource limit; use one of {", ".join(sorted(_RLIMITS))}')
        wanted_soft = UNLIMITED if soft < 0 else soft
        wanted_hard = UNLIMITED if hard < 0 else hard
        if wanted_soft > wanted_hard:
            raise InvalidArgument(f"ulimit {short}: the soft limit {soft} is above the hard limit {hard}")
        ceiling = host.hard_limits.get(short, UNLIMITED)
        if wanted_hard > ceiling and not host.may_raise_limits:
            warnings.append(f"ulimit {short} is {ceiling} instead of {hard}: this host does not allow to raise it")
            wanted_hard, wanted_soft = ceiling, min(wanted_soft, ceiling)
        found.append({"type": f"RLIMIT_{short.upper()}", "soft": wanted_soft, "hard": wanted_hard})
    return found


def _resources(settings: ContainerSettings, host: HostFacts) -> dict[str, Any]:
    devices: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    for kind, major, minor in _DEVICES:
        rule = {"allow": True, "type": kind, "major": major, "access": "rwm"}
        devices.append(rule if minor < 0 else {**rule, "minor": minor})
    devices += [{"allow": True, "type": kind, "access": "m"} for kind in ("c", "b")]
    resources: dict[str, Any] = {"devices": devices}
    cpu: dict[str, int] = {}
    if settings.nano_cpus:
        cpu["period"] = CPU_PERIOD
        cpu["quota"] = max(MINIMUM_CPU_QUOTA, settings.nano_cpus * CPU_PERIOD // 1_000_000_000)
    if settings.cpu_shares_nano:
        cpu["shares"] = min(262_144, max(2, settings.cpu_shares_nano * 1024 // 1_000_000_000))
    if cpu:
        resources["cpu"] = cpu
    if settings.memory_bytes:
        if settings.memory_bytes < MINIMUM_MEMORY:
            raise InvalidArgument(
                f"a memory limit of {settings.memory_bytes} bytes holds no process; give at least 6 MiB"
            )
        resources["memory"] = {"limit": settings.memory_bytes}
        if host.counts_swap:
            # memory and swap together, as Docker: without it what exceeds the limit goes to swap until that is full
            resources["memory"]["swap"] = 2 * settings.memory_bytes
    if settings.pids:
        resources["pids"] = {"limit": settings.pids}
    return resources


def _sysctls(settings: ContainerSettings) -> dict[str, str]:
    for name in settings.sysctls:
        if not name.startswith(_SYSCTL_PREFIXES) and name not in _SYSCTL_NAMES:
            raise InvalidArgument(f'sysctl "{name}" would change the host, not only the container; set it on the host')
    return dict(settings.sysctls)


def _mount(kind: str, target: str, *options: str, source: str | None = None) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source or kind, "options": list(options)}


def _mounts(settings: ContainerSettings, host: HostFacts) -> list[dict[str, Any]]:
    mounts = [
        _mount("proc", "/proc", "nosuid", "noexec", "nodev"),
        _mount("tmpfs", "/dev", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("devpts", "/dev/pts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        _mount("sysfs", "/sys", "nosuid", "noexec", "nodev", "ro"),
        _mount("cgroup", "/sys/fs/cgroup", "ro", "nosuid", "noexec", "nodev", "relatime"),
        _mount("mqueue", "/dev/mqueue", "nosuid", "noexec", "nodev"),
        _mount("tmpfs", "/dev/shm", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k", source="shm"),
    ]
    for wanted in settings.mounts:
        target = wanted.target.rstrip("/") or "/"
        if not target.startswith("/") or target == "/" or ".." in target.split("/"):
            raise InvalidArgument(f'the mount target "{wanted.target}" is not a path below /')
        # what the user mounts at a place of ours replaces ours
        mounts = [mount for mount in mounts if mount["destination"] != target]
        mounts.append(_bind(wanted, target) if isinstance(wanted, BindMount) else _tmpfs(wanted, target))
    if settings.init and host.init_program is not None:
        mounts.append(_mount("bind", INIT_TARGET, "bind", "ro", source=str(host.init_program)))
    return mounts


def _bind(wanted: BindMount, target: str) -> dict[str, Any]:
    access = "ro" if wanted.read_only else "rw"
    return _mount("bind", target, "rbind", "rprivate", access, source=str(wanted.source))


def _tmpfs(wanted: TmpfsMount, target: str) -> dict[str, Any]:
    size = (f"size={wanted.size_bytes}",) if wanted.size_bytes else ()
    return _mount("tmpfs", target, "nosuid", "nodev", "noexec", f"mode={wanted.mode:o}", *size)
