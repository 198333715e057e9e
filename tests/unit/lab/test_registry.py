"""The lab's registry: finding its process among whatever else runs on the machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

from orchestrator.lab import registry


def test_it_is_found_beside_a_process_with_odd_arguments(tmp_path: Path) -> None:
    """`lab up`, `lab down` and `./dev quickstart` ended with a traceback (UnicodeDecodeError) while any program on the machine
    had an argument that is not UTF-8, such as the name of an old file."""
    configuration = str(tmp_path / "registry" / "registry.yml").encode()
    assert registry.running(tmp_path) is None
    with (
        subprocess.Popen([b"caf\xe9", b"60"], executable="sleep") as odd,
        subprocess.Popen([b"sh", b"-c", b"read x", configuration], stdin=subprocess.PIPE) as found,
    ):
        try:
            assert registry.running(tmp_path) == found.pid
        finally:
            for program in (odd, found):
                program.kill()
