"""The lab's plan: names, addresses, and that labs keep out of each other's way."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

import pytest
from swarm.errors import InvalidArgument, NotFound, ResourceExhausted

from orchestrator.lab.layout import plan, subnet_of


def test_a_plan_names_managers_first_and_counts_addresses_from_one() -> None:
    layout = plan("t", 3, 2, [])
    assert [(host.name, host.role) for host in layout.hosts] == [
        ("m1", "manager"), ("m2", "manager"), ("m3", "manager"), ("w1", "worker"), ("w2", "worker"),
    ]  # fmt: skip
    assert [host.address for host in layout.hosts] == [f"198.18.0.{n}" for n in range(1, 6)]
    assert layout.registry == "198.18.0.253:5000"


def test_the_readme_shows_the_addresses_of_a_first_lab() -> None:
    shown = re.findall(r"198\.18\.\d+\.\d+", (Path(__file__).resolve().parents[3] / "README.md").read_text())
    subnet = plan("t", 3, 2, []).subnet
    assert shown
    assert [address for address in shown if ipaddress.IPv4Address(address) not in subnet] == []


def test_a_second_lab_takes_the_next_free_subnet() -> None:
    taken = [ipaddress.IPv4Network("198.18.0.0/24"), ipaddress.IPv4Network("198.18.1.128/25")]
    assert str(plan("t", 1, 0, taken).subnet) == "198.18.2.0/24"


def test_no_subnet_left_is_said() -> None:
    with pytest.raises(ResourceExhausted, match="take a lab down"):
        plan("t", 1, 0, [ipaddress.IPv4Network("198.18.0.0/15")])


@pytest.mark.parametrize(
    ("name", "managers", "workers"), [("Bad_Name", 1, 0), ("t", 0, 1), ("t", 1, -1), ("t", 100, 101)]
)
def test_impossible_labs_are_refused(name: str, managers: int, workers: int) -> None:
    with pytest.raises(InvalidArgument):
        plan(name, managers, workers, [])


def test_an_unknown_host_is_answered_with_the_known_ones() -> None:
    with pytest.raises(NotFound, match="m1, w1"):
        plan("t", 1, 1, []).host("x")


def test_interface_names_fit_the_kernel_even_for_the_last_subnet() -> None:
    layout = plan("t", 1, 0, [subnet_of(number) for number in range(511)])
    assert layout.number == 511
    assert len(layout.uplink) <= 15


@pytest.mark.parametrize(
    ("managers", "workers", "size"),
    [(3, 2, "3 managers and 2 workers"), (1, 0, "1 manager and 0 workers"), (1, 1, "1 manager and 1 worker")],
)
def test_a_size_in_words(managers: int, workers: int, size: str) -> None:
    assert plan("t", managers, workers, []).size == size
