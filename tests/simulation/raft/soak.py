"""Runs seed after seed: `python -m tests.simulation.raft.soak [COUNT [FIRST]]`.

Prints which faults were met; ends with exit code 1 at the first violation.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter

from tests.simulation.raft import world
from tests.simulation.raft.test_simulation import run_kind


def main(count: int, first: int) -> int:
    logging.disable(logging.CRITICAL)
    met: Counter[str] = Counter()
    for seed in range(first, first + count):
        try:
            met.update(run_kind(seed))
        except world.Violation as violation:
            print(violation)
            return 1
        if (seed - first) % 100 == 99:
            print(f"{seed - first + 1} seeds: {dict(met)}", flush=True)
    return 0


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*[*numbers, *(20_000, 0)[len(numbers) :]]))
