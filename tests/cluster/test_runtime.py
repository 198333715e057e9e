"""Containers with a real conmon and runc: their life, their limits, and what is left when something dies in between."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from swarm.errors import AlreadyExists, DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound

from agent.runtime import cgroups, logs, processes
from agent.runtime.interface import BindMount, ContainerPhase, ContainerSettings, Runtime, TmpfsMount
from agent.runtime.oci import MONITOR_LOST, OciRuntime

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("conmon") is None, reason="needs root, conmon and runc"),
]

APPLETS = "sh sleep echo cat ls id env mount hostname dd mkdir chown unshare true kill wc touch grep"
PASSWD = "root:x:0:0::/root:/bin/sh\nbob:x:1000:100::/home/bob:/bin/sh\n"
GROUP = "root:x:0:\nusers:x:100:\nextra:x:7:bob\nmore:x:8:\n"


@dataclass
class Bench:
    """One host's runtime, a network namespace, and root filesystems of busybox."""

    base: Path
    name: str
    runtime: OciRuntime = field(init=False)

    def __post_init__(self) -> None:
        self.runtime = self.restarted()

    def restarted(self) -> OciRuntime:
        """As an agent that starts again would have it."""
        return OciRuntime(self.base / "state", self.base / "run", f"/{self.name}")

    def settings(self, container_id: str, *arguments: str) -> ContainerSettings:
        root = self.base / "roots" / container_id
        for directory in ("bin", "etc", "tmp"):
            (root / directory).mkdir(parents=True)
        shutil.copy(shutil.which("busybox") or "/bin/busybox", root / "bin/busybox")
        for applet in APPLETS.split():
            (root / "bin" / applet).symlink_to("busybox")
        (root / "etc/passwd").write_text(PASSWD)
        (root / "etc/group").write_text(GROUP)
        return ContainerSettings(
            id=container_id,
            rootfs=root,
            arguments=arguments,
            environment=("GREETING=hello",),
            directory="/",
            user="",
            hostname=f"host-{container_id}",
            network_namespace=Path("/run/netns") / self.name,
            log_path=self.log(container_id),
        )

    def log(self, container_id: str) -> Path:
        return self.base / "state/containers" / container_id / "log"

    async def run(self, settings: ContainerSettings) -> int | None:
        """Creates and starts it."""
        await self.runtime.create(settings)
        return (await self.runtime.start(settings.id)).pid

    async def output(self, settings: ContainerSettings) -> tuple[int | None, list[str]]:
        """Runs it to its end; the exit code and what it wrote."""
        await self.run(settings)
        async with asyncio.timeout(60):
            ended = await self.runtime.wait(settings.id)
        lines = [line.line.decode() async for line in logs.read(settings.log_path)]
        await self.runtime.delete(settings.id)
        return ended.exit_code, lines

    def leftovers(self) -> list[str]:
        """Everything of this host in the kernel and in its directories, but logs."""
        groups = [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{self.name}/*/")]
        files = [
            str(path) for place in ("state", "run") for path in (self.base / place).rglob("*") if not path.is_dir()
        ]
        return groups + [path for path in files if not path.endswith("/log")] + self.processes()

    def processes(self) -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(self.base) in line:
                    found.append(line)
        return found

    def monitor_pid(self, container_id: str) -> int:
        return int((self.base / "run/containers" / container_id / "monitor.pid").read_text())


def call(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    name = f"swrt-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    found = Bench(Path("/tmp") / name, name)
    found.base.mkdir()
    call("ip", "netns", "add", name)
    try:
        yield found
    finally:
        for state in await found.runtime.containers():
            await found.runtime.delete(state.id)
        left = found.leftovers()
        call("ip", "netns", "del", name)
        for root in cgroups.hierarchies().roots:
            for group in (root / name / "monitors", root / name):
                with contextlib.suppress(FileNotFoundError):
                    group.rmdir()
        shutil.rmtree(found.base)
    assert left == [], "something stayed behind"


async def test_the_life_of_a_container(bench: Bench) -> None:
    runtime: Runtime = bench.runtime
    settings = bench.settings(
        "c", "sh", "-c", "trap 'exit 7' TERM; echo out; echo err >&2; while true; do sleep 0.1; done"
    )
    assert await runtime.state("c") is None
    await runtime.create(settings)
    created = await runtime.state("c")
    assert created is not None and created.phase is ContainerPhase.CREATED and created.pid > 0
    assert not settings.log_path.exists() or settings.log_path.read_text() == "", "nothing runs before start"
    with pytest.raises(AlreadyExists):
        await runtime.create(settings)
    started = await runtime.start("c")
    assert (started.phase, started.pid) == (ContainerPhase.RUNNING, created.pid)
    assert (await runtime.start("c")).pid == created.pid, "start is repeatable"
    waiting = asyncio.create_task(runtime.wait("c"))
    lines = logs.read(settings.log_path, follow=True)
    async with asyncio.timeout(30):
        assert {(line.stream, line.line) for line in [await anext(lines), await anext(lines)]} == {
            ("stdout", b"out"),
            ("stderr", b"err"),
        }
    used = await runtime.stats("c")
    assert used.pids >= 1 and used.memory_bytes > 0
    await runtime.signal("c", signal.SIGTERM)
    async with asyncio.timeout(30):
        ended = await waiting
    assert (ended.phase, ended.exit_code, ended.out_of_memory) == (ContainerPhase.EXITED, 7, False)
    assert await runtime.wait("c") == ended == await runtime.state("c")
    await runtime.signal("c", signal.SIGKILL)  # not an error
    with pytest.raises(FailedPrecondition):
        await runtime.start("c")
    with pytest.raises(FailedPrecondition):
        await runtime.exec("c", ("true",), timeout=5)
    await runtime.delete("c")
    await runtime.delete("c")
    assert await runtime.state("c") is None and await runtime.containers() == []
    assert settings.log_path.exists(), "the log belongs to the agent"
    for gone in (runtime.start("c"), runtime.wait("c"), runtime.stats("c"), runtime.signal("c", 15)):
        with pytest.raises(NotFound):
            await gone


async def test_what_a_container_sees(bench: Bench) -> None:
    (bench.base / "hosts").write_text("10.0.0.1 me\n")
    script = """
    id; hostname; env; cat /etc/hosts; echo x 2>/dev/null >/etc/hosts || echo hosts-read-only
    echo x 2>/dev/null >/proc/sys/kernel/hostname || echo proc-read-only
    mkdir /sys/fs/cgroup/x 2>/dev/null || echo cgroup-read-only
    wc -c </proc/keys; ls /sys/firmware | wc -l; ls /proc | grep -c '^[0-9]'
    grep -E 'CapEff|CapBnd|Seccomp:|NoNewPrivs' /proc/self/status
    unshare -m true 2>/dev/null || echo no-new-namespaces
    touch /scratch/a && mount | grep -c ' /scratch type tmpfs'
    echo null >/dev/null && touch /dev/shm/a && echo devices
    cat /proc/sys/net/ipv4/ip_unprivileged_port_start
    """
    settings = replace(
        bench.settings("c", "sh", "-c", script),
        user="bob",
        groups=("more",),
        mounts=(BindMount(bench.base / "hosts", "/etc/hosts", True), TmpfsMount("/scratch", 1 << 20)),
        sysctls={"net.ipv4.ip_unprivileged_port_start": "80"},
    )
    code, lines = await bench.output(settings)
    text = "\n".join(lines)
    assert code == 0, text
    assert lines[0] == "uid=1000(bob) gid=100(users) groups=7(extra),8(more)"
    assert lines[1] == "host-c"
    for expected in ("GREETING=hello", "HOME=/home/bob", "HOSTNAME=host-c", "10.0.0.1 me", "hosts-read-only"):
        assert expected in lines
    for expected in ("proc-read-only", "cgroup-read-only", "no-new-namespaces", "devices", "80"):
        assert expected in lines, text
    assert "Seccomp:\t2" in lines and "CapEff:\t0000000000000000" in lines and "CapBnd:\t00000000a80425fb" in lines


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"arguments": ("nothere",)}, NotFound, r'exec: "nothere": executable file not found in \$PATH$'),
        ({"user": "nobody-knows"}, InvalidArgument, "/etc/passwd"),
        ({"mounts": (BindMount(Path("/does/not/exist"), "/x"),)}, NotFound, "/does/not/exist"),
        ({"network_namespace": Path("/run/netns/does-not-exist")}, Exception, "does-not-exist"),
        ({"capabilities_add": ("FLY",)}, InvalidArgument, "FLY"),
    ],
)
async def test_what_cannot_be_created_says_why_and_leaves_nothing(
    bench: Bench, change: dict[str, object], error: type[Exception], sentence: str
) -> None:
    settings = replace(bench.settings("c", "sleep", "100"), **change)  # type: ignore[arg-type]
    with pytest.raises(error, match=sentence):
        await bench.runtime.create(settings)
    assert await bench.runtime.containers() == []
    assert bench.leftovers() == []


async def test_exit_codes_and_signals(bench: Bench) -> None:
    assert (await bench.output(bench.settings("a", "sh", "-c", "exit 42")))[0] == 42
    await bench.run(bench.settings("b", "sleep", "1000"))
    await bench.runtime.signal("b", signal.SIGKILL)
    async with asyncio.timeout(30):
        assert (await bench.runtime.wait("b")).exit_code == 128 + signal.SIGKILL


async def test_limits_are_enforced_and_running_out_of_memory_is_told(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    hungry = bench.settings("c", "sh", "-c", "dd if=/dev/zero of=/dev/null bs=200M count=1")
    await bench.run(replace(hungry, memory_bytes=16 << 20, nano_cpus=500_000_000, pids=20, cpu_shares_nano=10**9))
    async with asyncio.timeout(60):
        ended = await bench.runtime.wait("c")
    assert ended.exit_code == 137 and ended.out_of_memory
    assert "memory limit" in ended.reason
    assert (await bench.runtime.state("c")) == ended
    # conmon's note of it lies with the container, not where the agent was started
    assert list(Path.cwd().iterdir()) == []


async def test_rlimits_that_the_host_refuses_do_not_stop_a_container(bench: Bench) -> None:
    settings = replace(
        bench.settings("c", "sh", "-c", "ulimit -n; ulimit -c"), ulimits=(("nofile", 99, 1 << 40), ("core", 0, 0))
    )
    assert await bench.output(settings) == (0, ["99", "0"])


async def test_a_container_outlives_the_agent_that_started_it(bench: Bench) -> None:
    """A process of its own creates and starts the container and is killed; its successor waits for the end."""
    settings = bench.settings("c", "sh", "-c", "while [ ! -e /tmp/stop ]; do sleep 0.05; done; echo bye; exit 3")
    program = f"""
import asyncio, os, signal, sys
from pathlib import Path, PosixPath
from agent.runtime.interface import *
from agent.runtime.oci import OciRuntime
async def main():
    runtime = OciRuntime(Path({str(bench.base / "state")!r}), Path({str(bench.base / "run")!r}), {bench.name!r})
    await runtime.create({settings!r})
    await runtime.start("c")
    os.killpg(0, signal.SIGKILL)
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, start_new_session=True, cwd=Path(__file__).parents[2]
    )
    async with asyncio.timeout(60):
        assert await process.wait() == -signal.SIGKILL
    runtime = bench.restarted()
    (found,) = await runtime.containers()
    assert (found.id, found.phase) == ("c", ContainerPhase.RUNNING)
    waiting = asyncio.create_task(runtime.wait("c"))
    assert (await runtime.exec("c", ("touch", "/tmp/stop"), timeout=30)).exit_code == 0
    async with asyncio.timeout(30):
        assert (await waiting).exit_code == 3
    assert await logs.last_line(settings.log_path) == "bye"


async def test_a_killed_monitor_takes_its_container_with_it_and_says_so(bench: Bench) -> None:
    pid = await bench.run(bench.settings("c", "sleep", "1000"))
    waiting = asyncio.create_task(bench.runtime.wait("c"))
    await asyncio.sleep(0)
    os.kill(bench.monitor_pid("c"), signal.SIGKILL)
    async with asyncio.timeout(30):
        ended = await waiting
    assert (ended.exit_code, ended.reason) == (137, MONITOR_LOST)
    assert not Path(f"/proc/{pid}/root/bin").exists()
    assert await bench.restarted().state("c") == ended


async def test_after_a_restart_of_the_host_containers_have_ended(bench: Bench) -> None:
    await bench.run(bench.settings("c", "sleep", "1000"))
    os.kill(bench.monitor_pid("c"), signal.SIGSTOP)  # so that it writes down nothing
    await bench.runtime.signal("c", signal.SIGKILL)
    os.kill(bench.monitor_pid("c"), signal.SIGKILL)
    shutil.rmtree(bench.base / "run")
    async with asyncio.timeout(30):
        ended = await bench.restarted().wait("c")
    assert (ended.phase, ended.exit_code, ended.reason) == (ContainerPhase.EXITED, 137, MONITOR_LOST)


async def test_a_pid_of_somebody_else_is_not_touched(bench: Bench) -> None:
    await bench.run(bench.settings("c", "true"))
    await bench.runtime.wait("c")
    bystander = await asyncio.create_subprocess_exec("sleep", "1000")
    try:
        for name in ("pid", "monitor.pid"):
            (bench.base / "run/containers/c" / name).write_text(str(bystander.pid))
        await bench.runtime.signal("c", signal.SIGKILL)
        await bench.runtime.delete("c")
        assert bystander.returncode is None and Path(f"/proc/{bystander.pid}/exe").exists()
    finally:
        bystander.kill()
        await bystander.wait()


async def test_an_interrupted_creation_leaves_nothing(bench: Bench) -> None:
    for number in range(8):
        creating = asyncio.create_task(bench.runtime.create(bench.settings(f"c{number}", "sleep", "1000")))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.004 * number):
                await asyncio.shield(creating)
        creating.cancel()
        await asyncio.gather(creating, return_exceptions=True)
        await bench.runtime.delete(f"c{number}")
    assert bench.leftovers() == []


async def test_exec_is_bounded_in_time_and_output(bench: Bench) -> None:
    await bench.run(replace(bench.settings("c", "sleep", "1000"), user="bob"))
    result = await bench.runtime.exec("c", ("sh", "-c", "id -u; echo $GREETING; echo problem >&2; exit 3"), timeout=30)
    assert result.exit_code == 3
    assert sorted(result.output.split()) == [b"1000", b"hello", b"problem"], "the two streams are joined in any order"
    flood = await bench.runtime.exec(
        "c", ("sh", "-c", "dd if=/dev/zero bs=1M count=2 2>/dev/null; echo; echo end"), timeout=30
    )
    assert len(flood.output) == 64 * 1024 and flood.output.endswith(b"end\n")
    with pytest.raises(NotFound, match="nothere"):
        await bench.runtime.exec("c", ("nothere",), timeout=30)
    with pytest.raises(DeadlineExceeded, match=r"sleep 555.*killed"):
        await bench.runtime.exec("c", ("sh", "-c", "sleep 555; true"), timeout=0.5)
    inside = await bench.runtime.exec("c", ("sh", "-c", "cat /proc/[0-9]*/cmdline"), timeout=30)
    assert b"555" not in inside.output.replace(b"cat", b"")


async def test_an_init_reaps_and_forwards(bench: Bench) -> None:
    if not any(shutil.which(name) for name in ("docker-init", "tini-static", "catatonit")):
        pytest.skip("this host has no init program")
    settings = bench.settings("c", "sh", "-c", "cat /proc/1/comm; exec sleep 1000")
    await bench.run(replace(settings, init=True))
    waiting = asyncio.create_task(bench.runtime.wait("c"))
    line = await anext(logs.read(settings.log_path, follow=True))
    assert line.line not in (b"sh", b"sleep")
    await bench.runtime.signal("c", signal.SIGTERM)
    async with asyncio.timeout(30):
        assert (await waiting).exit_code == 128 + signal.SIGTERM


async def test_a_terminal_is_one(bench: Bench) -> None:
    settings = replace(bench.settings("c", "sh", "-c", "[ -t 0 ] && [ -t 1 ] && echo $TERM"), terminal=True)
    assert await bench.output(settings) == (0, ["xterm\r"])


async def test_a_read_only_root_can_be_written_nowhere(bench: Bench) -> None:
    settings = replace(bench.settings("c", "sh", "-c", "touch /x 2>&1 || touch /dev/shm/x"), read_only=True)
    code, lines = await bench.output(settings)
    assert code == 0 and "Read-only file system" in lines[0]


async def test_six_at_once_and_their_removal(bench: Bench) -> None:
    many = [bench.settings(f"c{number}", "sleep", "1000") for number in range(6)]
    await asyncio.gather(*(bench.run(settings) for settings in many))
    states = await bench.restarted().containers()
    assert [(state.id, state.phase) for state in states] == [(f"c{n}", ContainerPhase.RUNNING) for n in range(6)]
    await asyncio.gather(*(bench.runtime.delete(settings.id) for settings in many))
    assert bench.leftovers() == []


async def test_nothing_stays_when_the_last_container_is_gone_and_the_node_leaves(bench: Bench) -> None:
    await bench.run(bench.settings("c", "/bin/sleep", "1000"))
    await bench.runtime.delete("c")
    await bench.runtime.clear()
    assert not list(Path("/sys/fs/cgroup").glob(f"**/{bench.name}"))
    assert not list((bench.base / "run").iterdir())
    await bench.runtime.clear()


def version_2() -> Path | None:
    return cgroups.hierarchies().unified


@pytest.mark.skipif(version_2() is None, reason="no version 2 of control groups is mounted")
async def test_groups_of_version_2(bench: Bench) -> None:
    """The kernel's own version 2, alone: what this module asks of a host that has no other."""
    root = version_2()
    assert root is not None
    host = cgroups.Hierarchies(unified=root)
    inner = root / bench.name / "c" / "inner"
    inner.mkdir(parents=True)
    program = await asyncio.create_subprocess_exec("sleep", "1000")
    watched = await asyncio.create_subprocess_exec("sleep", "1000")
    try:
        (inner / "cgroup.procs").write_text(str(program.pid))
        monitors = cgroups.monitor_groups(host, f"/{bench.name}", "0::/system.slice/swarmd.service")
        assert monitors == [root / bench.name / cgroups.MONITORS]
        monitors[0].mkdir()
        (monitors[0] / "cgroup.procs").write_text(str(watched.pid))
        assert processes.in_group(program.pid, f"/{bench.name}/c")
        assert not processes.in_group(watched.pid, f"/{bench.name}/c")
        assert cgroups.processes(host, f"/{bench.name}", "c") == {program.pid}
        used = cgroups.usage(host, f"/{bench.name}", "c")
        assert used is not None and used.cpu_seconds >= 0
        assert not cgroups.remove(host, f"/{bench.name}", "c") and not cgroups.remove_parent(host, f"/{bench.name}")
        cgroups.kill(host, f"/{bench.name}", "c")
        assert await program.wait() == -signal.SIGKILL
        assert watched.returncode is None, "the monitor is no process of the container"
        assert "populated 0" in (root / bench.name / "c" / "cgroup.events").read_text()
        assert cgroups.remove(host, f"/{bench.name}", "c")
    finally:
        for process in (program, watched):
            if process.returncode is None:
                process.kill()
                await process.wait()
        cgroups.remove(host, f"/{bench.name}", "c")
        assert cgroups.remove_parent(host, f"/{bench.name}")
