"""Generates the Python stubs of every ``proto/swarm/v1/*.proto`` beside its source.

Used in two ways: as hatchling's build hook (an installation from source always carries fresh stubs) and as a script
(``python proto/build_stubs.py``) while one works on the ``.proto`` files.  The results are never edited or committed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE_ROOT = Path(__file__).resolve().parent


def generate(root: Path = SOURCE_ROOT) -> list[Path]:
    """Compiles all ``.proto`` files below ``root``; returns the generated files. Raises RuntimeError where protoc fails."""
    from grpc_tools import protoc

    sources = sorted(root.glob("swarm/v1/*.proto"))
    include = Path(protoc.__file__).parent / "_proto"
    # protoc finds the mypy plug-ins on PATH: they lie beside the interpreter that runs this build.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    arguments = [
        "protoc",
        f"-I{root}",
        f"-I{include}",
        f"--python_out={root}",
        f"--grpc_python_out={root}",
        f"--mypy_out=quiet:{root}",
        f"--mypy_grpc_out=quiet:{root}",
        *[str(source) for source in sources],
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError(f"protoc could not compile {', '.join(str(source) for source in sources)}")
    return sorted(root.glob("swarm/v1/*_pb2*.py*"))


class StubsHook(BuildHookInterface[Any]):
    """Runs `generate` before hatchling collects the files of a wheel or an editable installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        generate(Path(self.root) / "proto")


if __name__ == "__main__":
    generate()
