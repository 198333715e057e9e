"""Runs seed after seed, on all processors: `./dev soak [--seeds COUNT] [--first SEED] [--processes COUNT]`.

Tells how far it is and, at the end, which faults were met. Ends with exit code 1 at the first violation, which names the seed
that replays it (`--first SEED --seeds 1`).
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Annotated

import typer

from tests.simulation.raft.hosts import Violation
from tests.simulation.raft.test_simulation import run_kind

GROUP = 5  # seeds that a process takes at a time
TOLD_EVERY = 30.0  # seconds


def run_group(seeds: range) -> tuple[Counter[str], str]:
    """What the seeds met, and the violation that ended the group; "" where every promise was kept."""
    met: Counter[str] = Counter()
    for seed in seeds:
        try:
            met.update(run_kind(seed))
        except Violation as violation:
            return met, str(violation)
        except Exception:  # noqa: BLE001 – whatever the code under test raised, what matters is the seed that shows it
            return met, f"seed {seed}: {traceback.format_exc()}"
        met["seeds"] += 1
    return met, ""


def _start_process() -> None:
    """Ctrl-C reaches every process of the terminal; the first one ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable(logging.CRITICAL)


def _groups(first: int, seeds: int) -> Iterator[range]:
    for start in range(first, first + seeds, GROUP):
        yield range(start, min(start + GROUP, first + seeds))


def soak(
    seeds: Annotated[int, typer.Option(min=1, help="how many")] = 20_000,
    first: Annotated[int, typer.Option(min=0, help="the first one")] = 0,
    processes: Annotated[
        int | None, typer.Option(min=1, help="that share the work; one a processor unless given")
    ] = None,
) -> None:
    """Simulates Raft clusters under faults, seed after seed, and checks every promise."""
    met: Counter[str] = Counter()
    begun = told = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: else the other processes would go on
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start_process)
    try:
        for done in as_completed([pool.submit(run_group, group) for group in _groups(first, seeds)]):
            group, violation = done.result()
            met.update(group)
            if violation:
                print(violation)
                raise typer.Exit(1)
            now = time.monotonic()
            if now - told >= TOLD_EVERY:
                told = now
                print(
                    f"{met['seeds']:,} of {seeds:,} seeds, {met['seeds'] / (now - begun) * 60:.0f} a minute",
                    flush=True,
                )
    except BrokenProcessPool:
        print(
            f"a process of the soak was killed from outside, after {met['seeds']:,} of {seeds:,} seeds; is memory short?"
        )
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print(f"stopped after {met['seeds']:,} of {seeds:,} seeds, all of which kept every promise", file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        pool.shutdown(cancel_futures=True)  # waits for the groups that have begun
    print(f"{met.pop('seeds'):,} seeds kept every promise; met: {dict(sorted(met.items()))}")


if __name__ == "__main__":
    typer.run(soak)
