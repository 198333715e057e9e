"""The README's tour, command by command, as it is printed there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

from tests.support.lab import SWARMCTL, TestLab, eventually

README = Path(__file__).resolve().parents[2] / "README.md"


def tour() -> list[tuple[str, list[str]]]:
    """(command, the lines that the README shows below it) of the tour."""
    block = next(part for part in README.read_text().split("```") if "$ swarmctl node ls" in part)
    steps: list[tuple[str, list[str]]] = []
    for line in block.strip().splitlines():
        if line.startswith("$ "):
            steps.append((line[2:], []))
        elif line.strip():
            steps[-1][1].append(line)
    return steps


def test_every_step_of_the_tour_works_and_prints_what_the_readme_shows(lab: TestLab) -> None:
    steps = tour()
    assert len(steps) >= 8
    for command, shown in steps:
        words = shlex.split(
            re.sub(r"198\.18\.\d+\.", lab.layout.subnet.network_address.exploded.removesuffix("0"), command)
        )
        if words[0] == "curl":
            answer = eventually(lambda words=words: lab.fetch(words[-1]))
            labels = ("container", "client", "version")
            assert [word for word in answer.split() if word in labels] == [w for w in shown[0].split() if w in labels]
            continue
        environment = {**os.environ, "SWARM_LAB": lab.name, "COLUMNS": "250"}
        done = subprocess.run(
            [str(SWARMCTL), *words[1:]], capture_output=True, text=True, timeout=120, env=environment, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        if shown and shown[0].isupper():
            assert done.stdout.split("\n")[0].split() == shown[0].split(), command
        else:
            assert bool(done.stdout.strip()) == bool(shown), command
