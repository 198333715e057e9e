"""What is measured, the same for every subject. Each scenario leaves the cluster as it found it and returns seconds by
name of the figure."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

from tests.bench.subject import Subject, wait

Figures = dict[str, float]
_unique = itertools.count(1)

ON_OVERLAY = 10


def _settle(subject: Subject) -> None:
    wait(lambda: subject.containers() == 0, f"{subject.name}: no container left")


def create(subject: Subject, replicas: int) -> Figures:
    """`service create` → all running, and `service rm` → all containers gone."""
    service = f"s{next(_unique)}"
    start = time.monotonic()
    subject.create(service, replicas)
    wait(lambda: subject.running(service) >= replicas, f"{subject.name}: {replicas} running")
    created = time.monotonic() - start
    start = time.monotonic()
    subject.remove(service)
    _settle(subject)
    return {f"create {replicas}": created, f"remove {replicas}": time.monotonic() - start}


def overlay_update_and_lost_host(subject: Subject, network: str) -> Figures:
    """On an overlay: create 10, update 10 by 2 (monitor 1 s), cut a worker off → 10 run elsewhere."""
    service = f"o{next(_unique)}"
    start = time.monotonic()
    subject.create(service, ON_OVERLAY, network=network)
    wait(lambda: subject.running(service) >= ON_OVERLAY, f"{subject.name}: {ON_OVERLAY} running on an overlay")
    figures = {f"create {ON_OVERLAY} on an overlay": time.monotonic() - start}
    start = time.monotonic()
    subject.update(service, parallelism=2, monitor=1.0)
    wait(lambda: subject.updated(service), f"{subject.name}: updated")
    figures[f"update {ON_OVERLAY} by 2"] = time.monotonic() - start
    start = time.monotonic()
    worker = subject.cut_worker()
    try:
        wait(lambda: subject.running_elsewhere(service, worker) >= ON_OVERLAY, f"{subject.name}: replaced")
        figures["lost host → replacements run"] = time.monotonic() - start
    finally:
        subject.heal(worker)
    wait(subject.healthy, f"{subject.name}: healthy again")
    subject.remove(service)
    _settle(subject)
    return figures


def lost_leader(subject: Subject) -> Figures:
    """The leader's link cut → the next write accepted by another manager."""
    names = (f"w{next(_unique)}" for _ in itertools.count())
    start = time.monotonic()
    leader = subject.cut_leader()
    try:
        wait(lambda: subject.write(next(names)), f"{subject.name}: write accepted")
        seconds = time.monotonic() - start
    finally:
        subject.heal(leader)
    wait(subject.healthy, f"{subject.name}: healthy again")
    return {"lost leader → next write": seconds}


def plan(sizes: list[int], network: str) -> list[Callable[[Subject], Figures]]:
    """The scenarios of one round, in order."""
    rounds: list[Callable[[Subject], Figures]] = [lambda s, n=n: create(s, n) for n in sizes]  # type: ignore[misc]
    return [*rounds, lambda s: overlay_update_and_lost_host(s, network), lost_leader]
