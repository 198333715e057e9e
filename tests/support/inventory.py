"""What a lab has made on this machine, so that a test can say what it left behind.

Compared before and after: network namespaces, mounts, nftables rules of every namespace, cgroups, and processes. Only what
belongs to the named lab counts: another lab may be at work beside it.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from orchestrator.lab import wiring
from orchestrator.lab.hosts import processes
from orchestrator.lab.layout import CGROUP_ROOT, RUN_ROOT, STATE_ROOT, LabHost


@dataclass(frozen=True)
class Inventory:
    """Sorted lines of each kind; process ids are left out, so that a restarted daemon is no difference."""

    namespaces: tuple[str, ...]
    mounts: tuple[str, ...]
    rules: tuple[str, ...]
    links: tuple[str, ...]
    cgroups: tuple[str, ...]
    processes: tuple[str, ...]

    def added_since(self, before: Inventory) -> dict[str, list[str]]:
        """What is here now and was not before, by kind; kinds without any are left out."""
        found = {}
        for kind in ("namespaces", "mounts", "rules", "links", "cgroups", "processes"):
            extra = Counter(getattr(self, kind)) - Counter(getattr(before, kind))
            if extra:
                found[kind] = sorted(extra.elements())
        return found


def take(lab: str) -> Inventory:
    """Everything that belongs to lab `lab` now; empty where there is none."""
    namespaces = wiring.namespaces_of(lab)
    rules = [f"root {line}" for line in _tables([]) if line.endswith(f"swarm-lab-{lab}")]
    links: list[str] = []
    for namespace in namespaces:
        enter = ["nsenter", f"--net=/run/netns/{namespace}"]
        rules += [f"{namespace} {line}" for line in _tables(enter)]
        links += [
            f"{namespace} {line.split(':')[1].split('@')[0].strip()}" for line in _lines([*enter, "ip", "-o", "link"])
        ]
    mounts = wiring.mounts_below(RUN_ROOT / lab, STATE_ROOT / lab)
    top = f"{CGROUP_ROOT}/{lab}/"  # below it, one for each host stays once it had a container
    cgroups = [str(path) for path in wiring.cgroups_of(f"{CGROUP_ROOT}/{lab}") if "/" in str(path).partition(top)[2]]
    running: list[str] = []
    for host in _hosts(lab):
        found = processes(LabHost(lab, host, "", ""))
        running += [f"{host} {_program(pid)}" for pid in found.all]
    return Inventory(
        tuple(namespaces), tuple(sorted(mounts)), tuple(sorted(rules)), tuple(sorted(links)), tuple(sorted(cgroups)),
        tuple(sorted(running)),
    )  # fmt: skip


def _hosts(lab: str) -> list[str]:
    found: set[str] = set()
    for root in (RUN_ROOT / lab, STATE_ROOT / lab):
        if root.is_dir():
            found |= {entry.name for entry in root.iterdir() if entry.is_dir()}
    return sorted(found)


def _tables(enter: list[str]) -> list[str]:
    return _lines([*enter, "nft", "list", "tables"])


def _lines(command: list[str]) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return [line for line in done.stdout.splitlines() if line.strip()]


def _program(pid: int) -> str:
    """A name for a process that survives its restart: the module of a Python daemon, else the program."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return "(ended)"
    return words[words.index("-m") + 1] if "-m" in words else Path(words[0]).name
