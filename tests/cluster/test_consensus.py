"""Real managers under real faults: what clients saw must have been possible, and nothing that was acknowledged is lost.

Three managers with namespaces, disks and daemons of their own. Clients read and swap through all of them while one fault after
the other happens; each lasts until they got something done in spite of it. `-s` shows what was done.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from orchestrator.lab import lab as labs
from tests.support import faults, inventory
from tests.support.lab import TestLab, eventually
from tests.support.linearizability import violations
from tests.support.registers import Registers

SEED = int(os.environ.get("SWARM_TEST_SEED", "1"))
CLIENTS = 6
KEYS = tuple(f"r{number}" for number in range(8))
PROGRESS = 150  # operations that must get done during a fault, and after it
ENOUGH = 2000  # operations in all
SMALL = "m3"
DISK_BYTES = 24 << 20

Fault = Callable[[], AbstractContextManager[object]]


@pytest.fixture
def managers() -> Iterator[TestLab]:
    """Three managers and no worker; the last one's state is on a small disk."""
    name = f"c{os.getpid()}"
    before = inventory.take(name)
    try:
        lab = TestLab(asyncio.run(labs.up(name, 3, 0, print)))
        with lab.small_disk(SMALL, DISK_BYTES):
            yield lab
    finally:
        asyncio.run(labs.down(name, print))
    left = inventory.take(name).added_since(before)
    assert not left, f"`lab down` left behind: {left}"


def schedule(lab: TestLab, certificates: faults.Certificates, rng: random.Random) -> Iterator[tuple[str, Fault]]:
    """What happens, one after the other; chosen when its time has come, so that the leader is the one of then."""
    names = [host.name for host in lab.layout.managers]

    def other() -> str:
        leader = lab.leader()
        return rng.choice([name for name in names if name != leader])

    leader = lab.leader()
    yield f"kill -9 of the leader {leader}", lambda: faults.killed(lab, leader)
    paused = lab.leader()
    yield f"the leader {paused} stopped (SIGSTOP)", lambda: lab.paused(paused, manager=True)
    cut = lab.leader()
    yield f"the leader {cut} cut off", lambda: faults.unplugged(lab, cut)
    deaf = lab.leader()
    yield f"the leader {deaf} hears nobody", lambda: faults.one_way(lab, deaf, "input")
    mute = lab.leader()
    yield f"nobody hears the leader {mute}", lambda: faults.one_way(lab, mute, "output")
    follower = other()
    yield f"the follower {follower} hears nobody", lambda: faults.one_way(lab, follower, "input")
    lab.lead(SMALL)
    yield f"the disk of the leader {SMALL} is full", lambda: out_of_room(lab)
    expired = lab.leader()
    yield f"the certificate of the leader {expired} has expired", lambda: certificates.expired(expired)
    foreign = other()
    yield f"the certificate of {foreign} is another swarm's", lambda: certificates.foreign(foreign)
    mover = rng.choice(names)
    address = lab.host(mover).address.rpartition(".")[0] + ".77"
    yield f"{mover} moves to {address}", lambda: faults.moved(lab, mover, address)
    yield "kill -9 of all managers at once", lambda: faults.killed(lab, *names)


@contextmanager
def out_of_room(lab: TestLab) -> Iterator[None]:
    """The disk of the leader is full, and what the log had allocated on it is used up: another one leads."""
    numbers = iter(range(500))

    def led_by_another() -> bool:
        lab.swarmctl("network", "create", "-d", "overlay", "--label", f"l={'x' * 60_000}", f"n{next(numbers)}")
        return lab.leader() != SMALL

    with faults.full_disk(lab.host(SMALL).state_directory):
        eventually(led_by_another, timeout=60)
        yield


def test_clients_see_one_truth_whatever_happens_to_the_managers(managers: TestLab, tmp_path: Path) -> None:
    lab, rng = managers, random.Random(SEED)
    sockets = {host.name: host.control_socket for host in lab.layout.managers}
    registers = Registers(sockets, KEYS, clients=CLIENTS, seed=SEED)
    certificates = faults.Certificates(lab, tmp_path)
    began = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s {registers.done:6d} operations: {what}", flush=True)

    def progress() -> None:
        wanted = registers.done + PROGRESS
        eventually(lambda: registers.done >= wanted, timeout=60, period=0.02)

    with registers.working():
        progress()
        for what, fault in schedule(lab, certificates, rng):
            say(what)
            with fault():
                progress()
            say("over")
            lab.wait_ready()
            progress()
    say("the end")
    for outcome, count in sorted(registers.outcomes.items()):
        print(f"{count:7d} {outcome}")
    for refusal, count in registers.refusals.most_common(12):
        print(f"{count:7d} × {refusal}")
    assert registers.done >= ENOUGH
    assert violations(registers.history) == []
