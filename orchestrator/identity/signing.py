"""Signing in a process of its own (`swarm.operations`): a manager does without the larger part of the cryptographic library,
4 MB on the host that leads, which it would need at each join and renewal only.

The CA's key passes through a pipe to our own program, for the moment of one signature. Few of these processes run at once, so
that many hosts that join together wait for one another instead of for a host that does nothing but start interpreters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from swarm.errors import InvalidArgument
from swarm.identity import Role
from swarm.operations import Operations, Values, call, main
from swarm.v1 import types_pb2

from orchestrator.identity.authority import MAX_CSR_BYTES, RootAuthority

_MODULE = "orchestrator.identity.signing"
_AT_ONCE = 2
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


async def sign_for_node(
    ca: types_pb2.CertificateAuthorityState,
    csr_pem: bytes,
    node_id: str,
    role: types_pb2.NodeRole.ValueType,
    *,
    now: float,
    validity: float,
) -> bytes:
    """`RootAuthority.issue_node` of the CA. Raises InvalidArgument where the request is not one that we would sign."""
    wanted = {"name": node_id, "role": types_pb2.NodeRole.Name(role), "validity": repr(validity)}
    return await _sign("node", ca, csr_pem, now, wanted)


async def sign_for_person(
    ca: types_pb2.CertificateAuthorityState, csr_pem: bytes, name: str, role: Role, now: float
) -> bytes:
    """`RootAuthority.issue_person` of the CA. Raises InvalidArgument."""
    return await _sign("person", ca, csr_pem, now, {"name": name, "role": role.value})


async def sign_for_server(
    ca: types_pb2.CertificateAuthorityState, csr_pem: bytes, name: str, addresses: Sequence[str], now: float
) -> bytes:
    """`RootAuthority.issue_server` of the CA. Raises InvalidArgument."""
    return await _sign("server", ca, csr_pem, now, {"name": name, "addresses": "\n".join(addresses)})


async def _sign(
    operation: str, ca: types_pb2.CertificateAuthorityState, csr_pem: bytes, now: float, wanted: Values
) -> bytes:
    if len(csr_pem) > MAX_CSR_BYTES:
        raise InvalidArgument(f"the signing request is larger than {MAX_CSR_BYTES} bytes")
    values = {
        "ca": ca.certificate_pem.decode(),
        "key": ca.private_key_pem.decode(),
        "csr": csr_pem.decode(errors="replace"),  # what is not ASCII is no PEM, and refused as such
        "now": repr(now),
    }
    async with _turns.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(_AT_ONCE)):
        answer = await call(_MODULE, operation, {**values, **wanted})
    return answer["chain"].encode()


# ------------------------------------------------------------------------------------------------------- in the other process


def _node(values: Values) -> Values:
    authority = RootAuthority(values["ca"].encode(), values["key"].encode())
    chain = authority.issue_node(
        values["csr"].encode(),
        values["name"],
        types_pb2.NodeRole.Value(values["role"]),
        now=float(values["now"]),
        validity=float(values["validity"]),
    )
    return {"chain": chain.decode()}


def _person(values: Values) -> Values:
    authority = RootAuthority(values["ca"].encode(), values["key"].encode())
    chain = authority.issue_person(
        values["csr"].encode(), values["name"], Role(values["role"]), now=float(values["now"])
    )
    return {"chain": chain.decode()}


def _server(values: Values) -> Values:
    authority = RootAuthority(values["ca"].encode(), values["key"].encode())
    addresses = values["addresses"].split("\n") if values["addresses"] else []
    chain = authority.issue_server(values["csr"].encode(), values["name"], addresses, now=float(values["now"]))
    return {"chain": chain.decode()}


OPERATIONS: Operations = {"node": _node, "person": _person, "server": _server}


if __name__ == "__main__":
    main(OPERATIONS)
