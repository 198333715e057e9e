"""Containers' logs: records are joined, cut to a time, counted from the end, and followed over a new file."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest
from swarm.errors import ResourceExhausted

from agent.runtime import inotify, logs
from agent.runtime.logs import Joiner, LogLine

SECOND = 1_000_000_000
BASE = 1_767_225_600 * SECOND  # 2026-01-01T00:00:00Z


def record(second: int, text: str, *, stream: str = "stdout", tag: str = "F") -> str:
    return f"2026-01-01T00:00:{second:02d}.500000000+00:00 {stream} {tag} {text}\n"


async def collect(path: Path, **options: object) -> list[str]:
    return [line.line.decode() async for line in logs.read(path, **options)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"2026-01-01T00:00:00.000000001+00:00", BASE + 1),
        (b"2026-01-01T01:00:00.5+01:00", BASE + SECOND // 2),
        (b"2026-01-01T00:00:07Z", BASE + 7 * SECOND),
        (b"2025-12-31T19:00:00.123456789-05:00", BASE + 123_456_789),
    ],
)
def test_times_are_read_with_every_zone_and_precision(text: bytes, expected: int) -> None:
    assert logs.parse_time(text) == expected


def test_pieces_of_a_line_are_joined_for_each_stream_by_itself() -> None:
    joiner = Joiner()
    lines = [
        joiner.feed(text.encode().removesuffix(b"\n"))
        for text in (
            record(1, "one ", tag="P"),
            record(1, "other", stream="stderr"),
            record(2, "line"),
        )
    ]
    assert lines == [
        None,
        LogLine(BASE + 1 * SECOND + SECOND // 2, "stderr", b"other"),
        LogLine(BASE + 2 * SECOND + SECOND // 2, "stdout", b"one line"),
    ]


def test_an_endless_line_is_given_out_in_pieces() -> None:
    joiner = Joiner()
    text = record(1, "x" * 8192, tag="P").encode().strip()
    found = [line for _ in range(2 * logs.MAX_LINE // 8192) if (line := joiner.feed(text)) is not None]
    assert [len(line.line) for line in found] == [logs.MAX_LINE, logs.MAX_LINE]


@pytest.mark.parametrize("broken", [b"", b"stdout F x", b"yesterday stdout F x", b"2026-01-01T00:00:00Z nowhere F x"])
def test_what_is_no_record_is_left_out(broken: bytes) -> None:
    assert Joiner().feed(broken) is None


async def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert await collect(tmp_path / "log") == []
    assert await collect(tmp_path / "none" / "log", follow=True) == []
    assert await logs.last_line(tmp_path / "log") == ""


@pytest.mark.parametrize("count", [0, 1, 2, 5, 900, 5000])
async def test_the_tail_has_exactly_so_many_lines_also_over_chunks(tmp_path: Path, count: int) -> None:
    path = tmp_path / "log"
    text = [record(1, f"{number} " + "y" * 300, tag="P") + record(1, f"end {number}") for number in range(1000)]
    path.write_text("".join(text))
    assert path.stat().st_size > 4 * logs.CHUNK
    found = await collect(path, tail=count)
    assert [line.rsplit(" ", 1)[1] for line in found] == [str(n) for n in range(max(0, 1000 - count), 1000)]
    assert all(line.startswith(line.rsplit(" ", 1)[1] + " yy") for line in found), (
        "pieces of the first line are missing"
    )


async def test_since_and_until_bound_the_time(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(record(second, str(second)) for second in range(5)))
    half = SECOND // 2
    assert await collect(path, since_ns=BASE + SECOND + half, until_ns=BASE + 3 * SECOND + half) == ["1", "2", "3"]


async def test_the_tail_counts_what_the_time_leaves(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(record(second, str(second)) for second in range(9)))
    half = SECOND // 2
    assert await collect(path, tail=2, until_ns=BASE + 4 * SECOND) == ["2", "3"]
    assert await collect(path, tail=2, until_ns=BASE + 4 * SECOND + half) == ["3", "4"], "the bound is included"
    assert await collect(path, tail=2, since_ns=BASE + 4 * SECOND, until_ns=BASE + 5 * SECOND) == ["4"]
    assert await collect(path, tail=20, since_ns=BASE + 2 * SECOND, until_ns=BASE + 5 * SECOND) == ["2", "3", "4"]
    assert await collect(path, tail=0, until_ns=BASE + 4 * SECOND) == []
    assert await collect(path, tail=2, until_ns=BASE) == []
    assert await collect(path, tail=2, until_ns=BASE + 60 * SECOND) == ["7", "8"]
    assert await collect(path, tail=2, until_ns=BASE + 4 * SECOND, follow=True) == ["2", "3"], "what follows is later"


async def test_the_tail_before_a_time_that_lies_many_chunks_back(tmp_path: Path) -> None:
    path = tmp_path / "log"
    early = [record(1, "x" * 300, tag="P") + record(1, f" early {number}") for number in range(500)]
    path.write_text("".join(early) + "".join(record(2, "late " + "y" * 300) for _ in range(3000)))
    found = await collect(path, tail=3, until_ns=BASE + 2 * SECOND)
    assert found == ["x" * 300 + f" early {number}" for number in (497, 498, 499)]


async def test_the_tail_until_a_time_goes_on_over_a_new_file(tmp_path: Path) -> None:
    """As the monitor does it at its limit: what was before is gone, what comes is counted as written after the tail."""
    path, ended = tmp_path / "log", asyncio.Event()
    path.write_text(record(1, "one") + record(2, "two"))
    lines = logs.read(path, tail=1, until_ns=BASE + 4 * SECOND, follow=True, ended=ended)
    assert (await anext(lines)).line == b"two"
    new = tmp_path / "log.tmp"
    new.write_text(record(3, "three") + record(4, "four"))
    new.rename(path)
    assert [line.line async for line in lines] == [b"three"], "four is later, and ends it"
    assert await collect(path, tail=5, until_ns=BASE + 4 * SECOND) == ["three"]


async def test_following_goes_on_over_a_new_file_and_ends_with_the_container(tmp_path: Path) -> None:
    path, ended = tmp_path / "log", asyncio.Event()
    path.write_text(record(1, "old") + record(1, "first"))
    lines = logs.read(path, tail=1, follow=True, ended=ended)
    assert (await anext(lines)).line == b"first"

    with path.open("a") as stream:
        stream.write(record(2, "second") + "2026-01-01T00:00:03.0+00:00 stdout F th")
    assert (await anext(lines)).line == b"second"
    with path.open("a") as stream:
        stream.write("ird\n")
    assert (await anext(lines)).line == b"third"

    # as the monitor does at its limit
    new = tmp_path / "log.tmp"
    new.write_text(record(4, "fourth"))
    new.rename(path)
    assert (await anext(lines)).line == b"fourth"

    with path.open("a") as stream:
        stream.write(record(5, "last words"))
    ended.set()
    assert [line.line async for line in lines] == [b"last words"]


async def test_following_waits_for_a_log_that_comes_later_and_ends_with_its_directory(tmp_path: Path) -> None:
    directory = tmp_path / "container"
    directory.mkdir()
    lines = logs.read(directory / "log", follow=True)
    waiting = asyncio.ensure_future(anext(lines))
    await asyncio.sleep(0)
    (directory / "log").write_text(record(1, "hello"))
    assert (await waiting).line == b"hello"
    (directory / "log").unlink()
    directory.rmdir()
    assert [line async for line in lines] == []


async def test_the_last_line_is_the_last_one_that_says_something(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(record(1, "listening") + record(2, "panic: no database", stream="stderr") + record(2, ""))
    assert await logs.last_line(path) == "panic: no database"


async def test_following_ends_where_the_watch_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """swarmd had no descriptor left: each log that somebody followed kept a processor busy without waiting."""
    (tmp_path / "log").write_text("")
    waits = 0

    async def refused(_: int) -> None:
        nonlocal waits
        waits += 1
        assert waits < 100
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(inotify, "readable", refused)
    with pytest.raises(ResourceExhausted, match="cannot be followed any longer: Too many open files"):
        async with asyncio.timeout(1):
            await collect(tmp_path / "log", follow=True)
    assert waits == 1
