"""Is a history of reads and writes linearizable? The search of Wing and Gong, with Lowe's memory of visited states.

Every key is a register of its own, so each key's history is judged alone. Writes carry unique values. A swap is a write that
happens only where the register holds what its caller expects; who expects a value has read it. A write or swap whose outcome is
unknown may have happened at any time after its call, or never: one that no read saw is left out (leaving it out never
makes an explanation impossible), one that a read saw must have happened before that read returned.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

FOREVER = float("inf")


@dataclass
class Operation:
    """One call, as a client saw it."""

    key: str
    kind: str  # "read", "write" or "swap"
    value: str | None  # written, or read (None: nothing there)
    called: float
    returned: float = FOREVER
    known: bool = True  # False: the write's outcome is unknown
    expected: str | None = None  # what a swap replaces


def violations(history: list[Operation]) -> list[str]:
    """A sentence for each key whose history no order explains."""
    by_key: dict[str, list[Operation]] = defaultdict(list)
    for operation in history:
        by_key[operation.key].append(operation)
    return [
        f"key {key}: no order of its {len(operations)} operations explains what was read"
        for key, operations in sorted(by_key.items())
        if not _explained(_prepared(operations))
    ]


def _prepared(operations: list[Operation]) -> list[Operation]:
    seen: dict[str | None, float] = {}
    for operation in operations:
        if operation.kind == "read":
            seen[operation.value] = min(seen.get(operation.value, FOREVER), operation.returned)
    prepared = []
    for operation in operations:
        if operation.known:
            prepared.append(operation)
        elif operation.value in seen:
            prepared.append(replace(operation, returned=seen[operation.value], known=True))
    return sorted(prepared, key=lambda operation: operation.called)


def _explained(operations: list[Operation]) -> bool:
    """Depth-first over "which operation took effect next": any that was called before the earliest return of the rest."""
    everything = (1 << len(operations)) - 1
    visited: set[tuple[int, str | None]] = set()
    stack: list[tuple[int, str | None]] = [(0, None)]
    while stack:
        done, value = stack.pop()
        if done == everything:
            return True
        if (done, value) in visited:
            continue
        visited.add((done, value))
        earliest = FOREVER
        candidates = []
        first = (~done & (done + 1)).bit_length() - 1  # all before it are done
        for position in range(first, len(operations)):
            operation = operations[position]
            if done >> position & 1:
                continue
            if operation.called > earliest:
                break
            candidates.append(position)
            earliest = min(earliest, operation.returned)
        for position in reversed(candidates):
            operation = operations[position]
            if operation.called > earliest:
                continue
            if operation.kind == "write" or (operation.kind == "swap" and operation.expected == value):
                stack.append((done | 1 << position, operation.value))
            elif operation.kind == "read" and operation.value == value:
                stack.append((done | 1 << position, value))
    return not operations
