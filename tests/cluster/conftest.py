"""Labs for the cluster tests: one of 3 managers and 2 workers for all tests of a session, built when first needed.

Around every test that uses it, what the lab has made on the machine is compared before and after: a test removes its
services and networks, and what then stays behind is a failure of the test.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator, Iterator
from itertools import count
from pathlib import Path

import pytest

from orchestrator.lab import lab as labs
from tests.support import inventory
from tests.support.lab import TestLab, eventually

LOG_LINES = 40  # of each daemon of each host
_numbers = count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything below tests/cluster carries the marker."""
    here = Path(__file__).parent
    for item in items:
        if Path(item.path).is_relative_to(here):
            item.add_marker(pytest.mark.cluster)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure tells what the lab's daemons said last: the lab itself is gone when somebody reads it."""
    report = yield
    if report.failed:
        used: dict[str, object] = getattr(item, "funcargs", {})
        for lab in {id(value): value for value in used.values() if isinstance(value, TestLab)}.values():
            for name, lines in lab.last_words(LOG_LINES).items():
                report.sections.append((f"{lab.name} {name}", lines))
    return report


@pytest.fixture(scope="session")
def session_lab(request: pytest.FixtureRequest) -> Iterator[TestLab]:
    name = f"t{os.getpid()}"
    before = inventory.take(name)
    try:
        layout = asyncio.run(labs.up(name, 3, 2, print))
        running = TestLab(layout)
        running.build_web()
        yield running
    finally:
        kept = request.config.getoption("--keep-lab") and request.session.testsfailed > 0
        if not kept:
            asyncio.run(labs.down(name, print))
    if kept:
        print(f"lab {name} is kept; remove it with `swarmctl lab down --name {name}`")
        return
    left = inventory.take(name).added_since(before)
    assert not left, f"`lab down` left behind: {left}"


@pytest.fixture
def lab(session_lab: TestLab) -> Iterator[TestLab]:
    """The session's lab, whole before and clean after the test."""
    session_lab.wait_ready()
    before = inventory.take(session_lab.name)
    yield session_lab
    for host in session_lab.layout.hosts:
        session_lab.start(host.name)
        session_lab.heal(host.name)
    session_lab.wait_ready()
    session_lab.remove_services()
    for network in session_lab.json("network", "ls"):
        if network["spec"]["name"] not in ("default", "ingress"):
            session_lab.swarmctl("network", "rm", network["spec"]["name"])
    for name, node in session_lab.nodes().items():
        if node["spec"]["availability"] not in (None, "active"):
            session_lab.swarmctl("node", "update", "--availability", "active", name)

    def clean() -> bool:
        left = inventory.take(session_lab.name).added_since(before)
        assert not left, f"left behind: {left}"
        return True

    eventually(clean, timeout=30, period=0.5)


@pytest.fixture
def own_lab(request: pytest.FixtureRequest) -> Iterator[TestLab]:
    """Three managers and a worker for one test, which may lose them."""
    name = f"m{os.getpid()}-{next(_numbers)}"
    before = inventory.take(name)
    try:
        lab = TestLab(asyncio.run(labs.up(name, 3, 1, print)))
        lab.build_web()
        yield lab
    finally:
        asyncio.run(labs.down(name, print))
    left = inventory.take(name).added_since(before)
    assert not left, f"`lab down` left behind: {left}"
