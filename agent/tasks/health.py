"""Health checks: the pure verdict, and the loop that runs the check in the container.

A container counts as healthy after its first success and as unhealthy after `retries` failures in a row. Failures within the
start period count for nothing. Beyond what a spec says, the first interval is probed early and often: only a success counts
there, so that a container that is up after 300 ms serves then, and one that needs its whole interval is not judged sooner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from swarm.clock import Clock
from swarm.errors import DeadlineExceeded, SwarmError

from agent.tasks.settings import HealthCheck

EARLY_PROBES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # seconds after the one before; then the start interval
MAX_OUTPUT = 300  # characters of a failing check that are shown


@dataclass(frozen=True)
class ProbeResult:
    healthy: bool
    output: str = ""


@dataclass(frozen=True)
class HealthTracker:
    """What is known of a container's health. Immutable: `after` is the next."""

    check: HealthCheck
    started_at: float
    healthy: bool | None = None  # None: not known yet
    failures: int = 0
    probes: int = 0

    def after(self, result: ProbeResult, started_at: float) -> HealthTracker:
        """With the result of a probe that began at `started_at`."""
        if result.healthy:
            return self._with(True, 0)
        if self.healthy is None and started_at - self.started_at < self._grace:
            return self._with(None, 0)
        failures = self.failures + 1
        return self._with(False if failures >= self.check.retries else self.healthy, failures)

    def _with(self, healthy: bool | None, failures: int) -> HealthTracker:
        return HealthTracker(self.check, self.started_at, healthy, failures, self.probes + 1)

    @property
    def _grace(self) -> float:
        return max(self.check.start_period, self.check.interval)

    def wait(self, now: float) -> float:
        """Seconds until the next probe."""
        if self.healthy is not None or now - self.started_at >= self._grace:
            return self.check.interval
        usual = min(self.check.start_interval, self.check.interval)
        early = EARLY_PROBES[self.probes] if self.probes < len(EARLY_PROBES) else usual
        return min(early, usual, self.started_at + self._grace - now)


async def watch(
    check: HealthCheck,
    probe: Callable[[], Awaitable[ProbeResult]],
    clock: Clock,
    tell: Callable[[bool, str], None],
    *,
    known_healthy: bool = False,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Probes for as long as it is not cancelled, or until the container was found unhealthy; tells each change."""
    tracker = HealthTracker(check, clock.monotonic(), True if known_healthy else None)
    while True:
        await sleep(tracker.wait(clock.monotonic()))
        began = clock.monotonic()
        result = await probe()
        before, tracker = tracker.healthy, tracker.after(result, began)
        if tracker.healthy is not None and tracker.healthy != before:
            tell(tracker.healthy, result.output)
        if tracker.healthy is False:
            return


async def probe_container(
    execute: Callable[[tuple[str, ...], float], Awaitable[tuple[int, bytes]]], check: HealthCheck
) -> ProbeResult:
    """One probe: exit code 0 is healthy; a check that cannot be run or takes too long is a failure that says so."""
    try:
        async with asyncio.timeout(check.timeout + 1.0):
            exit_code, output = await execute(check.arguments, check.timeout)
    except (TimeoutError, DeadlineExceeded):
        return ProbeResult(False, f"the check did not end within {check.timeout:g} s")
    except SwarmError as error:
        return ProbeResult(False, str(error)[:MAX_OUTPUT])
    except OSError as error:  # short of memory, processes or descriptors
        return ProbeResult(False, f"the check could not be run: {error}"[:MAX_OUTPUT])
    text = output.decode(errors="replace").strip()[-MAX_OUTPUT:]
    return ProbeResult(exit_code == 0, text or f"the check ended with exit code {exit_code}")
