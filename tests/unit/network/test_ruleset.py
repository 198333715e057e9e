"""Commands between two tables: applied to a model of nftables they must lead from the one to the other."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from agent.network.ruleset import Chain, ElementSet, Table, balanced, difference, removal, replacement


class Model:
    """What nftables would hold: refuses what the kernel refuses (unknown names, removing what is in use)."""

    def __init__(self) -> None:
        self.chains: dict[str, tuple[str, list[str]]] = {}
        self.sets: dict[str, tuple[str, str, dict[str, str]]] = {}

    def run(self, commands: str) -> None:
        for line in commands.splitlines():
            verb, what, rest = line.split(" ", 2)
            rest = rest.removeprefix("ip swarm").strip()
            getattr(self, f"{verb}_{what}")(rest)

    def add_table(self, _: str) -> None: ...

    def delete_table(self, _: str) -> None:
        self.chains.clear()
        self.sets.clear()

    def add_chain(self, rest: str) -> None:
        name, _, hook = rest.partition(" ")
        assert name not in self.chains
        self.chains[name] = (hook.strip("{} "), [])

    def flush_chain(self, name: str) -> None:
        self.chains[name][1].clear()

    def delete_chain(self, name: str) -> None:
        used = [rule for _, rules in self.chains.values() for rule in rules]
        used += [value for _, _, elements in self.sets.values() for value in elements.values()]
        assert f"goto {name}" not in used, f"{name} is in use"
        assert not self.chains.pop(name)[1]

    def add_rule(self, rest: str) -> None:
        name, rule = rest.split(" ", 1)
        for target in re.findall(r"@(\w+)", rule):
            assert target in self.sets
        self.chains[name][1].append(rule)

    def _add_set(self, kind: str, rest: str) -> None:
        name, _, described = rest.partition(" ")
        assert name not in self.sets
        self.sets[name] = (kind, described.removeprefix("{ type ").removesuffix("; }"), {})

    def add_map(self, rest: str) -> None:
        self._add_set("map", rest)

    def add_set(self, rest: str) -> None:
        self._add_set("set", rest)

    def _delete_set(self, name: str) -> None:
        assert not any(f"@{name}" in rule for _, rules in self.chains.values() for rule in rules)
        del self.sets[name]

    delete_map = delete_set = _delete_set

    def add_element(self, rest: str) -> None:
        name, listed = rest.split(" ", 1)
        for element in listed.strip("{} ").split(", "):
            key, _, value = element.partition(" : ")
            assert key not in self.sets[name][2]
            if value.startswith("goto "):
                assert value.removeprefix("goto ") in self.chains
            self.sets[name][2][key] = value

    def delete_element(self, rest: str) -> None:
        name, listed = rest.split(" ", 1)
        for key in listed.strip("{} ").split(", "):
            del self.sets[name][2][key]

    def holds(self, table: Table) -> bool:
        chains = {name: (chain.hook, list(chain.rules)) for name, chain in table.chains.items()}
        sets = {name: (one.kind, one.type, dict(one.elements)) for name, one in table.sets.items()}
        return self.chains == chains and self.sets == sets


@st.composite
def tables(draw: st.DrawFn) -> Table:
    targets = draw(st.sets(st.sampled_from(["a", "b", "c", "d"])))
    chains = {name: Chain((f"dnat to {draw(st.sampled_from(['1', '2']))}",)) for name in sorted(targets)}
    chains["hook"] = Chain(("ip daddr vmap @vips",), draw(st.sampled_from(["type nat hook output;", "type route;"])))
    sets = {"vips": ElementSet("map", "ipv4_addr : verdict", {f"k{name}": f"goto {name}" for name in targets})}
    if draw(st.booleans()):
        sets["refused"] = ElementSet("set", draw(st.sampled_from(["x", "y"])), {"k": ""})
        chains["filter"] = Chain(("ip daddr @refused drop",), "type filter hook output;")
    return Table("ip", "swarm", sets, chains)


@given(tables(), tables())
def test_a_difference_leads_from_one_table_to_the_other(old: Table, new: Table) -> None:
    model = Model()
    model.run(replacement(old))
    assert model.holds(old)
    model.run(difference(old, new))
    assert model.holds(new)
    assert difference(new, new) == ""


def test_a_changed_chain_does_not_touch_the_others() -> None:
    old = Table("ip", "swarm", chains={"a": Chain(("dnat to 1",)), "b": Chain(("dnat to 2",))})
    new = Table("ip", "swarm", chains={"a": Chain(("dnat to 1",)), "b": Chain(("dnat to 3",))})
    assert difference(old, new).splitlines() == [
        "add table ip swarm",
        "flush chain ip swarm b",
        "add rule ip swarm b dnat to 3",
    ]


def test_what_is_not_known_is_replaced() -> None:
    table = Table("ip", "swarm", chains={"a": Chain()})
    assert difference(None, table) == replacement(table)
    assert removal(table) == "add table ip swarm\ndelete table ip swarm\n"


def test_balancing_begins_where_the_rotation_says() -> None:
    assert balanced(["10.0.0.2"], 7) == "10.0.0.2"
    assert balanced(["b", "a"], 0) == "numgen inc mod 2 map { 0 : a, 1 : b }"
    assert balanced(["a", "b"], 3) == "numgen inc mod 2 map { 0 : b, 1 : a }"
