"""The node's own files, options, children, and when a manager may leave."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from swarm.errors import FailedPrecondition, InternalError, InvalidArgument, NodeRemoved, ResourceExhausted
from swarm.retry import Backoff
from swarm.v1 import types_pb2 as types
from swarm.version import VERSION

from agent.node import children, description, manager_process
from agent.node.leaving import refusal
from agent.node.manager_process import ManagerProcess, RunningProcess
from agent.node.member import Member
from agent.node.membership import advertised_address, moved
from agent.node.options import Options, parse
from agent.node.record import NodeFile, NodeRecord
from agent.tasks.events import Report
from agent.tasks.records import TaskRecord, TaskRecords, next_status
from agent.tasks.settings import HealthCheck
from tests.unit.agent.manager_program import LOCKED_MANAGER

RECORD = NodeRecord("n1", "c1", "10.0.0.1", managers=("10.0.0.1:2378",))


# ------------------------------------------------------------------------------------------------------------ options


def test_options_have_the_documented_defaults() -> None:
    options = parse([])
    assert str(options.state), str(options.run) == ("/var/lib/swarm", "/run/swarm")
    assert options.metrics == "127.0.0.1:9324"
    assert options.hostname


def test_options_of_a_lab_host() -> None:
    options = parse(
        ["--state-dir", "/s", "--run-dir", "/r", "--hostname", "m1", "--metrics", "off", "--labels", "zone=a,disk=ssd"]
    )
    assert (options.node_socket, options.metrics, options.hostname) == (Path("/r/swarmd.sock"), "", "m1")
    assert options.labels == {"zone": "a", "disk": "ssd"}


@pytest.mark.parametrize("words", [["--metrics", "9324"], ["--labels", "zone"], ["--log-level", "loud"]])
def test_options_that_make_no_sense_end_with_usage(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(words)
    assert ended.value.code == 2


# ------------------------------------------------------------------------------------------------------------- files


def test_the_node_file_gives_back_what_was_written(tmp_path: Path) -> None:
    file = NodeFile(tmp_path)
    assert file.load() is None
    file.write(RECORD)
    assert file.load() == RECORD
    file.remove()
    assert file.load() is None


def test_a_damaged_node_file_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "node.json").write_text('{"schema": 99}')
    with pytest.raises(FailedPrecondition, match=r"node\.json"):
        NodeFile(tmp_path).load()


def test_a_node_does_not_forget_its_managers() -> None:
    assert RECORD.with_settings(4, (), "").managers == RECORD.managers
    assert RECORD.with_settings(4, ("a:1", "b:1"), "reg").managers == ("a:1", "b:1")
    assert RECORD.with_settings(0, (), "").number == RECORD.number


def test_a_task_record_gives_back_what_was_written(tmp_path: Path) -> None:
    records = TaskRecords(tmp_path / "tasks")
    status = next_status(types.TaskStatus(), Report(types.TASK_STATE_RUNNING, "running", pid=7), 1000.5, "t1")
    record = TaskRecord("t1", status, 3, HealthCheck(("check", "it"), retries=5))
    records.write(record)
    records.write(replace(record, stop_signal=9))
    assert records.load() == {"t1": replace(record, stop_signal=9)}
    records.remove("t1")
    assert records.load() == {}


def test_a_record_is_not_left_out_for_lack_of_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """swarmd was started on a host that was short of memory for a moment: it took tasks that ran for new ones, ended their
    containers, and started them once more."""
    records = TaskRecords(tmp_path)
    status = next_status(types.TaskStatus(), Report(types.TASK_STATE_RUNNING, "running", pid=7), 1000.5, "t1")
    records.write(TaskRecord("t1", status))

    def refused(_: Path) -> bytes:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as short, pytest.raises(OSError, match="memory"):
        short.setattr(Path, "read_bytes", refused)
        records.load()
    assert list(records.load()) == ["t1"]


def test_a_shorter_record_after_a_longer_one_is_read_alone(tmp_path: Path) -> None:
    records = TaskRecords(tmp_path)
    for message in ("a long message" * 20, "short"):
        status = next_status(types.TaskStatus(), Report(types.TASK_STATE_PREPARING, message), 1.0, "t1")
        records.write(TaskRecord("t1", status))
    with (tmp_path / "t1").open("a") as stream:  # killed before it could cut the rest off
        stream.write('sage"}')
    assert records.load()["t1"].status.message == "short"


def test_a_half_written_record_is_cleared_away(tmp_path: Path) -> None:
    records = TaskRecords(tmp_path)
    (tmp_path / ".t1.new").write_text("{")
    assert records.load() == {}
    assert list(tmp_path.iterdir()) == []


def test_a_status_keeps_what_a_report_does_not_mention() -> None:
    status = next_status(types.TaskStatus(), Report(types.TASK_STATE_READY, image_digest="sha256:d"), 1.0, "t1")
    status = next_status(status, Report(types.TASK_STATE_RUNNING, pid=7), 2.0, "t1")
    status = next_status(status, Report(types.TASK_STATE_RUNNING, health=types.HEALTH_STATE_HEALTHY), 3.0, "t1")
    assert status.running_since.seconds == 2
    assert (status.container.image_digest, status.container.pid) == ("sha256:d", 7)
    status = next_status(status, Report(types.TASK_STATE_FAILED, error="exit code 3", exit_code=3), 4.0, "t1")
    assert (status.container.pid, status.container.exit_code, status.error) == (0, 3, "exit code 3")


# ---------------------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize("address", ["0.0.0.0", "nonsense.example", "224.0.0.1"])
def test_an_address_that_others_cannot_reach_is_refused(address: str) -> None:
    with pytest.raises(InvalidArgument):
        description.advertised(address)


def test_an_interface_stands_for_its_address() -> None:
    assert description.advertised("lo") == "127.0.0.1"


def test_an_address_of_another_host_is_refused() -> None:
    description.check_own("127.0.0.1")
    with pytest.raises(InvalidArgument, match="not an address of this host"):
        description.check_own("192.0.2.1")


def test_a_node_listens_at_its_own_addresses_only() -> None:
    for own in ("", "0.0.0.0", "127.0.0.1"):
        description.check_listening(own)
    with pytest.raises(InvalidArgument, match=r"192.0.2.1, is not an address of this host .*--listen-addr"):
        description.check_listening("192.0.2.1")
    for no_address in ("lo", "127.0.0.1:2377"):
        with pytest.raises(InvalidArgument, match="is not an IP address"):
            description.check_listening(no_address)


def test_addresses_with_ports() -> None:
    assert description.split_advertised("10.0.0.1:2377") == ("10.0.0.1", 2377)
    assert description.split_advertised("fe80::1") == ("fe80::1", None)
    with pytest.raises(InvalidArgument):
        description.split_advertised("10.0.0.1:http")


def test_another_port_than_that_of_managers_is_not_advertised() -> None:
    """`swarm join --advertise-addr 10.0.0.1:9999` took the port and did nothing with it: the next manager could not be joined
    there."""
    for text in ("127.0.0.1", "127.0.0.1:2377"):
        assert advertised_address(text) == "127.0.0.1"
    with pytest.raises(InvalidArgument, match="port 2377"):
        advertised_address("127.0.0.1:9999")


def test_a_node_describes_its_host() -> None:
    found = description.describe("h1", "10.0.0.1", 7946, {"zone": "a"})
    assert found.resources.nano_cpus >= 10**9 and found.resources.memory_bytes > 1 << 20
    assert (found.os, found.hostname, found.engine_labels["zone"]) == ("linux", "h1", "a")


# ----------------------------------------------------------------------------------------------------------- leaving


@pytest.mark.parametrize(
    ("managers", "others", "refused"),
    [(1, 0, True), (2, 1, False), (2, 0, True), (3, 2, False), (3, 1, True), (5, 3, False), (5, 2, True)],
)
def test_a_manager_may_leave_where_the_others_can_go_on(managers: int, others: int, refused: bool) -> None:
    assert bool(refusal(managers, others)) is refused


def test_a_refusal_says_the_numbers() -> None:
    assert "one of 3 managers, of the other 2 only 1 can be reached, and 2 of them are needed" in refusal(3, 1)


# ----------------------------------------------------------------------------------------------------------- children


def test_a_state_directory_is_its_owners_alone_also_where_it_was_open(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with children.lock_state(tmp_path):
        assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_a_state_directory_has_one_daemon(tmp_path: Path) -> None:
    with children.lock_state(tmp_path), pytest.raises(FailedPrecondition, match=f"process {os.getpid()}"):
        children.lock_state(tmp_path)
    children.lock_state(tmp_path).close()


def test_only_zombies_that_nobody_waits_for_are_reaped() -> None:
    with subprocess.Popen(["true"]) as child:
        reaper = children.OrphanReaper()
        while not children._is_zombie(child.pid):
            pass
        assert child.pid not in reaper.sweep(0.0)
        assert child.pid not in reaper.sweep(children.REAP_AFTER - 1)
        assert child.pid in reaper.sweep(children.REAP_AFTER + 1)
        assert not children._is_zombie(child.pid)
        child.returncode = 0


# ------------------------------------------------------------------------------------------------------ manager process


class Managed:
    def __init__(self, tmp_path: Path, script: str) -> None:
        self.options = Options(state=tmp_path / "state", run=tmp_path / "run")
        self.options.run.mkdir()
        program = (sys.executable, "-c", script, str(self.options.run / manager_process.PID_FILE))
        self.make = lambda: ManagerProcess(self.options, lambda: [], random.Random(1), program=program)


async def test_the_manager_is_watched_restarted_adopted_and_stopped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    managed = Managed(tmp_path, LOCKED_MANAGER)
    first = managed.make()
    running = asyncio.create_task(first.run())
    async with asyncio.timeout(30):
        await first.ready.wait()
        before = first.pid
        os.kill(before, 9)
        while first.pid in (0, before) or not first.ready.is_set():  # noqa: ASYNC110 – bounded; nothing tells
            await asyncio.sleep(0.02)
    assert "killed by SIGKILL" in caplog.text
    survivor = first.pid
    running.cancel()  # the daemon ends
    await asyncio.gather(running, return_exceptions=True)
    assert RunningProcess.of(survivor) is not None
    second = managed.make()
    running = asyncio.create_task(second.run())
    async with asyncio.timeout(30):
        await second.ready.wait()
        assert second.pid == survivor
        await second.stop()
        await running
    assert RunningProcess.of(survivor) is None


async def test_a_manager_that_cannot_start_says_why(tmp_path: Path) -> None:
    managed = Managed(tmp_path, "import sys; sys.exit('error: the port 2378 is taken')")
    manager = managed.make()
    with pytest.raises(InternalError, match="the port 2378 is taken"):
        await manager._start()


def test_a_node_that_moves_keeps_its_identity_and_knows_itself_at_the_new_address() -> None:
    record = replace(RECORD, listen_address="10.0.0.1", managers=("10.0.0.1:2378", "10.0.0.2:2378"))
    after = moved(record, "10.0.0.9")
    assert (after.node_id, after.cluster_id) == (record.node_id, record.cluster_id)
    assert (after.address, after.listen_address) == ("10.0.0.9", "10.0.0.9")
    assert after.managers == ("10.0.0.9:2378", "10.0.0.2:2378")
    assert moved(RECORD, "10.0.0.9").listen_address == RECORD.listen_address


def test_swarmd_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"swarmd version {VERSION}\n"


async def test_a_node_that_starts_on_a_full_disk_waits_for_room(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class FullAtFirst(NodeFile):
        attempts = 0

        def write(self, record: NodeRecord) -> None:
            self.attempts += 1
            if self.attempts < 3:
                raise ResourceExhausted("node.json cannot be written")
            super().write(record)

    monkeypatch.setattr("agent.node.member._BACKOFF", Backoff(first=0.001, maximum=0.001))
    file, record = FullAtFirst(tmp_path), NodeRecord("n1", "c1", "10.0.0.1")
    member: Any = SimpleNamespace(_parts=SimpleNamespace(rng=random.Random(1)), _file=file, record=record, problem="")
    await Member._write_boot(member)
    assert (file.attempts, member.problem) == (3, "")
    assert NodeFile(tmp_path).load() == record


async def test_a_certificate_that_one_manager_refused_to_renew_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A manager that had just come back did not know the node yet: its certificate was not renewed any more, and the node took
    no other role, until swarmd was restarted."""
    monkeypatch.setattr("agent.node.member._RENEWAL_BACKOFF", Backoff(first=0.001, maximum=0.001))
    asked, said = asyncio.Event(), ["run"]

    async def run() -> None:
        if asked.is_set():
            said.append("run")
            await asyncio.Event().wait()
        raise NodeRemoved("'n1' is not, or no longer, a member of this swarm")

    member: Any = SimpleNamespace(
        _parts=SimpleNamespace(rng=random.Random(1)), renewal=SimpleNamespace(run=run, request=asked.set), problem=""
    )
    keeping = asyncio.create_task(Member._keep_certificate(member))
    await asyncio.wait({keeping}, timeout=0.2)
    assert said == ["run", "run"] and not keeping.done()
    keeping.cancel()
