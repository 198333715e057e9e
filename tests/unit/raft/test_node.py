"""Whole members over gRPC with mutual TLS, in one process."""

from __future__ import annotations

import asyncio
import socket

import grpc
import pytest
from swarm.channels import open_blocking_channel
from swarm.errors import (
    FailedPrecondition,
    HistoryCut,
    InternalError,
    InvalidArgument,
    NotLeader,
    OutcomeUnknown,
    PermissionDenied,
    SwarmError,
    Unavailable,
    from_rpc,
)
from swarm.identity import Peer
from swarm.v1 import raft_pb2 as pb
from swarm.v1 import raft_pb2_grpc as rpc
from swarm.v1.types_pb2 import NODE_ROLE_WORKER

from orchestrator.consensus import Leadership, Member
from orchestrator.raft.admission import leave_cluster
from orchestrator.raft.config import MAX_COMMAND_BYTES, CompactionPolicy
from orchestrator.raft.disk import DiskFull
from tests.unit.raft.conftest import Lab, Manager, until


async def write(manager: Manager, command: bytes) -> bytes:
    return (await manager.node.propose(command, timeout=10)).result


def test_the_library_leaves_the_systems_address_functions_alone() -> None:
    assert socket.inet_ntop(socket.AF_INET, b"\x7f\0\0\x01") == "127.0.0.1"


async def test_a_founder_leads_alone_at_once(lab: Lab) -> None:
    [only] = await lab.grow(1)
    assert await write(only, b"one") == b"1"
    assert await only.node.read_barrier(timeout=5) >= 3
    assert only.machine.commands == [b"one"]


async def test_one_grows_to_three_and_all_hold_everything(lab: Lab) -> None:
    [first] = await lab.grow(1)
    await write(first, b"before")
    second, third = Manager(lab, "second"), Manager(lab, "third")
    for new in (second, third):
        await new.start()
        await new.join(first)
        lab.managers.append(new)
    await write(first, b"after")
    await until(lambda: second.machine.commands == third.machine.commands == [b"before", b"after"])
    assert {member.node_id for member in third.node.members()} == {first.name, "second", "third"}
    assert [status.reachable for status in first.node.status().members] == [True] * 3


async def test_a_follower_refuses_and_says_who_leads(lab: Lab) -> None:
    first, second, _ = await lab.grow(3)
    await until(lambda: second.node.leadership().leader_id == first.name)
    with pytest.raises(Unavailable, match=f"manager {first.name} does; nothing was written"):
        await second.node.propose(b"x", timeout=5)
    with pytest.raises(Unavailable):
        await second.node.read_barrier(timeout=5)


async def test_everything_is_there_after_all_stopped(lab: Lab) -> None:
    lab.compaction = CompactionPolicy(entries=20, keep_entries=5)
    managers = await lab.grow(3)
    expected = [b"command %d" % number for number in range(50)]
    for command in expected:
        await write(managers[0], command)
    for manager in managers:
        await manager.stop()
    for manager in managers:
        await lab.restarted(manager)
    await until(lambda: lab.leader() is not None)
    leader = lab.leader()
    assert leader is not None
    await write(leader, b"last")
    await until(lambda: all(manager.machine.commands == [*expected, b"last"] for manager in lab.managers))


async def test_who_was_away_long_gets_a_snapshot(lab: Lab) -> None:
    lab.compaction = CompactionPolicy(entries=20, keep_entries=2)
    first, _, third = await lab.grow(3)
    await third.stop()
    for number in range(80):
        await write(first, b"%d" % number)
    again = await lab.restarted(third)
    await until(lambda: again.machine.commands == first.machine.commands)
    assert len(again.machine.commands) == 80


async def test_the_next_leader_goes_on_when_one_stops(lab: Lab) -> None:
    first, second, third = await lab.grow(3)
    await write(first, b"one")
    seen: list[Leadership] = []
    second.node.on_leadership(seen.append)
    third.node.on_leadership(seen.append)
    lab.managers.remove(first)
    await first.stop(transfer=True)
    await until(lambda: any(leadership.ready for leadership in seen))
    leader = lab.leader()
    assert leader is not None
    assert await write(leader, b"two") == b"2"


async def test_leadership_goes_where_it_is_asked_to_go(lab: Lab) -> None:
    first, _, third = await lab.grow(3)
    await first.node.transfer_leadership(third.name, timeout=5)
    await until(lambda: third.node.leadership().ready and not first.node.leadership().is_leader)


async def test_a_leader_that_is_removed_hands_over_first(lab: Lab) -> None:
    first, second, third = await lab.grow(3)
    await first.node.remove_member(first.name, timeout=10)
    await until(lambda: second.node.leadership().ready or third.node.leadership().ready)
    leader = second if second.node.leadership().ready else third
    await until(lambda: {m.node_id for m in leader.node.members()} == {second.name, third.name})
    await write(leader, b"goes on")


async def test_a_member_leaves_by_itself_and_is_refused_afterwards(lab: Lab) -> None:
    first, _, third = await lab.grow(3)
    await leave_cluster([first.address], third.tls, 10)
    assert {m.node_id for m in first.node.members()} == {first.name, lab.managers[1].name}
    with pytest.raises(PermissionDenied, match="was removed from the swarm"):
        await exchange(first, third)


async def test_a_member_that_history_went_on_without_stops_with_the_reason(lab: Lab) -> None:
    first, second, third = await lab.grow(3)
    failures: list[SwarmError] = []
    second.node.on_failure(failures.append)

    def left_behind(peer: Peer) -> bool:
        if peer.name == second.name:
            raise HistoryCut("the swarm was recovered without this manager")
        return False

    first.server._guard._is_revoked = left_behind
    await until(lambda: bool(failures))
    assert isinstance(failures[0], HistoryCut)
    with pytest.raises(Unavailable, match="was recovered without this manager"):
        await second.node.propose(b"x", timeout=1)
    assert third.node.failure is None


async def exchange(target: Manager, caller: Manager, name: str = "swarm-manager") -> None:
    """Opens a Raft stream as members do, on a thread; returns when the first frame has come. (The asyncio side of gRPC may
    report "Internal error from Core" in place of a refusal that comes while the request is being sent.)"""

    def opened() -> None:
        channel = open_blocking_channel(target.address, caller.tls, name)
        try:
            next(rpc.RaftStub(channel).Exchange(iter([pb.RaftFrame()]), timeout=5))
        except grpc.RpcError as error:
            raise from_rpc(error) from error
        finally:
            channel.close()

    await asyncio.to_thread(opened)


async def test_a_worker_and_a_foreign_manager_are_refused(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> None:
    [first] = await lab.grow(1)
    worker = Manager(lab, "worker")
    worker.tls = lab.certificate("worker", NODE_ROLE_WORKER)
    with pytest.raises(PermissionDenied):
        await exchange(first, worker)
    foreign = Manager(Lab(tmp_path_factory.mktemp("foreign")), "foreign")
    with pytest.raises(SwarmError):
        await exchange(first, foreign)


async def test_the_last_manager_cannot_be_removed(lab: Lab) -> None:
    [only] = await lab.grow(1)
    with pytest.raises(FailedPrecondition, match="is the last one"):
        await only.node.remove_member(only.name, timeout=5)


async def test_a_new_leader_does_not_call_a_dead_member_reachable(lab: Lab) -> None:
    first, second, third = await lab.grow(3)
    await third.stop()
    await until(lambda: third.name not in {s.member.node_id for s in first.node.status().members if s.reachable})
    await first.node.transfer_leadership(second.name, timeout=5)
    await until(lambda: second.node.leadership().is_leader)
    assert {s.member.node_id for s in second.node.status().members if s.reachable} == {first.name, second.name}


async def test_removing_below_a_quorum_is_refused_with_the_numbers(lab: Lab) -> None:
    first, second, third = await lab.grow(3)
    await third.stop()
    await until(lambda: third.name not in {s.member.node_id for s in first.node.status().members if s.reachable})
    with pytest.raises(
        FailedPrecondition, match="there would be 2 managers, of which 1 can be reached and 2 are needed"
    ):
        await first.node.remove_member(second.name, timeout=5)
    await first.node.remove_member(third.name, timeout=5)
    await write(first, b"two are enough")


async def test_a_manager_may_change_its_address(lab: Lab) -> None:
    first, _, third = await lab.grow(3)
    await third.stop()
    moved = Manager(lab, third.name)
    lab.managers[2] = moved
    await moved.start()
    await moved.join(first)
    await write(first, b"found again")
    await until(lambda: moved.machine.commands == [b"found again"])
    assert Member(third.name, moved.address) in first.node.members()


async def test_a_manager_that_never_comes_up_gets_no_vote(lab: Lab) -> None:
    [first] = await lab.grow(1)
    absent = Manager(lab, "absent")
    with pytest.raises(Unavailable, match="has not caught up yet"):
        await first.node.add_member(absent.member, timeout=1)
    assert not first.node.is_voter("absent")
    assert [status.learner for status in first.node.status().members] == [False, True]
    await write(first, b"one is enough")


async def test_without_a_majority_nothing_is_promised(lab: Lab) -> None:
    first, second, third = await lab.grow(3)
    await second.stop()
    await third.stop()
    with pytest.raises((OutcomeUnknown, Unavailable)):
        await first.node.propose(b"alone", timeout=0.5)
    with pytest.raises(Unavailable):
        await first.node.read_barrier(timeout=3)
    await until(lambda: not first.node.leadership().is_leader)
    with pytest.raises(Unavailable, match="nothing was written"):
        await first.node.propose(b"alone", timeout=0.5)
    assert first.machine.commands == []


async def test_large_and_too_large_commands(lab: Lab) -> None:
    managers = await lab.grow(3)
    large = b"x" * (9 << 20)
    await write_somewhere(lab, large)
    await until(lambda: all(manager.machine.commands[-1:] == [large] for manager in managers))
    with pytest.raises(InvalidArgument, match="at most 32 MiB"):
        await write(managers[0], b"x" * (MAX_COMMAND_BYTES + 1))


async def write_somewhere(lab: Lab, command: bytes) -> None:
    """As a client does: asks whoever leads, again where nothing was written (a busy host may change its leader)."""
    async with asyncio.timeout(30):
        while True:
            await until(lambda: lab.leader() is not None)
            leader = lab.leader()
            try:
                if leader is not None:
                    await write(leader, command)
                    return
            except Unavailable:
                await asyncio.sleep(0.01)


async def test_many_writers_at_once_are_all_answered(lab: Lab) -> None:
    first, second, _ = await lab.grow(3)
    results = await asyncio.gather(*[write(first, b"%d" % number) for number in range(500)])
    assert sorted(map(int, results)) == list(range(1, 501))
    await until(lambda: second.machine.commands == first.machine.commands)


async def test_a_full_disk_refuses_writes_and_recovers(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    [only] = await lab.grow(1)
    core = only.node._core
    assert core is not None

    def full(*_: object) -> None:
        raise DiskFull("the disk that holds the state is full; free some space")

    with monkeypatch.context() as patched:
        patched.setattr(core.journal, "reserve", full)
        with pytest.raises(DiskFull, match="free some space"):
            await write(only, b"refused")
        assert await only.node.read_barrier(timeout=5) > 0
    assert await write(only, b"taken") == b"1"


def fill_disk(patched: pytest.MonkeyPatch, manager: Manager) -> None:
    core = manager.node._core
    assert core is not None

    def full(*_: object) -> None:
        raise DiskFull("the disk that holds the state is full; free some space")

    patched.setattr(core.journal, "reserve", full)


async def test_a_leader_whose_disk_is_full_hands_over_and_takes_part_again_when_there_is_room(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = await lab.grow(3)
    with monkeypatch.context() as patched:
        fill_disk(patched, first)
        with pytest.raises(NotLeader, match="nothing was written"):
            await write(first, b"to another one")
        await write_somewhere(lab, b"goes on")
        assert not first.node.leadership().is_leader
        await until(lambda: second.machine.commands == third.machine.commands == [b"goes on"])
        assert first.machine.commands == []
    await until(lambda: first.machine.commands == [b"goes on"])


async def test_a_leader_whose_disk_is_full_stays_where_nobody_else_could_write_either(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _, third = await lab.grow(3)
    await third.stop()
    await until(lambda: third.name not in {s.member.node_id for s in first.node.status().members if s.reachable})
    await asyncio.sleep(first.node.config.timings.quorum)  # until the leader does not count on its answers any more
    with monkeypatch.context() as patched:
        fill_disk(patched, first)
        with pytest.raises(DiskFull, match="free some space"):
            await write(first, b"refused")
        assert first.node.leadership().is_leader
    await write(first, b"taken")


async def test_with_a_full_follower_and_another_one_gone_writes_are_refused_and_the_disk_is_named(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = await lab.grow(3)
    await third.stop()
    await until(lambda: third.name not in {s.member.node_id for s in first.node.status().members if s.reachable})
    with monkeypatch.context() as patched:
        fill_disk(patched, second)
        with pytest.raises(OutcomeUnknown, match=f"no room on the disk of manager {second.name}.*it may still happen"):
            await first.node.propose(b"the one that finds out", timeout=2)
        with pytest.raises(DiskFull, match=rf"{second.name} .*{third.name} .*only 1 could .*2 are needed.*nothing was"):
            await first.node.propose(b"refused", timeout=2)
    await until(lambda: second.machine.commands == [b"the one that finds out"])
    await write(first, b"taken")
    assert first.machine.commands == [b"the one that finds out", b"taken"]


async def test_two_processes_cannot_share_a_state_directory(lab: Lab) -> None:
    [only] = await lab.grow(1)
    twin = Manager(lab, only.name)
    with pytest.raises(FailedPrecondition, match="another manager process uses"):
        await twin.node.start()


async def test_an_entry_that_must_not_be_applied_stops_the_member_with_the_reason(lab: Lab) -> None:
    [only] = await lab.grow(1)
    failures: list[SwarmError] = []
    only.node.on_failure(failures.append)

    def broken(index: int, command: bytes) -> bytes:
        raise InternalError("an entry of a newer version")

    only.machine.apply = broken  # type: ignore[method-assign]
    with pytest.raises(OutcomeUnknown):
        await write(only, b"x")
    await until(lambda: bool(failures))
    assert "an entry of a newer version" in str(failures[0])
    with pytest.raises(Unavailable, match="has stopped taking part"):
        await write(only, b"y")


async def test_a_defect_in_applying_one_entry_does_not_stop_the_log(lab: Lab) -> None:
    [only] = await lab.grow(1)
    healthy = only.machine.apply

    def broken(index: int, command: bytes) -> bytes:
        if command == b"poison":
            raise ValueError("a defect")
        return healthy(index, command)

    only.machine.apply = broken  # type: ignore[method-assign]
    with pytest.raises(InternalError, match="could not be applied: a defect"):
        await write(only, b"poison")
    assert await write(only, b"next") == b"1"
