"""Operations that are done in a process of their own, which ends with its answer.

A module that offers some is run as `python -m MODULE OPERATION`: it reads one JSON object from its standard input and writes
one to its standard output, the answer or the error. There is a fixed table of operations, and nothing but text travels;
secrets pass through pipes alone, never through arguments or files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import IO

from swarm.errors import InternalError, SwarmError, kind_named
from swarm.process import run

TIMEOUT = 30.0  # seconds of one call; a host under load starts an interpreter slowly
MAX_INPUT_BYTES = 1 << 20

Values = Mapping[str, str]
Operations = Mapping[str, Callable[[Values], Values]]


async def call(module: str, operation: str, values: Values) -> Values:
    """Raises what the operation raises, and InternalError or DeadlineExceeded for the process."""
    completed = await run(
        # -P: no module is ever taken from the working directory
        [sys.executable, "-P", "-m", module, operation],
        stdin=json.dumps(values).encode(),
        timeout=TIMEOUT,
    )
    try:
        answer = json.loads(completed.stdout)
    except ValueError as error:
        raise InternalError(f"{operation}: its process did not answer in JSON") from error
    if not isinstance(answer, dict):
        raise InternalError(f"{operation}: its process answered something else than an object")
    if "error" in answer:
        raise kind_named(answer["error"])(answer["message"])
    return answer


def serve(operations: Operations, operation: str, requests: IO[bytes], answers: IO[bytes]) -> None:
    """Does one operation. Our own errors travel; whatever else is a bug, and ends the process with its traceback."""
    answer: Values
    try:
        answer = operations[operation](json.loads(requests.read(MAX_INPUT_BYTES)))
    except SwarmError as error:
        answer = {"error": error.kind, "message": str(error)}
    answers.write(json.dumps(answer).encode())
    answers.flush()


def main(operations: Operations) -> None:
    """Of a module that offers operations."""
    serve(operations, sys.argv[1], sys.stdin.buffer, sys.stdout.buffer)
