"""What this host offers to containers, read once: capabilities, resource limits, the OCI runtime, an init program."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

from swarm.errors import FailedPrecondition
from swarm.process import missing_program

from agent.runtime import cgroups
from agent.runtime.spec import UNLIMITED, HostFacts

# in the order of their numbers, from linux/capability.h
_CAPABILITY_NUMBERS = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"),
    *("LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER"),
    *("SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE"),
    *("SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP"),
    *("MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF"),
    "CHECKPOINT_RESTORE",
)
_INIT_PROGRAMS = ("docker-init", "tini-static", "catatonit")  # static ones only: the image may have no C library


def capabilities(status: str) -> frozenset[str]:
    """The permitted set, from /proc/self/status."""
    for line in status.splitlines():
        if line.startswith("CapPrm:"):
            bits = int(line.split()[1], 16)
            return frozenset(f"CAP_{name}" for number, name in enumerate(_CAPABILITY_NUMBERS) if bits >> number & 1)
    return frozenset()


def facts() -> HostFacts:
    held = capabilities(Path("/proc/self/status").read_text())
    limits = {}
    for attribute in dir(resource):
        if attribute.startswith("RLIMIT_"):
            hard = resource.getrlimit(getattr(resource, attribute))[1]
            limits[attribute.removeprefix("RLIMIT_").lower()] = UNLIMITED if hard == resource.RLIM_INFINITY else hard
    init = next((found for name in _INIT_PROGRAMS if (found := shutil.which(name))), None)
    return HostFacts(
        cgroup_version_2=cgroups.hierarchies().version_2_only,
        counts_swap=cgroups.counts_swap(cgroups.hierarchies()),
        may_raise_limits="CAP_SYS_RESOURCE" in held,
        capabilities=held,
        hard_limits=limits,
        oom_score=int(Path("/proc/self/oom_score_adj").read_text()),
        init_program=Path(init).resolve() if init is not None else None,
    )


def program(name: str) -> Path:
    """Where a program is installed; also looks where root's programs lie when PATH does not say so."""
    found = shutil.which(name) or shutil.which(
        name, path="/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
    )
    if found is None:
        raise missing_program(name)
    return Path(found)


def choose_runtime(wanted: str | None) -> Path:
    """The OCI runtime: the wanted one, else runc, else crun where it can work. Raises FailedPrecondition."""
    if wanted is not None:
        return Path(wanted) if "/" in wanted else program(wanted)
    try:
        return program("runc")
    except FailedPrecondition:
        host = cgroups.hierarchies()
        if host.controllers and host.unified is not None:
            raise FailedPrecondition(
                "runc is not installed, and crun does not work with this host's hybrid control groups; install runc"
            ) from None
        return program("crun")
