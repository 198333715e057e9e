"""The system call filter of a container: an allow list (seccomp.json, beside this module), widened by what capabilities bring.

Whatever the list does not name fails with EPERM.  Two calls need more than a name: `clone` may not ask for new namespaces,
and `clone3`, whose flags lie in memory where a filter cannot look, answers ENOSYS so that libraries fall back to `clone`;
both are unrestricted for containers with CAP_SYS_ADMIN.
"""

from __future__ import annotations

import errno
import functools
import json
import platform
from collections.abc import Iterable
from importlib import resources
from typing import Any

# CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET, from linux/sched.h
_NAMESPACE_FLAGS = 0x7E020000
_ADMINISTRATOR = "CAP_SYS_ADMIN"


@functools.lru_cache(maxsize=1)
def _tables() -> dict[str, Any]:
    tables: dict[str, Any] = json.loads(resources.files(__package__).joinpath("seccomp.json").read_text())
    return tables


def profile(capabilities: Iterable[str], machine: str | None = None) -> dict[str, Any]:
    """`linux.seccomp` of an OCI specification for a container that has these capabilities (`CAP_…`).

    `machine` is the architecture as uname gives it, the host's own where it is None.
    """
    return _profile(frozenset(capabilities), machine if machine is not None else platform.machine())


@functools.lru_cache(maxsize=64)
def _profile(capabilities: frozenset[str], machine: str) -> dict[str, Any]:
    tables = _tables()
    architecture = tables["architectures"].get(machine, {"names": [], "allow": []})
    allowed = set(tables["allow"]) | set(architecture["allow"])
    for capability, names in tables["capabilities"].items():
        if capability in capabilities:
            allowed.update(names)
    rules: list[dict[str, Any]] = [{"names": sorted(allowed), "action": "SCMP_ACT_ALLOW"}]
    for rule in tables["conditional"]:
        condition = {"index": rule["index"], "value": rule["value"], "op": rule["op"]}
        rules.append({"names": rule["names"], "action": "SCMP_ACT_ALLOW", "args": [condition]})
    if _ADMINISTRATOR not in capabilities:
        # s390 swaps the first two arguments of clone
        position = 1 if machine == "s390x" else 0
        masked = {"index": position, "value": _NAMESPACE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
        rules.append({"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [masked]})
        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS})
    result: dict[str, Any] = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": errno.EPERM, "syscalls": rules}
    if architecture["names"]:
        result["architectures"] = architecture["names"]
    return result
