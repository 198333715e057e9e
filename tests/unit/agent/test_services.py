"""Images and logs as the node serves them."""

from __future__ import annotations

import asyncio
import errno
import gzip
import io
import json
import tarfile
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
from swarm.clock import ManualClock
from swarm.errors import InvalidArgument, ResourceExhausted
from swarm.v1 import node_pb2 as node

from agent.services import archives, logs
from agent.services.images import ImagesService
from agent.services.logs import NodeAgentService, TaskLog, following, merged
from tests.support.nesting import nest
from tests.unit.agent.fakes import FakeImages


async def pieces(*items: Any) -> AsyncIterator[Any]:
    for item in items:
        yield item


async def collected(answers: AsyncIterator[Any]) -> list[Any]:
    return [answer async for answer in answers]


def tar_of(*members: tuple[str, bytes | str], more: dict[str, str] | None = None) -> bytes:
    """Bytes are contents, a string is what a symbolic link leads to. `more`: extended headers of each."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.pax_headers = more or {}
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def service(tmp_path: Path) -> tuple[ImagesService, FakeImages]:
    images = FakeImages()
    return ImagesService(images, tmp_path, lambda digest: 2), images


async def test_pruning_tells_what_went_and_how_much_that_was(tmp_path: Path) -> None:
    serve, images = service(tmp_path)
    answer = await serve.Prune(node.PruneImagesRequest(all=True), None)
    assert images.calls == ["prune every=True"]
    assert [(image.id, list(image.names)) for image in answer.removed] == [("sha256:id", ["web"])]
    assert answer.reclaimed_bytes == 7


async def test_an_image_is_shown_with_its_containers_and_gets_a_name(tmp_path: Path) -> None:
    serve, images = service(tmp_path)
    answer = await serve.Inspect(node.InspectImageRequest(reference="web"), None)
    assert (answer.image.id, answer.image.containers, answer.architecture, answer.os) == (
        "sha256:id",
        2,
        "amd64",
        "linux",
    )
    assert list(answer.layers) == ["sha256:l"] and json.loads(answer.config) == {"Cmd": ["sh"]}
    tagged = await serve.Tag(node.TagImageRequest(source="web", target="shop"), None)
    assert images.calls == ["tag web shop"]
    assert (tagged.image_id, tagged.reference) == ("sha256:id", "docker.io/library/shop:latest")


async def test_a_build_unpacks_its_context_builds_pushes_and_leaves_nothing(tmp_path: Path) -> None:
    serve, images = service(tmp_path)
    context = tar_of(("Containerfile", b"FROM scratch"), ("app/run", b"x"))
    half = len(context) // 2
    answers = await collected(
        serve.Build(
            pieces(
                node.BuildRequest(options=node.BuildRequest.Options(tags=["web"], push=True)),
                node.BuildRequest(context=context[:half]),
                node.BuildRequest(context=context[half:]),
            ),
            None,
        )
    )
    assert images.calls == ["build ['Containerfile', 'app'] ['web']", "push web", "ensure web", "ensure web"]
    assert answers[-2].line == "pushed docker.io/library/web:latest@sha256:in-the-registry"
    assert answers[-1].digest == "sha256:digest"
    assert list((tmp_path / "uploads").iterdir()) == []


async def test_a_push_names_the_digest_that_others_can_pull(tmp_path: Path) -> None:
    serve, _ = service(tmp_path)
    answers = await collected(serve.Push(node.ImageRequest(reference="web"), None))
    assert answers[0].line == "pushing web"
    assert (answers[-1].reference, answers[-1].digest) == ("docker.io/library/web:latest", "sha256:in-the-registry")


@pytest.mark.parametrize(
    "members",
    [[("../evil", b"x")], [("/etc/evil", b"x"), ("link", "/etc/passwd")], [("link", "../../outside")]],
)
async def test_a_context_that_leads_outside_is_refused(
    tmp_path: Path, members: Iterable[tuple[str, bytes | str]]
) -> None:
    serve, images = service(tmp_path)
    with pytest.raises(InvalidArgument):
        await collected(
            serve.Build(
                pieces(
                    node.BuildRequest(options=node.BuildRequest.Options(tags=["web"])),
                    node.BuildRequest(context=tar_of(*members)),
                ),
                None,
            )
        )
    assert images.calls == []
    assert list((tmp_path / "uploads").iterdir()) == []


async def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    serve, _ = service(tmp_path)
    with pytest.raises(InvalidArgument, match="not a tar archive"):
        await collected(
            serve.Build(
                pieces(
                    node.BuildRequest(options=node.BuildRequest.Options(tags=["web"])),
                    node.BuildRequest(context=b"no tar at all" * 100),
                ),
                None,
            )
        )


@pytest.mark.parametrize(
    ("context", "sentence"),
    [
        (gzip.compress(tar_of(("run", bytes(range(256)) * 64)), 0)[:-9000], "cut short"),
        (tar_of(("run", b"x"), more={"path": "a\0b"}), "null byte"),
        (tar_of(("run", b"x"), more={"mtime": "1e400"}), "out of range"),
    ],
)
def test_a_damaged_context_is_refused_in_a_sentence(context: bytes, sentence: str, tmp_path: Path) -> None:
    """A build whose compressed context was cut short on its way, or was made by an odd program: an internal error, with a
    traceback in swarmd's log."""
    archive = tmp_path / "context.tar"
    archive.write_bytes(context)
    with pytest.raises(InvalidArgument, match=sentence):
        archives.extract_context(archive, tmp_path / "unpacked")


async def test_an_upload_is_bounded(tmp_path: Path) -> None:
    with pytest.raises(ResourceExhausted):
        await archives.receive(pieces(b"x" * 10, b"x" * 10), tmp_path / "file", 15)


@pytest.mark.parametrize("piece", [b"x" * 10, b"x" * (1 << 20)])
async def test_an_upload_onto_a_full_disk_says_so(
    piece: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`image load` onto a disk that its last bytes did not fit on, or that was full before: an internal error."""
    with pytest.raises(ResourceExhausted, match="the disk is full: /dev/full"):
        await archives.receive(pieces(piece, piece), Path("/dev/full"), 1 << 30)

    def full(**_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(ResourceExhausted, match="the disk is full"):
        async with archives.scratch(tmp_path):
            pass


async def test_an_upload_of_directories_however_deep_is_removed(tmp_path: Path) -> None:
    """A build context that nested a thousand directories stayed on the disk, and the build ended with "failed unexpectedly"."""
    async with archives.scratch(tmp_path) as directory:
        nest(directory, 1500)
    assert list(tmp_path.iterdir()) == []


async def test_an_import_names_its_image(tmp_path: Path) -> None:
    serve, images = service(tmp_path)
    options = node.ImportRequest.Options(reference="base", changes=['CMD ["sh"]'])
    answers = await collected(
        serve.Import(pieces(node.ImportRequest(options=options), node.ImportRequest(archive=b"tar")), None)
    )
    assert images.calls[0] == "import base b'tar' ['CMD [\"sh\"]']"
    assert answers[-1].image_id == "sha256:id"


async def test_a_stream_without_options_is_refused(tmp_path: Path) -> None:
    serve, _ = service(tmp_path)
    for messages in ([], [node.ImportRequest(archive=b"x")]):
        with pytest.raises(InvalidArgument):
            await collected(serve.Import(pieces(*messages), None))


async def test_saved_archives_come_in_pieces_below_the_message_limit(tmp_path: Path) -> None:
    serve, _ = service(tmp_path)
    answers = await collected(serve.Save(node.SaveImageRequest(references=["web"]), None))
    assert sum(len(answer.data) for answer in answers) == 3_000_000
    assert max(len(answer.data) for answer in answers) <= 1 << 20
    assert list((tmp_path / "uploads").iterdir()) == []


# --------------------------------------------------------------------------------------------------------------- logs


def write(path: Path, *lines: tuple[int, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        for second, text in lines:
            stream.write(f"2026-01-01T00:00:{second:02d}.000000000+00:00 stdout F {text}\n")


def log_of(tmp_path: Path, task_id: str) -> TaskLog:
    return TaskLog(task_id, f"web.{task_id}", "n1", tmp_path / task_id / "log", asyncio.Event())


NOW = 1_767_225_600 + 3600  # an hour after the lines


async def test_logs_are_merged_by_time(tmp_path: Path) -> None:
    first, second = log_of(tmp_path, "a"), log_of(tmp_path, "b")
    write(first.path, (1, "one"), (4, "four"))
    write(second.path, (2, "two"), (3, "three"), (5, "five"))
    records = await collected(merged([first, second], tail=None, since=None, until=NOW * 10**9))
    assert [record.line for record in records] == [b"one", b"two", b"three", b"four", b"five"]
    assert [record.task_name for record in records[:2]] == ["web.a", "web.b"]


async def test_tail_counts_for_each_task(tmp_path: Path) -> None:
    first, second = log_of(tmp_path, "a"), log_of(tmp_path, "b")
    write(first.path, (1, "one"), (4, "four"))
    write(second.path, (2, "two"), (3, "three"))
    records = await collected(merged([first, second], tail=1, since=None, until=NOW * 10**9))
    assert [record.line for record in records] == [b"three", b"four"]


async def test_following_ends_with_the_tasks(tmp_path: Path) -> None:
    log = log_of(tmp_path, "a")
    write(log.path, (1, "before"))
    since = (1_767_225_600 + 2) * 10**9
    reader = following([log], since, None)
    first = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    write(log.path, (3, "after"))
    async with asyncio.timeout(10):
        assert (await first).line == b"after"
        log.ended.set()
        with pytest.raises(StopAsyncIteration):
            await anext(reader)


async def test_a_reader_that_goes_while_much_is_written_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`service logs --follow` of a container that writes faster than it is read was ended with Ctrl-C: swarmd kept the call,
    with the lines that waited, until its own end."""
    monkeypatch.setattr(logs, "QUEUE_LINES", 2)
    log = log_of(tmp_path, "a")
    write(log.path, *((second, f"line {second}") for second in range(10)))
    following_lines = following([log], 0, None)
    assert (await anext(following_lines)).line == b"line 0"
    await asyncio.sleep(0.05)  # the queue is full again
    async with asyncio.timeout(5):
        await following_lines.aclose()


async def test_a_log_that_cannot_be_followed_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`service logs --follow` of more tasks of one host than it may watch directories: an internal error, instead of which
    setting is to be raised."""

    def refused(_: Path) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("agent.runtime.logs.DirectoryWatch", refused)
    log = log_of(tmp_path, "a")
    with pytest.raises(ResourceExhausted, match="max_user_instances"):
        await collected(following([log, log], 0, None))


async def test_a_task_that_is_not_here_is_noted(tmp_path: Path) -> None:
    serve = NodeAgentService(lambda task_id: None, lambda task_id: tmp_path / task_id, ManualClock(NOW))
    (record,) = await collected(serve.TaskLogs(node.TaskLogsRequest(task_ids=["t9"], tail=-1), None))
    assert record.task_id == "t9" and "no log" in record.notice
