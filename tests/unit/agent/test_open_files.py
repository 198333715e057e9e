"""How many files swarmd, and what it starts, may have open."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

SWARMD = """
import resource, sys
soft, hard = int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))  # as a shell or systemd begins it
from agent import main
async def look(options):
    print(*resource.getrlimit(resource.RLIMIT_NOFILE))
main._run = look
main.main(["--state-dir", sys.argv[1], "--run-dir", sys.argv[1]])
"""


def limits_of_swarmd(state: Path, soft: int, hard: int) -> list[int]:
    words = [sys.executable, "-c", SWARMD, str(state), str(soft), str(hard)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    return [int(word) for word in done.stdout.split()]


def test_swarmd_may_open_as_many_files_as_the_host_allows(tmp_path: Path) -> None:
    """Started by hand it had 1024 files: with some hundreds of containers it had none left, and containers were lost."""
    hard = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 8192)
    assert limits_of_swarmd(tmp_path, 1024, hard) == [hard, hard]
