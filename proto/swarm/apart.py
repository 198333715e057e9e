"""Work that needs a large library now and then, done in a process of its own that ends with it.

Agents stay small: making a key, checking a certificate or looking at a stranger's TLS chain happens a few times in their
lives, but the libraries that it needs (cryptography, OpenSSL) would stay resident for ever, a sixth of the whole process. So
each of these is an operation of `python -m swarm.apart` (`swarm.operations`). Managers do likewise with what only they do,
signing (`orchestrator.identity.signing`).
"""

from __future__ import annotations

import base64

from swarm.errors import InternalError
from swarm.keys import KeyAndRequest
from swarm.operations import Operations, Values, call, main


async def new_key_and_request(common_name: str) -> KeyAndRequest:
    """`keys.new_key_and_request`."""
    made = await call("swarm.apart", "new-key", {"common_name": common_name})
    return KeyAndRequest(made["key"].encode(), made["csr"].encode())


async def check_issued(key_pem: bytes, certificate_pem: bytes, ca_pem: bytes) -> None:
    """`keys.check_issued`."""
    try:
        values = {"key": key_pem.decode(), "certificate": certificate_pem.decode("ascii"), "ca": ca_pem.decode("ascii")}
    except UnicodeDecodeError as error:
        raise InternalError(f"the manager answered with a certificate that is not PEM: {error}") from error
    await call("swarm.apart", "check-issued", values)


async def shown_chain(host: str, port: int) -> list[bytes]:
    """`tls_chain.shown_chain`."""
    answer = await call("swarm.apart", "shown-chain", {"host": host, "port": str(port)})
    return [base64.b64decode(der) for der in answer["chain"].split()]


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


OPERATIONS: Operations = {
    "new-key": _new_key,
    "check-issued": _check_issued,
    "shown-chain": _shown_chain,
}


if __name__ == "__main__":
    main(OPERATIONS)
