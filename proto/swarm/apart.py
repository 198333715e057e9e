"""Work that needs a large library now and then, done in a process of its own that ends with it.

Agents stay small: making a key, checking a certificate or looking at a stranger's TLS chain happens a few times in their
lives, but the libraries that it needs (cryptography, OpenSSL) would stay resident for ever, a sixth of the whole process. So
each of these is an operation of `python -m swarm.apart OPERATION`: it reads one JSON object from its standard input, and
writes one to its standard output, the answer or the error. There is a fixed table of operations, and nothing but text
travels; private keys pass through pipes alone, never through arguments or files.

A manager has the library loaded anyway (the log is sealed) and calls `swarm.keys` itself.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Mapping
from typing import IO

from swarm.errors import InternalError, SwarmError, kind_named
from swarm.keys import KeyAndRequest
from swarm.process import run

TIMEOUT = 30.0  # seconds of one call; a host under load starts an interpreter slowly
MAX_INPUT_BYTES = 1 << 20

Values = Mapping[str, str]


async def new_key_and_request(common_name: str) -> KeyAndRequest:
    """`keys.new_key_and_request`."""
    made = await _call("new-key", {"common_name": common_name})
    return KeyAndRequest(made["key"].encode(), made["csr"].encode())


async def check_issued(key_pem: bytes, certificate_pem: bytes, ca_pem: bytes) -> None:
    """`keys.check_issued`."""
    try:
        values = {"key": key_pem.decode(), "certificate": certificate_pem.decode("ascii"), "ca": ca_pem.decode("ascii")}
    except UnicodeDecodeError as error:
        raise InternalError(f"the manager answered with a certificate that is not PEM: {error}") from error
    await _call("check-issued", values)


async def shown_chain(host: str, port: int) -> list[bytes]:
    """`tls_chain.shown_chain`."""
    answer = await _call("shown-chain", {"host": host, "port": str(port)})
    return [base64.b64decode(der) for der in answer["chain"].split()]


async def _call(operation: str, values: Values) -> Values:
    """Raises what the operation raises, and InternalError or DeadlineExceeded for the process."""
    completed = await run(
        # -P: no module is ever taken from the working directory
        [sys.executable, "-P", "-m", "swarm.apart", operation],
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


# ------------------------------------------------------------------------------------------------------- in the other process


def _new_key(values: Values) -> Values:
    from swarm.keys import new_key_and_request

    made = new_key_and_request(values["common_name"])
    return {"key": made.key_pem.decode(), "csr": made.csr_pem.decode()}


def _check_issued(values: Values) -> Values:
    from swarm.keys import check_issued

    check_issued(values["key"].encode(), values["certificate"].encode(), values["ca"].encode())
    return {}


def _shown_chain(values: Values) -> Values:
    from swarm.tls_chain import shown_chain

    chain = shown_chain(values["host"], int(values["port"]))
    return {"chain": " ".join(base64.b64encode(der).decode() for der in chain)}


_OPERATIONS: Mapping[str, Callable[[Values], Values]] = {
    "new-key": _new_key,
    "check-issued": _check_issued,
    "shown-chain": _shown_chain,
}


def serve(operation: str, requests: IO[bytes], answers: IO[bytes]) -> None:
    """Does one operation. Our own errors travel; whatever else is a bug, and ends the process with its traceback."""
    answer: Values
    try:
        answer = _OPERATIONS[operation](json.loads(requests.read(MAX_INPUT_BYTES)))
    except SwarmError as error:
        answer = {"error": error.kind, "message": str(error)}
    answers.write(json.dumps(answer).encode())
    answers.flush()


if __name__ == "__main__":
    serve(sys.argv[1], sys.stdin.buffer, sys.stdout.buffer)
