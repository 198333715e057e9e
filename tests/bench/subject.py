"""What a cluster under measurement must offer, whoever made it. Commands go through the product's own command line,
detached; observations through its own API, polled alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

# Pauses between two looks: a share of the time that has passed, so that looking errs by the same part for the quick and the
# slow subject, and within bounds, so that looking does not become a load of its own.
POLL_SHARE, POLL_MIN, POLL_MAX = 0.05, 0.02, 0.05
TIMEOUT = 120.0


class Missed(Exception):
    """Something that was waited for did not happen in time: told as a miss, not hidden."""


class Subject(Protocol):
    name: str

    def up(self) -> None: ...

    def down(self) -> None: ...

    def create(self, service: str, replicas: int, *, network: str = "") -> None: ...

    def running(self, service: str) -> int:
        """Tasks that run and shall run."""
        ...

    def remove(self, service: str) -> None: ...

    def containers(self) -> int:
        """Container processes on all hosts."""
        ...

    def create_network(self, network: str) -> None: ...

    def update(self, service: str, *, parallelism: int, monitor: float) -> None: ...

    def updated(self, service: str) -> bool: ...

    def cut_worker(self) -> str: ...

    def running_elsewhere(self, service: str, worker: str) -> int: ...

    def cut_leader(self) -> str: ...

    def heal(self, host: str) -> None: ...

    def write(self, name: str) -> bool:
        """Tries to create a network through a manager that was not cut off; whether it was accepted."""
        ...

    def healthy(self) -> bool:
        """All hosts ready and all managers reachable."""
        ...

    def memory(self) -> dict[str, int]:
        """Resident KiB of the daemons of each host (monitors of containers left out)."""
        ...

    def monitor_memory(self) -> list[int]:
        """Resident KiB of each container's monitor."""
        ...


def wait(condition: Callable[[], bool], what: str, timeout: float = TIMEOUT) -> float:
    """Seconds until `condition` holds. Raises Missed."""
    start = time.monotonic()
    while not condition():
        passed = time.monotonic() - start
        if passed > timeout:
            raise Missed(f"{what}: not within {timeout:g} s")
        time.sleep(min(max(passed * POLL_SHARE, POLL_MIN), POLL_MAX))
    return time.monotonic() - start


def resident(pid: int) -> int:
    """Resident KiB of a process; 0 where it has ended."""
    try:
        with Path(f"/proc/{pid}/status").open() as status:
            return next((int(line.split()[1]) for line in status if line.startswith("VmRSS")), 0)
    except OSError:
        return 0
