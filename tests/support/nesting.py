"""Directories nested deeper than Python's own `rmtree` can follow."""

from __future__ import annotations

import os
from pathlib import Path


def nest(directory: Path, levels: int) -> None:
    """One within the other, each named `d`."""
    inner = os.open(directory, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=inner)
        outer, inner = inner, os.open("d", os.O_RDONLY, dir_fd=inner)
        os.close(outer)
    os.close(inner)
