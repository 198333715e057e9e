"""What those hear who wait for an image: while a registry is silent, while it is tried again, and once it answers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator

import pytest
from swarm.errors import NotFound, SwarmError, Unavailable

from agent.images.pulls import Pulls, Step, Tell, address_of, goes_elsewhere, unreachable, watched
from agent.images.reference import parse

WANTED = parse("registry.test:5000/web:1", "")
NOT_YET = "image registry.test:5000/web:1: the registry registry.test:5000 has not answered yet"


class Buildah:
    """Says what it is given; a `None` is silence until the test lets it go on."""

    def __init__(self, *words: str | None) -> None:
        self.words = words
        self.go_on = asyncio.Event()
        self.ended = False

    async def lines(self) -> AsyncGenerator[str, None]:
        try:
            for word in self.words:
                if word is None:
                    await self.go_on.wait()
                else:
                    yield word
        finally:
            self.ended = True


class Registry:
    """`reason` is what trying its port finds."""

    def __init__(self, reason: str = "") -> None:
        self.reason = reason
        self.tried = 0
        self.asked = asyncio.Event()

    async def __call__(self) -> str:
        self.tried += 1
        self.asked.set()
        return self.reason


async def steps(said: AsyncIterator[Step], buildah: Buildah, *, until: str = "") -> list[str]:
    """What is heard, lines and `!trouble`; silence ends when `until` was heard."""
    heard = []
    async for step in said:
        heard.append(step.line if step.trouble is None else f"!{step.trouble}")
        if until and heard[-1].startswith(until):
            buildah.go_on.set()
    return heard


async def test_a_registry_that_answers_is_neither_tried_nor_complained_about() -> None:
    buildah, registry = Buildah("Trying to pull", "Getting image source signatures", None, "Copying blob"), Registry()
    heard = steps(watched(buildah.lines(), WANTED, registry, patience=0), buildah)
    listening = asyncio.ensure_future(heard)
    buildah.go_on.set()
    assert await listening == ["Trying to pull", "Getting image source signatures", "Copying blob"]
    assert registry.tried == 0


async def test_silence_is_told_and_over_once_the_registry_answers() -> None:
    buildah, registry = Buildah("Trying to pull", None, "Getting image source signatures"), Registry()
    heard = await steps(watched(buildah.lines(), WANTED, registry, patience=0.01), buildah, until="!")
    assert heard == ["Trying to pull", f"!{NOT_YET}", "Getting image source signatures", "!"]


async def test_a_registry_that_cannot_be_reached_either_way_is_given_up_and_buildah_ended() -> None:
    buildah, registry = Buildah("Trying to pull", None), Registry("no route to host")
    with pytest.raises(Unavailable, match=r"registry\.test:5000/web:1: the registry cannot be reached: no route"):
        await steps(watched(buildah.lines(), WANTED, registry, patience=0.01), buildah)
    assert registry.tried == 1 and buildah.ended


async def test_a_slow_registry_is_tried_once_and_then_waited_for() -> None:
    buildah, registry = Buildah("Trying to pull", None, "Copying blob"), Registry()
    said = watched(buildah.lines(), WANTED, registry, patience=0.01)
    listening = asyncio.ensure_future(steps(said, buildah))
    await registry.asked.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not listening.done()
    buildah.go_on.set()
    assert (await listening)[-2:] == ["Copying blob", "!"]
    assert registry.tried == 1


async def test_the_reason_of_each_attempt_is_told_while_the_next_is_made() -> None:
    line = "Failed, retrying in 500ms ... (1/2). Error: initializing source docker://r: connect: connection refused"
    buildah, registry = Buildah(line, "Copying blob"), Registry()
    heard = await steps(watched(buildah.lines(), WANTED, registry), buildah)
    assert heard[1].startswith("!image registry.test:5000/web:1: the registry cannot be reached: initializing source")
    assert heard[1].endswith("connection refused; trying again")
    assert heard[2:] == ["Copying blob", "!"]


async def test_whoever_leaves_ends_buildah() -> None:
    buildah = Buildah("Trying to pull", None)
    said = watched(buildah.lines(), WANTED, Registry(), patience=60)
    assert (await anext(said)).line == "Trying to pull"
    await said.aclose()
    assert buildah.ended


async def test_all_who_wait_for_one_pull_hear_its_trouble_also_those_who_came_late() -> None:
    begun, finish = asyncio.Event(), asyncio.Event()
    pulls = 0

    async def pull(wanted: object, auth: str, tell: Tell) -> None:
        nonlocal pulls
        pulls += 1
        tell("slow")
        begun.set()
        await finish.wait()
        tell("")

    joined = Pulls(pull)
    first: list[str] = []
    second: list[str] = []
    one = asyncio.ensure_future(joined.join(WANTED, "", first.append))
    await begun.wait()
    two = asyncio.ensure_future(joined.join(WANTED, "", second.append))
    await asyncio.sleep(0)
    finish.set()
    await asyncio.gather(one, two)
    assert (pulls, first, second) == (1, ["slow", ""], ["slow", ""])


async def test_a_pull_ends_with_the_last_who_waits_and_the_next_begins_anew() -> None:
    ended = 0

    async def pull(wanted: object, auth: str, tell: Tell) -> None:
        nonlocal ended
        try:
            await asyncio.Event().wait()
        finally:
            ended += 1

    joined = Pulls(pull)
    for number in (1, 2):
        waits = [asyncio.ensure_future(joined.join(WANTED, "", lambda _: None)) for _ in range(2)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waits[0].cancel()
        await asyncio.gather(waits[0], return_exceptions=True)
        assert ended == number - 1
        waits[1].cancel()
        await asyncio.gather(waits[1], return_exceptions=True)
        assert ended == number


async def test_a_failed_pull_fails_all_who_wait() -> None:
    async def pull(wanted: object, auth: str, tell: Tell) -> None:
        raise NotFound("gone")

    joined = Pulls(pull)
    found = await asyncio.gather(*(joined.join(WANTED, "", lambda _: None) for _ in range(2)), return_exceptions=True)
    assert [type(error) for error in found] == [NotFound, NotFound]
    assert all(isinstance(error, SwarmError) for error in found)


@pytest.mark.parametrize(
    ("registry", "address"),
    [
        ("registry.test:5000", ("registry.test", 5000)),
        ("registry.test", ("registry.test", 443)),
        ("[fd00::1]:5000", ("fd00::1", 5000)),
        ("[fd00::1]", ("fd00::1", 443)),
        ("docker.io", ("registry-1.docker.io", 443)),
    ],
)
def test_where_a_registry_is(registry: str, address: tuple[str, int]) -> None:
    assert address_of(registry) == address


async def test_a_name_that_no_host_can_have_is_told_in_a_sentence() -> None:
    """A task whose image is of such a registry failed because "the node daemon failed unexpectedly"."""
    name = f"{'a' * 64}.example.com"
    assert await unreachable(name) == f"{name} port 443 is not the address of a host"
    assert await unreachable("127.0.0.1:99999") == "127.0.0.1 port 99999 is not the address of a host"


async def test_a_port_is_tried() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert await unreachable(f"127.0.0.1:{port}") == ""
    assert "127.0.0.1 port" in await unreachable(f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("text", "environment", "elsewhere"),
    [
        ("", {}, False),
        ("# [[registry.mirror]]\nunqualified-search-registries = []", {}, False),
        ("[[registry]]\nprefix = 'a'\n[[registry.mirror]]\nlocation = 'b'", {}, True),
        ("[[registry]]\nprefix = 'a'\n location = 'b'", {}, True),
        ("", {"HTTPS_PROXY": "http://proxy:3128"}, True),
        ("", {"https_proxy": ""}, False),
    ],
)
def test_when_the_registrys_own_address_says_nothing(text: str, environment: dict[str, str], elsewhere: bool) -> None:
    assert goes_elsewhere([text], environment) is elsewhere
