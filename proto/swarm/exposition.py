"""Metrics as Prometheus reads them: families of samples, and the page of text that they make.

The client library of Prometheus loads an HTTP server, an e-mail parser and more, 8 MB for each daemon; the text format
(version 0.0.4) is a few lines. The tests read our pages with that library's parser.
"""

from __future__ import annotations

import os
import resource
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass
class Family:
    """Samples of one name. `kind` is gauge, counter or histogram; a counter's samples are called NAME_total."""

    name: str
    text: str
    kind: str = "gauge"
    labels: Sequence[str] = ()
    samples: list[tuple[str, dict[str, str], float]] = field(default_factory=list)  # (suffix, labels, value)

    def add(self, values: Sequence[str], value: float) -> Family:
        """A sample with these values of the labels."""
        suffix = "_total" if self.kind == "counter" else ""
        self.samples.append((suffix, dict(zip(self.labels, values, strict=True)), float(value)))
        return self


def gauge(name: str, text: str, value: float) -> Family:
    """A family of one sample without labels."""
    return Family(name, text).add((), value)


def counter(name: str, text: str, value: float) -> Family:
    """The same of something that only grows."""
    return Family(name, text, "counter").add((), value)


class Histogram:
    """Observations counted by upper bound."""

    def __init__(self, name: str, text: str, bounds: Sequence[float], label: str = "") -> None:
        self._name, self._text, self._bounds, self._label = name, text, tuple(bounds), label
        self._counts: dict[str, list[int]] = {} if label else {"": self._empty()}
        self._sums: dict[str, float] = {}

    def _empty(self) -> list[int]:
        return [0] * (len(self._bounds) + 1)

    def observe(self, value: float, label: str = "") -> None:
        self._counts.setdefault(label, self._empty())[bisect_left(self._bounds, value)] += 1
        self._sums[label] = self._sums.get(label, 0.0) + value

    def family(self) -> Family:
        family = Family(self._name, self._text, "histogram")
        for value, counts in self._counts.items():
            labels = {self._label: value} if self._label else {}
            total = 0
            for bound, count in zip((*map(str, self._bounds), "+Inf"), counts, strict=True):
                total += count
                family.samples.append(("_bucket", {**labels, "le": bound}, float(total)))
            family.samples.append(("_count", labels, float(total)))
            family.samples.append(("_sum", labels, self._sums.get(value, 0.0)))
        return family


def of_this_process() -> Iterator[Family]:
    """CPU, memory, descriptors and start of the process, under the names that Prometheus' own clients use."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    page = os.sysconf("SC_PAGE_SIZE")
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    yield counter("process_cpu_seconds", "Total user and system CPU time in seconds.", used.ru_utime + used.ru_stime)
    yield gauge("process_resident_memory_bytes", "Resident memory size in bytes.", int(fields[21]) * page)
    yield gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", int(fields[20]))
    yield gauge("process_open_fds", "Number of open file descriptors.", len(list(Path("/proc/self/fd").iterdir())))
    started = booted + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    yield gauge("process_start_time_seconds", "Start time of the process since the Unix epoch in seconds.", started)


def page(families: Iterable[Family]) -> bytes:
    """The page."""
    lines: list[str] = []
    for family in families:
        name = f"{family.name}_total" if family.kind == "counter" else family.name
        lines.append(f"# HELP {name} {_escaped(family.text, quotes=False)}")
        lines.append(f"# TYPE {name} {family.kind}")
        for suffix, labels, value in family.samples:
            shown = ",".join(f'{key}="{_escaped(text, quotes=True)}"' for key, text in labels.items())
            lines.append(f"{family.name}{suffix}{{{shown}}} {value!r}" if shown else f"{family.name}{suffix} {value!r}")
    return "\n".join([*lines, ""]).encode()


def _escaped(text: str, *, quotes: bool) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text
