"""Frames and attributes, which connections hold a drain, and how jobs keep to their namespace."""

from __future__ import annotations

import asyncio
import os
import struct
import threading

import pytest
from swarm.errors import FailedPrecondition, InvalidArgument
from swarm.v1 import types_pb2 as types

from agent.network.connections import LISTEN, TcpSocket, inbound
from agent.network.namespaces import NamespaceThreads
from agent.network.netlink import NLA_F_NESTED, attributes, nested, text, u32
from agent.network.wiring import wire
from tests.unit.network.cluster import BACKEND, overlay, realised, view


def test_attributes_are_padded_and_found_again() -> None:
    data = text(3, "eth0") + u32(4, 1450) + nested(18, text(1, "veth"))
    assert len(data) % 4 == 0
    found = attributes(data)
    assert found[3] == b"eth0\0" and found[4] == struct.pack("=I", 1450)
    assert attributes(found[18]) == {1: b"veth\0"}
    assert struct.unpack_from("=H", nested(18), 2)[0] == 18 | NLA_F_NESTED


def test_broken_attributes_end_the_list() -> None:
    assert attributes(u32(1, 5) + b"\x01\x00\x02\x00") == {1: struct.pack("=I", 5)}
    assert attributes(b"\x01") == {}


ESTABLISHED, CLOSE_WAIT, TIME_WAIT = 1, 8, 6


@pytest.mark.parametrize(
    ("socket", "holds"),
    [
        (TcpSocket(ESTABLISHED, "10.0.0.5", 80, "10.0.0.9"), 1),
        (TcpSocket(CLOSE_WAIT, "10.0.0.5", 80, "10.0.0.9"), 1),
        (TcpSocket(TIME_WAIT, "10.0.0.5", 80, "10.0.0.9"), 0),
        (TcpSocket(ESTABLISHED, "10.0.0.5", 40000, "10.0.0.9"), 0),  # opened by the container
        (TcpSocket(ESTABLISHED, "127.0.0.1", 80, "127.0.0.1"), 0),  # its own health check
        (TcpSocket(ESTABLISHED, "10.0.0.5", 80, "10.0.0.5"), 0),  # with itself, through its virtual IP
    ],
)
def test_connections_that_hold_a_drain(socket: TcpSocket, holds: int) -> None:
    assert inbound([TcpSocket(LISTEN, "0.0.0.0", 80, "0.0.0.0"), socket]) == holds


def test_a_network_that_is_not_there_and_an_address_that_is_none() -> None:
    seen = view(overlay(BACKEND))
    with pytest.raises(FailedPrecondition, match="network x is not realised"):
        wire("t", [types.NetworkAttachment(network_id="x", address="10.0.16.5/20")], realised(seen), hostname="h")
    with pytest.raises(InvalidArgument, match='"nonsense" is not an IPv4 address'):
        wire("t", [types.NetworkAttachment(network_id=BACKEND.id, address="nonsense")], realised(seen), hostname="h")


@pytest.mark.skipif(os.geteuid() != 0, reason="setns needs root")
async def test_a_cancelled_caller_waits_for_its_job() -> None:
    threads = NamespaceThreads(1)
    started, finish, done = threading.Event(), threading.Event(), threading.Event()

    def job() -> None:
        started.set()
        finish.wait(10)
        done.set()

    caller = asyncio.create_task(threads.run(job))
    await asyncio.to_thread(started.wait, 10)
    caller.cancel()
    finish.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert done.is_set()
    threads.close()
