"""Control groups in the three layouts, on directories that look like the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.runtime import cgroups, host, processes
from agent.runtime.cgroups import Hierarchies, parse_mounts

VERSION_1 = """\
30 23 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/systemd rw,nosuid - cgroup cgroup rw,xattr,name=systemd
35 30 0:31 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:15 - cgroup cgroup rw,cpu,cpuacct
36 30 0:32 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
90 36 0:32 /x /srv/root/sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
"""
VERSION_2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
ROOT = Path("/sys/fs/cgroup")


def test_layouts() -> None:
    hybrid = parse_mounts(VERSION_1)
    assert hybrid.roots == (ROOT / "systemd", ROOT / "cpu,cpuacct", ROOT / "memory", ROOT / "unified")
    assert hybrid.controller("cpuacct") == ROOT / "cpu,cpuacct" and hybrid.controller("pids") is None
    unified = parse_mounts(VERSION_2)
    assert unified.version_2_only and unified.roots == (ROOT,) and unified.controller("memory") == ROOT


def test_usage_of_version_2(tmp_path: Path) -> None:
    group = tmp_path / "swarm/abc"
    group.mkdir(parents=True)
    (group / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
    (group / "memory.current").write_text("5000\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 2000\n")
    (group / "pids.current").write_text("3\n")
    (group / "memory.events").write_text("low 0\noom 1\noom_kill 1\n")
    found = Hierarchies(unified=tmp_path)
    assert cgroups.usage(found, "/swarm", "abc") == cgroups.Usage(2.5, 3000, 3)
    assert cgroups.killed_for_memory(found, "/swarm", "abc")
    assert cgroups.usage(found, "/swarm", "other") is None
    assert not cgroups.killed_for_memory(found, "/swarm", "other")


@pytest.mark.parametrize(
    ("mounts", "own", "expected"),
    [
        (VERSION_2, "0::/system.slice/swarmd.service\n", [ROOT / "swarm/monitors"]),
        (VERSION_2, "0::/\n", []),
        (
            VERSION_1,
            "4:memory:/a\n1:name=systemd:/system.slice/swarmd.service\n0::/system.slice/swarmd.service\n",
            [ROOT / "unified/swarm/monitors", ROOT / "systemd/swarm/monitors"],
        ),
        (VERSION_1, "4:memory:/a\n1:name=systemd:/\n0::/\n", []),
    ],
)
def test_monitors_leave_the_group_that_the_init_system_would_end(mounts: str, own: str, expected: list[Path]) -> None:
    assert cgroups.monitor_groups(parse_mounts(mounts), "/swarm", own) == expected


def tree(root: Path, *groups: str) -> None:
    for group in groups:
        (root / group).mkdir(parents=True, exist_ok=True)


def test_killing_takes_the_kernels_one_step_where_version_2_has_it(tmp_path: Path) -> None:
    tree(tmp_path, "swarm/abc")
    (tmp_path / "swarm/abc/cgroup.kill").write_text("")
    (tmp_path / "swarm/abc/cgroup.procs").write_text("")
    cgroups.kill(Hierarchies(unified=tmp_path), "/swarm", "abc")
    assert (tmp_path / "swarm/abc/cgroup.kill").read_text() == "1"
    cgroups.kill(Hierarchies(unified=tmp_path), "/swarm", "gone")


def test_killing_never_means_ourselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """swarmd ran in a process namespace of its own, and somebody outside of it had entered a container: the kernel lists that
    process as 0, and the container's removal would have killed swarmd with all of its process group."""
    killed: list[int] = []
    monkeypatch.setattr("os.kill", lambda pid, _: killed.append(pid))
    tree(tmp_path, "swarm/abc")
    (tmp_path / "swarm/abc/cgroup.procs").write_text("0\n17\n")
    cgroups.kill(Hierarchies(unified=tmp_path), "/swarm", "abc")
    assert killed == [17]


def test_groups_that_go_while_they_are_listed_are_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container with control groups of its own ended while it was removed: its creation failed "unexpectedly", or it was
    removed only after a pause."""
    tree(tmp_path, "swarm/abc/inner")

    def gone(*_: object) -> list[Path]:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "rglob", gone)
    assert cgroups.processes(Hierarchies(unified=tmp_path), "/swarm", "abc") == set()


def test_the_parent_goes_with_its_monitors_in_every_hierarchy_and_what_others_made_stays(tmp_path: Path) -> None:
    memory, unified = tmp_path / "memory", tmp_path / "unified"
    tree(tmp_path, "memory/lab/m1", "unified/lab/m1/monitors")
    host = Hierarchies((("memory", memory),), unified)
    assert cgroups.remove_parent(host, "/lab/m1") and cgroups.remove_parent(host, "/lab/m1")
    assert (memory / "lab").is_dir() and not (memory / "lab/m1").exists() and not (unified / "lab/m1").exists()
    tree(tmp_path, "memory/lab/m1/theirs")
    assert not cgroups.remove_parent(host, "/lab/m1")
    assert (memory / "lab/m1/theirs").is_dir()
    assert cgroups.remove_parent(host, "/") and memory.is_dir(), "the root group is nobody's to remove"


@pytest.mark.parametrize(
    ("files", "version_2", "counted"),
    [
        (["memory.memsw.limit_in_bytes"], False, True),
        (["memory.limit_in_bytes"], False, False),
        (["system.slice/memory.swap.max"], True, True),
        (["system.slice/memory.max"], True, False),
    ],
)
def test_whether_swap_is_counted(tmp_path: Path, files: list[str], version_2: bool, counted: bool) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    host = Hierarchies(unified=tmp_path) if version_2 else Hierarchies((("memory", tmp_path),))
    assert cgroups.counts_swap(host) is counted


def test_capabilities_are_read_from_the_kernels_bits() -> None:
    assert host.capabilities("Name:\tx\nCapPrm:\t0000000000000401\n") == {"CAP_CHOWN", "CAP_NET_BIND_SERVICE"}
    assert host.capabilities("") == frozenset()


def test_a_pid_file_that_is_no_longer_true_finds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    assert processes.read_pid(path) == 0
    path.write_text("1\n")
    assert processes.find(processes.read_pid(path), lambda _: False) is None
    path.write_text("garbage")
    assert processes.find(processes.read_pid(path), lambda _: True) is None
