"""The dialing side of the transport, without a network: links that end late, and hosts that are short of something."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from swarm.clock import SystemClock
from swarm.identity import TlsMaterial
from swarm.v1 import raft_pb2 as pb
from swarm.v1 import raft_pb2_grpc

from orchestrator.raft import transport
from orchestrator.raft.disk import LocalDirectory
from orchestrator.raft.engine import MemberNode
from orchestrator.raft.snapshots import SnapshotStore
from orchestrator.raft.transport import GrpcLinks


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Call:
    """A stream whose end the test decides, whoever cancels it."""

    def __init__(self) -> None:
        self.ends = threading.Event()
        self.cancelled = False

    def __iter__(self) -> Iterator[pb.RaftFrame]:
        yield pb.RaftFrame()
        self.ends.wait(10)

    def cancel(self) -> None:
        self.cancelled = True


class Peers:
    """What is dialed, by address."""

    def __init__(self) -> None:
        self.calls: dict[str, list[Call]] = {}
        self.channels: list[Channel] = []
        self.no_thread = 0  # so many calls find no thread
        self.held: dict[str, threading.Event] = {}  # where dialing takes until the test says so

    def open_channel(self, address: str, tls: object, name: str) -> Any:
        self.channels.append(Channel(address))
        return self.channels[-1]

    def stub(self, channel: Channel) -> Any:
        return Stub(self, channel)


class Channel:
    def __init__(self, address: str) -> None:
        self.address = address
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Stub:
    def __init__(self, peers: Peers, channel: Channel) -> None:
        self._peers, self._channel = peers, channel

    def InstallSnapshot(self, parts: object, timeout: float) -> None:
        raise RuntimeError("can't start new thread")

    def Exchange(self, frames: object) -> Call:
        address = self._channel.address
        if address in self._peers.held:
            self._peers.held[address].wait(10)
        if self._peers.no_thread:
            self._peers.no_thread -= 1
            raise RuntimeError("can't start new thread")
        call = Call()
        self._peers.calls.setdefault(address, []).append(call)
        return call


class Receiver:
    """Remembers what the core would be told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.told.append((name, *arguments))


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Peers:
    made = Peers()
    monkeypatch.setattr(transport, "open_blocking_channel", made.open_channel)
    monkeypatch.setattr(raft_pb2_grpc, "RaftStub", made.stub)
    return made


def no_tls() -> TlsMaterial:
    return TlsMaterial(b"", b"", b"")


def made_links(tls: Callable[[], TlsMaterial] = no_tls) -> tuple[GrpcLinks, Receiver]:
    links, receiver = GrpcLinks("a", tls, SystemClock(), random.Random(1)), Receiver()
    links.receiver = receiver  # type: ignore[assignment]
    return links, receiver


def test_the_end_of_a_link_that_was_given_up_is_not_the_end_of_its_successor(peers: Peers) -> None:
    """A manager moved to another address while the leader's host was busy. From then on the leader took it for unreachable,
    although their link was up: `node ls` said so, and it never got its vote, until either of them was started anew."""
    links, receiver = made_links()
    peers.held["old:1"] = threading.Event()
    links.connect(MemberNode("b", "old:1"))
    old = links._links["b"]
    links.disconnect("b")
    links.connect(MemberNode("b", "new:1"))
    new = links._links["b"]
    eventually(lambda: new.up)
    peers.held["old:1"].set()  # only now its thread comes to dial
    eventually(lambda: "old:1" in peers.calls)
    [late] = peers.calls["old:1"]
    eventually(lambda: late.cancelled)
    late.ends.set()
    eventually(lambda: not old._thread.is_alive())
    links.deliver(0)
    assert receiver.told == [("link_up", "b")]
    peers.calls["new:1"][0].ends.set()
    eventually(lambda: not new.up)
    links.deliver(0)
    assert ("link_down", "b") in receiver.told
    links.disconnect("b")


def test_a_link_outlives_a_host_that_has_no_file_descriptor_left() -> None:
    """One "too many open files" while the certificate was read, and the manager never asked that other one for anything again:
    as the leader it sent it no entry, until it was started anew."""
    attempts = []

    def tls() -> TlsMaterial:
        attempts.append(1)
        raise OSError(24, "Too many open files")

    links, _ = made_links(tls)
    links.connect(MemberNode("b", "b:1"))
    eventually(lambda: len(attempts) >= 3)
    links.disconnect("b")


def test_a_link_outlives_a_host_that_has_no_thread_left(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for "can't start new thread". Nothing is asked of gRPC before: it would leave a channel that is stuck."""
    real = threading.Thread.start
    refused: list[threading.Thread] = []

    def start(thread: threading.Thread) -> None:
        if threading.current_thread().name.startswith("raft-link") and len(refused) < 2:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    links, _ = made_links()
    links.connect(MemberNode("b", "b:1"))
    eventually(lambda: links._links["b"].up)
    assert len(refused) == 2
    assert [channel.closed for channel in peers.channels] == [False]
    assert not links.stuck_channels
    end(links, peers)


def test_a_channel_for_which_grpc_found_no_thread_is_neither_used_nor_closed(peers: Peers) -> None:
    """Its next call would never end, and the link with it; `close` neither."""
    peers.no_thread = 1
    links, _ = made_links()
    links.connect(MemberNode("b", "b:1"))
    eventually(lambda: links._links["b"].up)
    stuck, used = peers.channels
    assert list(map(id, links.stuck_channels)) == [id(stuck)]
    end(links, peers)
    assert (stuck.closed, used.closed) == (False, True)


def end(links: GrpcLinks, peers: Peers) -> None:
    """Gives up the link to b, whose call ends."""
    thread = links._links["b"]._thread
    links.disconnect("b")
    for call in peers.calls["b:1"]:
        call.ends.set()
    eventually(lambda: not thread.is_alive())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_snapshot_whose_sending_failed_for_whatever_reason_may_be_sent_again(peers: Peers, tmp_path: Path) -> None:
    """A manager that had been away for long asked for a snapshot while the leader's host had no thread left: it got none as
    long as that leader led, and stayed behind."""
    links, receiver = made_links()
    links.snapshots = SnapshotStore(LocalDirectory(tmp_path))
    snapshot = links.snapshots.write(5, 1, pb.RaftConfiguration(), [b"state"])
    peers.held["b:1"] = threading.Event()  # the link itself tells nothing meanwhile
    links.connect(MemberNode("b", "b:1"))
    assert links.transmit_snapshot("b", snapshot, 1)
    for thread in [thread for thread in threading.enumerate() if thread.name == "raft-snapshot-b"]:
        thread.join(5)
    links.deliver(0)
    assert receiver.told == [("snapshot_transfer_ended", "b", 1, 5, False)]
    links.disconnect("b")
    peers.held["b:1"].set()


def test_a_snapshot_waits_where_the_host_has_no_thread_left(
    peers: Peers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader's tick thread ended over it, and with it the manager."""
    links, _ = made_links()
    links.snapshots = SnapshotStore(LocalDirectory(tmp_path))
    snapshot = links.snapshots.write(5, 1, pb.RaftConfiguration(), [b"state"])
    peers.held["b:1"] = threading.Event()
    links.connect(MemberNode("b", "b:1"))

    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        assert not links.transmit_snapshot("b", snapshot, 1)
    links.disconnect("b")
