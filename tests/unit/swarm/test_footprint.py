"""What an interpreter need not load."""

from __future__ import annotations

import importlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from swarm.footprint import is_loaded, postponed


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that counts how often it is loaded (`loads`)."""
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
from swarm.footprint import is_loaded
from orchestrator.cli.lazy import Entry, load
load("create", Entry("service_create:create", ""))
assert "grpc" in sys.modules
heavy = ("ssl", "rich", "pydantic", "cryptography", "prometheus_client", "asyncio", "grpc.aio")
print(*filter(is_loaded, heavy))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []


def test_a_postponed_package_loads_whole_from_another_thread_and_with_imports_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "a_package_of_this_test"
    package.mkdir()
    (package / "__init__.py").write_text("import time\nfrom . import part\ntime.sleep(0.1)\nLAST = part.FIRST + 1\n")
    (package / "part.py").write_text("import a_package_of_this_test as whole\nFIRST = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with postponed(package.name):
        found = importlib.import_module(package.name)
        again = importlib.import_module(package.name)
    assert again is found
    assert not is_loaded(package.name)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda _: found.LAST, range(4))) == [2] * 4
    assert is_loaded(package.name)
    assert type(found) is ModuleType
    with pytest.raises(AttributeError, match="nothing"):
        _ = found.nothing
    for name in [name for name in sys.modules if name.startswith(package.name)]:
        del sys.modules[name]
