"""A table of nftables as a value, and the commands that lead from one value to another.

Pure. `replacement` writes a table anew whatever is there, `difference` changes only the chains and elements that differ; each
is meant to be run as one transaction. Connections that are open keep their translation: the kernel remembers it apart from
the rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

ELEMENTS_PER_COMMAND = 500


@dataclass(frozen=True)
class Chain:
    """`hook` is what makes it a base chain ("type nat hook output priority -100; policy accept;"); empty: a plain chain."""

    rules: tuple[str, ...] = ()
    hook: str = ""


@dataclass(frozen=True)
class ElementSet:
    """A set or, where `kind` is "map", a map: elements by key, the value empty in a set."""

    kind: str
    type: str
    elements: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    family: str
    name: str
    sets: Mapping[str, ElementSet] = field(default_factory=dict)
    chains: Mapping[str, Chain] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        return f"{self.family} {self.name}"


def replacement(table: Table) -> str:
    """Commands that put the table in force whatever is there now."""
    head = [f"add table {table.identity}", f"delete table {table.identity}"]
    return "\n".join([*head, *_differing(Table(table.family, table.name), table)]) + "\n"


def removal(table: Table) -> str:
    """Commands that remove the table, also where there is none."""
    return f"add table {table.identity}\ndelete table {table.identity}\n"


def difference(old: Table | None, new: Table) -> str:
    """Commands that lead from `old` to `new`; empty where they are equal."""
    if old is None or _structure_changed(old, new):
        return replacement(new)
    if old == new:
        return ""
    return "\n".join(_differing(old, new)) + "\n"


def _structure_changed(old: Table, new: Table) -> bool:
    """Whether something differs that cannot be changed in place: a chain's hook, a set's type."""
    shared_chains = old.chains.keys() & new.chains.keys()
    if any(old.chains[name].hook != new.chains[name].hook for name in shared_chains):
        return True
    shared_sets = old.sets.keys() & new.sets.keys()
    return any(
        (old.sets[name].kind, old.sets[name].type) != (new.sets[name].kind, new.sets[name].type) for name in shared_sets
    )


def _differing(old: Table, new: Table) -> Iterable[str]:
    # The order matters: what is named must exist before its user, and go after it.
    table = new.identity
    yield f"add table {table}"
    for name, chain in new.chains.items():
        if name not in old.chains:
            yield f"add chain {table} {name}" + (f" {{ {chain.hook} }}" if chain.hook else "")
    for name, wanted in new.sets.items():
        if name not in old.sets:
            yield f"add {wanted.kind} {table} {name} {{ type {wanted.type}; }}"
    for name, chain in new.chains.items():
        before = old.chains.get(name)
        if before is not None and before.rules == chain.rules:
            continue
        if before is not None:
            yield f"flush chain {table} {name}"
        for rule in chain.rules:
            yield f"add rule {table} {name} {rule}"
    for name, wanted in new.sets.items():
        present = old.sets[name].elements if name in old.sets else {}
        gone = [key for key, value in present.items() if wanted.elements.get(key) != value]
        come = [
            f"{key} : {value}" if value else key
            for key, value in wanted.elements.items()
            if key not in present or present[key] != value
        ]
        yield from _elements("delete", table, name, gone)
        yield from _elements("add", table, name, come)
    removed_chains = [name for name in old.chains if name not in new.chains]
    removed_sets = [name for name in old.sets if name not in new.sets]
    for name in removed_chains:
        yield f"flush chain {table} {name}"
    for name in removed_sets:
        yield f"delete {old.sets[name].kind} {table} {name}"
    for name in removed_chains:
        yield f"delete chain {table} {name}"


def _elements(verb: str, table: str, name: str, elements: list[str]) -> Iterable[str]:
    for start in range(0, len(elements), ELEMENTS_PER_COMMAND):
        yield f"{verb} element {table} {name} {{ {', '.join(elements[start : start + ELEMENTS_PER_COMMAND])} }}"


def balanced(backends: Iterable[str], rotation: int) -> str:
    """What a `dnat to` leads to: the backends in turn. `rotation` says which is the first, so that not everyone who counts
    from zero begins with the same one."""
    ordered = sorted(backends)
    start = rotation % len(ordered)
    turned = ordered[start:] + ordered[:start]
    if len(turned) == 1:
        return turned[0]
    choices = ", ".join(f"{index} : {address}" for index, address in enumerate(turned))
    return f"numgen inc mod {len(turned)} map {{ {choices} }}"
