"""`./dev bench --raft`: the replicated log of three managers, as processes on loopback, with TLS, sealing and sync.

Beside each figure stands what was wanted (issue of the log's speed), and what the disk alone takes for one synced write in
the same run. Late ticks are counted by time, not by tick: the p99.9 is the delay that something due at a moment taken at
random would have met in 999 of 1,000 cases.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.raft import Timings
from tests.bench.raft_cluster import Cluster, Remote, cluster, until

TASKS = 100_000
TASK_PADDING = 900  # with what else a task holds: about 1 kB
SCHEDULED = 10_000
DISK = Path("/var/tmp")
HALF_ELECTION = Timings().election_min / 2


@dataclass
class Report:
    lines: list[str] = field(default_factory=list)
    fsync: float = 0.0

    def say(self, what: str, seen: str, wanted: str = "", *, met: bool | None = None) -> None:
        verdict = "" if met is None else ("met" if met else "MISSED")
        load = Path("/proc/loadavg").read_text().split()[0]
        line = f"{what:54} {seen:40} {wanted:18} {verdict:7}load {load}"
        self.lines.append(line)
        print(line, flush=True)

    def latency(self, what: str, seconds: Sequence[float], wanted: float, *, at: float = 0.5) -> None:
        seen = f"p50 {ms(quantile(seconds, 0.5))} p99 {ms(quantile(seconds, 0.99))}"
        times = quantile(seconds, at) / self.fsync
        self.say(
            what, f"{seen} ({times:.0f}x fsync)", f"p{at * 100:g} <= {ms(wanted)}", met=quantile(seconds, at) <= wanted
        )


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"


def quantile(values: Sequence[float], at: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * at))]


def late_tick(busy: Sequence[float], seconds: float, at: float) -> float:
    """How long what falls due or arrives at a random moment of `seconds` waits for the next tick, in the share `at` of all
    cases: a tick of length b delays by more than d for b - d of that time."""
    low, high = 0.0, max(busy, default=0.0)
    for _ in range(40):
        middle = (low + high) / 2
        beyond = sum(of_one - middle for of_one in busy if of_one > middle)
        low, high = (middle, high) if beyond > seconds * (1 - at) else (low, middle)
    return high


def fsync_alone(directory: Path, count: int = 400) -> float:
    """The median of a synced write of 512 bytes into allocated space."""
    seconds = []
    file = os.open(directory / "fsync", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(file, 0, count * 512)
        os.fsync(file)
        for number in range(count):
            began = time.perf_counter()
            os.pwrite(file, b"x" * 512, number * 512)
            os.fdatasync(file)
            seconds.append(time.perf_counter() - began)
    finally:
        os.close(file)
    return statistics.median(seconds)


async def measure(report: Report, rounds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="raft-bench-", dir=DISK) as name:
        directory = Path(name)
        report.fsync = fsync_alone(directory)
        report.say("fsync of 512 bytes alone", f"p50 {ms(report.fsync)}")
        async with cluster(directory) as members:
            leader = await members.leader()
            await leader.ask("write", count=300)  # warm
            for _ in range(rounds):
                await speed(report, leader)
            await large_state(report, members)
    with tempfile.TemporaryDirectory(prefix="raft-bench-", dir=DISK) as name:
        async with cluster(Path(name)) as members:
            await scheduling(report, members)


async def speed(report: Report, leader: Remote) -> None:
    report.latency("one writer", (await leader.ask("write", count=1000))["seconds"], 0.005)
    began = await leader.ask("status")
    duration = 5.0
    seconds = (await leader.ask("flight", width=64, duration=duration))["seconds"]
    cpu = (await leader.ask("status"))["cpu"] - began["cpu"]
    rate = len(seconds) / duration
    report.say(
        "64 in flight",
        f"{rate:.0f}/s p50 {ms(quantile(seconds, 0.5))} p99 {ms(quantile(seconds, 0.99))}",
        ">= 4000/s",
        met=rate >= 4000,
    )
    report.say("  CPU of the leader for one of them", f"{cpu / len(seconds) * 1e6:.0f} us")
    report.latency(
        "a transaction of 1,000 objects", (await leader.ask("large", objects=1000, count=30))["seconds"], 0.05
    )
    report.latency("ReadIndex", (await leader.ask("read", count=1000))["seconds"], 0.0015)


class Watched:
    """The ticks of some members within a block; says how late they were."""

    def __init__(self, report: Report, what: str, members: Sequence[Remote]) -> None:
        self._report, self._what, self._members = report, what, members

    async def __aenter__(self) -> None:
        await self._take()
        self._began = time.monotonic()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        seconds = time.monotonic() - self._began
        busy = await self._take()
        p999 = max(late_tick(of_one, seconds, 0.999) for of_one in busy)
        longest = max(max(of_one, default=0.0) for of_one in busy)
        seen, wanted = f"p99.9 {ms(p999)} longest {ms(longest)}", f"p99.9 < {ms(HALF_ELECTION)}"
        self._report.say(f"  late tick, {self._what}", seen, wanted, met=p999 < HALF_ELECTION)

    async def _take(self) -> list[list[float]]:
        return [(await member.ask("ticks"))["busy"] for member in self._members]


async def large_state(report: Report, members: Cluster) -> None:
    leader = await members.leader()
    began = await members.statuses()
    async with Watched(report, "while 100,000 tasks are written", members.members):
        await leader.ask("fill", tasks=TASKS, padding=TASK_PADDING)
    async with Watched(report, "64 in flight, 100,000 tasks stored", members.members):
        seconds = (await leader.ask("flight", width=64, duration=10.0))["seconds"]
    report.say("  these writes", f"{len(seconds) / 10:.0f}/s p99 {ms(quantile(seconds, 0.99))}")
    await snapshots(report, members, leader)
    await restart(report, members, leader)
    await behind(report, members, leader)
    ended = await members.statuses()
    same = max(s["term"] for s in began) == max(s["term"] for s in ended)
    report.say("term from the first write to here", f"{began[0]['term']} -> {ended[0]['term']}", "equal", met=same)


async def quiet(members: Sequence[Remote]) -> None:
    async def no_snapshot() -> bool:
        return not any([(await member.ask("status"))["busy"] for member in members])

    await until(no_snapshot, "no snapshot is being stored")


async def snapshots(report: Report, members: Cluster, leader: Remote) -> None:
    """One writer, without and with all three members storing their state at once."""
    await quiet(members.members)
    idle = (await leader.ask("write", count=1000, pause=0.002))["seconds"]
    report.say("one writer, paced, 100,000 tasks", f"p50 {ms(quantile(idle, 0.5))} p99 {ms(quantile(idle, 0.99))}")
    meanwhile: list[float] = []
    async with Watched(report, "while all three store a snapshot", members.members):
        taking = asyncio.gather(*[member.ask("snapshot") for member in members.members])
        while not taking.done():
            meanwhile += (await leader.ask("write", count=20, pause=0.002))["seconds"]
        took = max(answer["took"] for answer in await taking)
    report.latency("  while all three store a snapshot", meanwhile, 0.05, at=0.99)
    report.say("  time to store it", f"{took:.1f} s")


async def restart(report: Report, members: Cluster, leader: Remote) -> None:
    follower = next(member for member in members.members if member is not leader)
    await follower.kill()
    began = time.monotonic()
    await follower.start()
    target = (await leader.ask("status"))["applied"]

    async def caught_up() -> bool:
        return bool((await follower.ask("status"))["applied"] >= target)

    await until(caught_up, "the restarted member has caught up")
    took, loaded = time.monotonic() - began, (await follower.ask("status"))["loaded"]
    report.say("restart with 100,000 tasks", f"{took:.1f} s, {loaded:.1f} s of it reading", "< 5 s", met=took < 5)


async def behind(report: Report, members: Cluster, leader: Remote) -> None:
    """A follower that was away for longer than the log reaches back gets a snapshot, while writes go on."""
    follower = next(member for member in members.members if member is not leader)
    await quiet(members.members)
    await follower.kill()
    away = (await leader.ask("status"))["applied"]
    while (await leader.ask("status"))["base"] <= away:
        await leader.ask("flight", width=256, duration=2.0)
    await quiet([member for member in members.members if member is not follower])
    began, seconds = time.monotonic(), []
    target = (await leader.ask("status"))["applied"]
    async with Watched(report, "of the leader, while one is caught up", [leader]):
        await follower.start()
        while (status := await follower.ask("status"))["applied"] < target:
            seconds += (await leader.ask("write", count=20, pause=0.002))["seconds"]
            if time.monotonic() - began > 60:
                break
    report.say(
        "a follower far behind, caught up by a snapshot",
        f"{time.monotonic() - began:.1f} s",
        "",
        met=status["applied"] >= target and status["snapshot"] > away,
    )
    report.latency("  one writer meanwhile", seconds, 0.05, at=0.99)


async def scheduling(report: Report, members: Cluster) -> None:
    leader = await members.leader()
    before = await members.statuses()
    async with Watched(report, "while tasks are scheduled", members.members):
        took = await leader.ask("schedule", tasks=SCHEDULED, duration=300.0)
    after = await members.statuses()
    report.say(
        f"{SCHEDULED:,} tasks scheduled and run",
        f"placed after {took['placed']:.1f} s, running {took['running']:.1f} s",
    )
    terms = max(status["term"] for status in before), max(status["term"] for status in after)
    asked = sum(s["elections"] for s in after) - sum(s["elections"] for s in before)
    report.say(
        "  term before, after; elections", f"{terms[0]}, {terms[1]}; {asked}", "no election",
        met=terms[0] == terms[1] and not asked,
    )  # fmt: skip


def main(rounds: int) -> None:
    """Prints the figures; ends with 1 where one was missed."""
    report = Report()
    asyncio.run(measure(report, rounds))
    missed = [line for line in report.lines if "MISSED" in line]
    sys.exit(1 if missed else 0)
