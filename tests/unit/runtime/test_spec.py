"""The OCI specification: Docker's defaults, what the settings change, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from swarm.errors import InvalidArgument

from agent.runtime import seccomp
from agent.runtime.interface import BindMount, ContainerSettings, TmpfsMount
from agent.runtime.spec import ALL_CAPABILITIES, DEFAULT_CAPABILITIES, HostFacts, specification
from agent.runtime.users import Identity

SETTINGS = ContainerSettings(
    id="abc",
    rootfs=Path("/rootfs"),
    arguments=("web", "--port", "80"),
    environment=("A=b", "HOME=/mine"),
    directory="",
    user="",
    hostname="web-1",
    network_namespace=Path("/run/netns/abc"),
    log_path=Path("/log"),
)
HOST = HostFacts(cgroup_version_2=False, may_raise_limits=True, capabilities=frozenset(ALL_CAPABILITIES))
ROOT = Identity(0, 0, (), "/root")


def document(host: HostFacts = HOST, **changes: Any) -> dict[str, Any]:
    return specification(replace(SETTINGS, **changes), ROOT, host, "/swarm/abc").document


def capabilities(**changes: Any) -> set[str]:
    return set(document(**changes)["process"]["capabilities"]["bounding"])


def test_the_defaults_are_dockers() -> None:
    found = document()
    process, linux = found["process"], found["linux"]
    assert process["args"] == ["web", "--port", "80"] and process["cwd"] == "/"
    assert process["env"][-2:] == ["A=b", "HOME=/mine"] and not any(pair == "HOME=/root" for pair in process["env"])
    assert len(DEFAULT_CAPABILITIES) == 14 and capabilities() == set(DEFAULT_CAPABILITIES)
    assert "inheritable" not in process["capabilities"] and "ambient" not in process["capabilities"]
    assert {"type": "network", "path": "/run/netns/abc"} in linux["namespaces"]
    assert {space["type"] for space in linux["namespaces"]} == {"pid", "ipc", "uts", "mount", "network"}
    assert "/proc/kcore" in linux["maskedPaths"] and "/proc/sys" in linux["readonlyPaths"]
    assert linux["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
    assert linux["resources"].keys() == {"devices"} and linux["cgroupsPath"] == "/swarm/abc"


def test_labels_of_people_are_no_orders_to_the_runtime() -> None:
    found = document(labels={"run.oci.hooks.stderr": "/etc/passwd", "org.systemd.property.X": "1", "swarm.task": "t"})
    assert found["annotations"] == {"swarm.task": "t"}


def test_version_2_has_a_namespace_for_control_groups() -> None:
    assert {"type": "cgroup"} in document(replace(HOST, cgroup_version_2=True))["linux"]["namespaces"]


def test_swap_is_limited_with_memory_where_the_kernel_counts_it() -> None:
    counting = replace(HOST, counts_swap=True)
    assert document(counting, memory_bytes=64 << 20)["linux"]["resources"]["memory"] == {
        "limit": 64 << 20,
        "swap": 128 << 20,
    }
    assert "memory" not in document(counting)["linux"]["resources"]


def test_limits() -> None:
    resources = document(nano_cpus=1_500_000_000, cpu_shares_nano=500_000_000, memory_bytes=64 << 20, pids=9)["linux"][
        "resources"
    ]
    assert resources["cpu"] == {"period": 100_000, "quota": 150_000, "shares": 512}
    assert resources["memory"] == {"limit": 64 << 20} and resources["pids"] == {"limit": 9}
    assert document(nano_cpus=1)["linux"]["resources"]["cpu"]["quota"] == 1000


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"capabilities_add": ("NET_ADMIN", "cap_sys_time")}, {*DEFAULT_CAPABILITIES, "CAP_NET_ADMIN", "CAP_SYS_TIME"}),
        ({"capabilities_drop": ("chown",)}, set(DEFAULT_CAPABILITIES) - {"CAP_CHOWN"}),
        ({"capabilities_drop": ("ALL",)}, set()),
        ({"capabilities_drop": ("ALL",), "capabilities_add": ("KILL",)}, {"CAP_KILL"}),
        ({"capabilities_add": ("ALL",), "capabilities_drop": ("KILL",)}, set(ALL_CAPABILITIES) - {"CAP_KILL"}),
    ],
)
def test_capabilities(changes: dict[str, Any], expected: set[str]) -> None:
    assert capabilities(**changes) == expected


def test_what_the_host_cannot_give_is_left_out_with_a_warning() -> None:
    host = replace(
        HOST,
        may_raise_limits=False,
        capabilities=frozenset(DEFAULT_CAPABILITIES),
        hard_limits={"nofile": 1000},
        oom_score=300,
    )
    settings = replace(SETTINGS, capabilities_add=("SYS_ADMIN",), ulimits=(("nofile", 900, 5000), ("core", -1, -1)))
    found = specification(settings, ROOT, host, "/x")
    assert found.document["process"]["rlimits"] == [
        {"type": "RLIMIT_NOFILE", "soft": 900, "hard": 1000},
        {"type": "RLIMIT_CORE", "soft": 2**64 - 1, "hard": 2**64 - 1},
    ]
    assert found.document["process"]["oomScoreAdj"] == 300
    assert len(found.warnings) == 2 and "CAP_SYS_ADMIN" in found.warnings[0] and "nofile" in found.warnings[1]


def test_mounts_of_people_replace_ours_and_come_last() -> None:
    mounts = document(
        mounts=(BindMount(Path("/host"), "/data/", True), TmpfsMount("/dev/shm", 1 << 20)), read_only=True
    )["mounts"]
    assert [mount["destination"] for mount in mounts][-2:] == ["/data", "/dev/shm"]
    assert "ro" in mounts[-2]["options"] and "size=1048576" in mounts[-1]["options"]
    assert sum(mount["destination"] == "/dev/shm" for mount in mounts) == 1


def test_an_init_is_the_first_process() -> None:
    found = document(replace(HOST, init_program=Path("/usr/bin/tini-static")), init=True)
    assert found["process"]["args"] == ["/sbin/docker-init", "--", "web", "--port", "80"]
    assert found["mounts"][-1]["source"] == "/usr/bin/tini-static"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"arguments": ()}, "names a command"),
        ({"init": True}, "install the package tini"),
        ({"capabilities_add": ("FLY",)}, "FLY"),
        ({"ulimits": (("files", 1, 1),)}, "not a resource limit"),
        ({"ulimits": (("nofile", 2, 1),)}, "above the hard limit"),
        ({"memory_bytes": 1000}, "6 MiB"),
        ({"sysctls": {"kernel.panic": "1"}}, "would change the host"),
        ({"mounts": (TmpfsMount("/"),)}, "not a path below /"),
        ({"mounts": (TmpfsMount("/a/../b"),)}, "not a path below /"),
        ({"mounts": (TmpfsMount("data"),)}, "not a path below /"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidArgument, match=sentence):
        document(**changes)


def rules(*names: str, machine: str = "x86_64") -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for rule in seccomp.profile(names, machine)["syscalls"]:
        for name in rule["names"]:
            found.setdefault(name, []).append(rule)
    return found


def test_system_calls_are_allowed_by_capability() -> None:
    plain, administrator = rules(), rules("CAP_SYS_ADMIN")
    for name in ("mount", "bpf", "unshare", "setns", "reboot", "keyctl", "userfaultfd", "kexec_load", "init_module"):
        assert name not in plain
    assert "mount" in administrator and "reboot" not in administrator
    assert plain["clone3"][0]["errnoRet"] == 38 and administrator["clone3"][0]["action"] == "SCMP_ACT_ALLOW"
    (clone,) = plain["clone"]
    assert clone["args"][0]["op"] == "SCMP_CMP_MASKED_EQ" and "args" not in administrator["clone"][0]
    assert rules(machine="s390x")["clone"][0]["args"][0]["index"] == 1
    assert seccomp.profile((), "x86_64")["defaultErrnoRet"] == 1
    assert "architectures" not in seccomp.profile((), "unheard-of")
