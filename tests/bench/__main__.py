"""`./dev bench [--vs-docker] [--runs N] [--sizes 1,10,30,100]`: rounds of the scenarios, the subjects taking turns.

`./dev bench --raft [--runs N]` measures the replicated log alone: see `tests.bench.raft`.
`./dev bench --failover [--trials N]` measures how long a lost leader costs writes: see `tests.bench.failover`."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict

from tests.bench import failover, raft
from tests.bench.docker_swarm import DockerSwarm
from tests.bench.ours import Ours, usable
from tests.bench.scenarios import plan
from tests.bench.subject import Missed, Subject

NETWORK = "benchnet"
REST = 1.0  # seconds before each scenario: daemons still tidy up when the last container is gone


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("--vs-docker", action="store_true", help="a real Docker Swarm beside ours, round by round")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--sizes", default="1,10,30,100", help="replicas for the create scenario")
    parser.add_argument(
        "--raft", action="store_true", help="only the replicated log of three managers, against its targets"
    )
    parser.add_argument("--failover", action="store_true", help="only how long writes wait when a leader is lost")
    parser.add_argument("--trials", type=int, default=30, help="of each kind, with --failover")
    options = parser.parse_args()
    if options.failover:
        failover.main(options.trials)
        return
    if options.raft:
        raft.main(options.runs)
        return
    usable()
    subjects: list[Subject] = [Ours(), *([DockerSwarm()] if options.vs_docker else [])]
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    memory: dict[str, tuple[dict[str, int], list[int]]] = {}
    misses: list[str] = []
    sizes = [int(size) for size in options.sizes.split(",")]
    try:
        for subject in subjects:
            say(f"{subject.name}: building a cluster of 3 managers and 2 workers")
            subject.up()
            subject.create_network(NETWORK)
        for number in range(options.runs):
            for scenario in plan(sizes, NETWORK):
                for subject in subjects:
                    time.sleep(REST)
                    try:
                        for figure, seconds in scenario(subject).items():
                            times[figure, subject.name].append(seconds)
                            say(f"run {number + 1} {subject.name:9} {figure:32} {seconds:7.2f} s")
                    except Missed as miss:
                        misses.append(f"run {number + 1}: {miss}")
                        say(f"MISSED {miss}")
        for subject in subjects:
            subject.create("memory", 10)
            time.sleep(5)
            memory[subject.name] = (subject.memory(), subject.monitor_memory())
            subject.remove("memory")
    finally:
        for subject in subjects:
            subject.down()
    report(subjects, times, memory, misses)


def report(
    subjects: list[Subject],
    times: dict[tuple[str, str], list[float]],
    memory: dict[str, tuple[dict[str, int], list[int]]],
    misses: list[str],
) -> None:
    """One line for each figure: median (minimum–maximum) of each subject, and the ratio of the medians."""
    names = [subject.name for subject in subjects]
    header = f"{'seconds: median (min–max)':34}" + "".join(f"{name:>26}" for name in names)
    print(header + ("      ratio" if len(names) > 1 else ""))
    for figure in dict.fromkeys(figure for figure, _ in times):
        cells, medians = "", []
        for name in names:
            values = times[figure, name]
            if values:
                medians.append(statistics.median(values))
                cells += f"{medians[-1]:12.2f} ({min(values):.2f}–{max(values):.2f})".rjust(26)
            else:
                cells += "missed".rjust(26)
        ratio = f"{medians[1] / medians[0]:10.1f}×" if len(medians) > 1 else ""
        print(f"{figure:34}{cells}{ratio}")
    for name in names:
        if name in memory:
            hosts, monitors = memory[name]
            shown = ", ".join(f"{host} {kib / 1024:.0f}" for host, kib in hosts.items())
            each = f"{statistics.mean(monitors) / 1024:.1f}" if monitors else "–"
            print(f"resident MiB of {name}: {shown}; each container's monitor {each}")
    for miss in misses:
        print(f"missed: {miss}")


if __name__ == "__main__":
    main()
