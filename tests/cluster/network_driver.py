"""Runs a LinuxDataPlane inside a host's namespace for the tests: calls come in on standard input, results go out.

Started with `nsenter --net=…`, like the daemons of a lab; a test that kills it does to the data plane what a crash does.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import pickle
import sys
from pathlib import Path
from typing import Any

from agent.network.plane import LinuxDataPlane


async def main(state_dir: Path, run_dir: Path, resolv_conf: Path) -> None:
    plane = LinuxDataPlane(state_dir, run_dir, resolv_conf_path=resolv_conf)
    reader = asyncio.StreamReader(limit=64 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    async def call(number: int, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            result: tuple[int, bool, Any] = (number, True, await getattr(plane, method)(*args, **kwargs))
        except Exception as error:
            logging.exception("%s failed", method)
            result = (number, False, f"{type(error).__name__}: {error}")
        sys.stdout.buffer.write(base64.b64encode(pickle.dumps(result)) + b"\n")
        sys.stdout.buffer.flush()

    async with asyncio.TaskGroup() as group:
        while line := await reader.readline():
            group.create_task(call(*pickle.loads(base64.b64decode(line))))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main(*(Path(argument) for argument in sys.argv[1:4])))
