"""Which answers the quickstart prints: one from each of three containers on three nodes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from swarm.errors import DeadlineExceeded

from orchestrator.lab.quickstart import Place, call, placed

HOSTS = {"m1": "10.0.0.1", "w1": "10.0.0.2"}
SPREAD = {"a": Place("web.1", "m1"), "b": Place("web.2", "w1"), "c": Place("web.3", "w2")}


def answering(*containers: str) -> Callable[[str], str]:
    """Containers answer in turn, over and over; "" is a host that does not."""
    turn = itertools.cycle(containers)

    def ask(address: str) -> str:
        container = next(turn)
        if not container:
            raise OSError("connection refused")
        return f"container {container} of web"

    return ask


class Swarm:
    """Says where containers are: one state after the other, the last for ever."""

    def __init__(self, *states: dict[str, Place]) -> None:
        self.states = list(states)

    async def __call__(self) -> dict[str, Place]:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]


async def test_answers_that_repeat_are_asked_again_until_three_nodes_have_answered() -> None:
    answers = await call(HOSTS, answering("a", "a", "b", "", "a", "b", "b", "c"), Swarm(SPREAD))
    assert [(answer.container, answer.place.node) for answer in answers] == [("a", "m1"), ("b", "w1"), ("c", "w2")]
    assert {answer.asked for answer in answers} <= set(HOSTS)


async def test_a_container_that_was_replaced_meanwhile_does_not_count() -> None:
    before = {"old": Place("web.3", "w2"), "a": SPREAD["a"], "b": SPREAD["b"]}
    answers = await call(HOSTS, answering("old", "a", "c", "b", "gone"), Swarm(before, SPREAD))
    assert [answer.container for answer in answers] == ["a", "b", "c"]


async def test_two_containers_on_one_node_are_one_answer_and_the_end_is_bounded() -> None:
    crowded = {"a": Place("web.1", "m1"), "b": Place("web.2", "m1"), "c": Place("web.3", "w1")}
    with pytest.raises(DeadlineExceeded, match=r"only containers on 2 of 3 nodes answered.*connection refused"):
        await call(HOSTS, answering("a", "b", "c", ""), Swarm(crowded), timeout=0.5)


def test_only_tasks_that_run_and_shall_are_places() -> None:
    def task(task_id: str, state: str, desired: str) -> dict[str, object]:
        names = {"task": "web.1", "node": "m1"}
        return {"id": task_id, "names": names, "status": {"state": state}, "desired_state": desired}

    tasks = [
        task("abcdefghijklmnop", "running", "running"),
        task("old", "running", "shutdown"),
        task("new", "preparing", "running"),
    ]
    assert placed(tasks) == {"abcdefghijkl": Place("web.1", "m1")}
