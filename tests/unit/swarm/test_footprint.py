"""What an interpreter need not load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from swarm.footprint import postponed


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that raises when it is loaded a second time."""
    name = "a_module_of_this_test"
    (tmp_path / f"{name}.py").write_text(
        "import sys\nsys.loads_of_this_test = getattr(sys, 'loads_of_this_test', 0) + 1\nANSWER = 42\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "loads_of_this_test", 0, raising=False)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def loads() -> int:
    return int(getattr(sys, "loads_of_this_test", 0))


def test_a_postponed_module_is_loaded_once_it_is_used(module: str) -> None:
    with postponed(module):
        found = __import__(module)
    assert loads() == 0
    assert found.ANSWER == 42
    assert __import__(module).ANSWER == 42
    assert loads() == 1


def test_other_modules_and_later_imports_are_as_ever(module: str) -> None:
    with postponed("another"):
        __import__(module)
    assert loads() == 1
    del sys.modules[module]
    with postponed(module):
        pass
    __import__(module)
    assert loads() == 2


def test_a_postponed_module_that_is_not_there_is_missed_at_once() -> None:
    with postponed("no_such_module"), pytest.raises(ModuleNotFoundError):
        __import__("no_such_module")


def test_a_command_loads_nothing_that_it_does_not_use() -> None:
    """Each of these costs a command milliseconds before it says a word."""
    program = """
import sys
from importlib.util import _LazyModule
from orchestrator.cli.lazy import Entry, load
load("create", Entry("service_create:create", ""))
heavy = ("ssl", "rich", "pydantic", "cryptography", "prometheus_client", "grpc.aio")
assert "grpc" in sys.modules
print(*(name for name in heavy if type(sys.modules.get(name)) not in (type(None), _LazyModule)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []
