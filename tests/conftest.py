"""Options of the whole test suite, and what its summary tells of the simulations."""

from __future__ import annotations

from collections import Counter

import pytest
from _pytest.terminal import TerminalReporter


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--keep-lab", action="store_true", help="do not remove the lab after a failed cluster test")


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Which faults the simulations met. `record_property` brings the counts here from wherever the tests ran."""
    met: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed"):
        met.update(next((counts for name, counts in report.user_properties if name == "raft"), {}))
    if met:
        terminalreporter.section(f"Raft simulation: {met.pop('seeds')} seeds met")
        terminalreporter.write_line(", ".join(f"{kind} {count}" for kind, count in sorted(met.items())))
