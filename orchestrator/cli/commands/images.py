"""`swarmctl image pull | push | ls | rm | prune | import | load | save`: images of one host, through its node daemon."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from swarm.errors import InvalidArgument, SwarmError
from swarm.v1 import control_pb2 as control
from swarm.v1 import node_pb2 as node

from orchestrator.cli import output, words
from orchestrator.cli.invocation import for_each, session
from orchestrator.cli.lazy import takes
from orchestrator.cli.messages import as_json
from orchestrator.cli.output import Cell, ListOptions
from orchestrator.cli.session import Session

TRANSFER_TIMEOUT = 3600.0  # seconds for moving or building an image, as large as it may be
PRUNE_TIMEOUT = 600.0
CHUNK = 1 << 20
NO_NAME = "<none>"
COLUMNS = ("REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE")

Images = Annotated[list[str], typer.Argument(metavar="IMAGE…", help="NAME[:TAG]")]
Credentials = Annotated[
    str | None, typer.Option("--creds", metavar="USER:PASSWORD", help="Login (default: that of docker's config file)")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only")]
Push = Annotated[
    bool | None,
    typer.Option("--push/--no-push", help="Send it to the registry (default: where the swarm has one of its own)"),
]


def show(answers: Iterable[node.ImageProgress], quiet: bool) -> node.ImageProgress:
    """Prints progress as it comes, and returns the last answer, which has the result."""
    last = node.ImageProgress()
    for answer in answers:
        if answer.line and not quiet:
            output.note(answer.line)
        if answer.image_id or answer.digest or answer.reference:
            last = answer
    return last


def pull(context: typer.Context, images: Images, creds: Credentials = None, quiet: Quiet = False) -> None:
    """Fetch images from a registry."""
    caller = session(context).images()

    def pull_one(reference: str) -> None:
        request = node.ImageRequest(reference=reference, registry_auth=registry_auth(reference, creds))
        last = show(caller.stream(lambda stub: stub.Pull, lambda: request, timeout=TRANSFER_TIMEOUT), quiet)
        output.line(pinned(last.reference or reference, last.digest))

    for_each(images, pull_one)


def push(context: typer.Context, images: Images, creds: Credentials = None, quiet: Quiet = False) -> None:
    """Send images to a registry."""
    caller = session(context).images()

    def push_one(reference: str) -> None:
        request = node.ImageRequest(reference=reference, registry_auth=registry_auth(reference, creds))
        last = show(caller.stream(lambda stub: stub.Push, lambda: request, timeout=TRANSFER_TIMEOUT), quiet)
        output.line(pinned(last.reference or reference, last.digest))

    for_each(images, push_one)


def pinned(reference: str, digest: str) -> str:
    """The reference with the digest, unless it has one already."""
    return f"{reference}@{digest}" if digest and "@" not in reference else reference


def registry_auth(reference: str, creds: str | None, home: Path | None = None) -> str:
    """`user:password` in base64, from --creds or from docker's config file; empty where there is none."""
    if creds is not None:
        if ":" not in creds:
            raise InvalidArgument("--creds needs USER:PASSWORD")
        return base64.b64encode(creds.encode()).decode()
    first, slash, _ = reference.partition("/")
    registry = first if slash and ("." in first or ":" in first or first == "localhost") else ""
    directory = Path(os.environ.get("DOCKER_CONFIG") or (home or Path.home()) / ".docker")
    try:
        logins = json.loads((directory / "config.json").read_text()).get("auths", {})
        return str(logins.get(registry or "https://index.docker.io/v1/", {}).get("auth", ""))
    except (OSError, ValueError, AttributeError):
        return ""  # no such file, or one that is not for us


@takes(ListOptions)
def ls(context: typer.Context, *, options: ListOptions) -> None:
    """List the images of a host."""
    answer = session(context).images().call(lambda stub: stub.List, node.ListImagesRequest(), timeout=60.0)
    if options.format == "json" or options.quiet:
        output.print_list(
            options,
            COLUMNS,
            list(answer.images),
            row=lambda _: (),
            identity=lambda image: words.short_id(image.id, options.no_trunc),
            document=as_json,
        )
        return
    rows = [row for image in answer.images for row in image_rows(image, options.no_trunc)]
    output.table(COLUMNS, sorted(rows, key=lambda row: [cell.text if isinstance(cell, Cell) else cell for cell in row]))


def image_rows(image: node.ImageInfo, whole: bool) -> Iterator[list[str | Cell]]:
    """A line for each name of an image, one with <none> where it has no name, or only that of its digest."""
    names = [split_name(name) for name in image.names or [""]]
    tagged = {repository for repository, tag in names if tag != NO_NAME}
    for repository, tag in dict.fromkeys(names):
        if tag == NO_NAME and repository in tagged:
            continue
        created = words.ago(output.since(image.created_at)) if image.HasField("created_at") else ""
        yield [Cell(repository, "bold"), tag, words.short_id(image.id, whole), created, words.size(image.size_bytes)]


def split_name(name: str) -> tuple[str, str]:
    """Repository and tag."""
    bare = name.partition("@")[0]
    repository, colon, tag = bare.rpartition(":")
    if not colon or "/" in tag:
        repository, tag = bare, ""
    return repository or NO_NAME, tag or NO_NAME


def rm(
    context: typer.Context,
    images: Images,
    force: Annotated[bool, typer.Option("--force", "-f", help="Even if it has other names or is in use")] = False,
) -> None:
    """Remove images from a host."""
    caller = session(context).images()

    def remove(reference: str) -> None:
        request = node.RemoveImageRequest(reference=reference, force=force)
        answer = caller.call(lambda stub: stub.Remove, request, timeout=60.0)
        output.line(answer.image_id or reference)

    for_each(images, remove)


def prune(
    context: typer.Context,
    every: Annotated[
        bool, typer.Option("--all", "-a", help="All images that no container stands on, not only those without a tag")
    ] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Do not ask")] = False,
) -> None:
    """Remove the images of a host that nobody needs."""
    kind = "all images that no container of this host stands on" if every else "all images without a tag"
    if not force and sys.stdin.isatty() and not typer.confirm(f"This removes {kind}. Go on?", err=True):
        raise typer.Exit(1)
    request = node.PruneImagesRequest(all=every)
    answer = session(context).images().call(lambda stub: stub.Prune, request, timeout=PRUNE_TIMEOUT)
    for image in answer.removed:
        for name in image.names:
            output.line(f"untagged: {name}")
        output.line(f"deleted: {image.id}")
    output.line(f"Total reclaimed space: {words.size(answer.reclaimed_bytes)}")


def import_(
    context: typer.Context,
    archive: Annotated[str, typer.Argument(metavar="FILE|-", help="Root filesystem as tar; - reads stdin")],
    reference: Annotated[str, typer.Argument(metavar="IMAGE", help="NAME[:TAG] of the new image")],
    *,
    change: Annotated[
        list[str] | None, typer.Option("--change", "-c", metavar="INSTRUCTION", help='As CMD ["sh"] or ENV A=b')
    ] = None,
    push: Push = None,
    quiet: Quiet = False,
) -> None:
    """Make an image from a root filesystem (tar)."""
    made = session(context)
    caller = made.images()
    pushed = has_own_registry(made) if push is None else push
    with opened(archive) as stream:

        def requests() -> Iterator[node.ImportRequest]:
            yield node.ImportRequest(
                options=node.ImportRequest.Options(reference=reference, changes=change or (), push=pushed)
            )
            for chunk in chunks(stream):
                yield node.ImportRequest(archive=chunk)

        last = show(caller.send_stream(lambda stub: stub.Import, requests(), timeout=TRANSFER_TIMEOUT), quiet)
    output.line(last.image_id or last.reference or reference)


def load(
    context: typer.Context,
    archive: Annotated[
        str, typer.Option("--input", "-i", metavar="FILE", help="Archive as `image save` writes it (default: stdin)")
    ] = "-",
    quiet: Quiet = False,
) -> None:
    """Read images from an archive."""
    caller = session(context).images()
    with opened(archive) as stream:
        requests = (node.ImageChunk(data=chunk) for chunk in chunks(stream))
        for answer in caller.send_stream(lambda stub: stub.Load, requests, timeout=TRANSFER_TIMEOUT):
            name = answer.reference or answer.image_id
            if name:
                output.line(name if quiet else f"Loaded image: {name}")


def save(
    context: typer.Context,
    images: Images,
    archive: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="Where to write (default: stdout)")
    ] = "-",
) -> None:
    """Write images to an archive."""
    if archive == "-" and sys.stdout.isatty():
        raise InvalidArgument("an archive would not look good in a terminal; name a file with --output, or use a pipe")
    request = node.SaveImageRequest(references=images)
    received = session(context).images().stream(lambda stub: stub.Save, lambda: request, timeout=TRANSFER_TIMEOUT)
    if archive == "-":
        for chunk in received:
            sys.stdout.buffer.write(chunk.data)
        sys.stdout.buffer.flush()
        return
    # A half-written archive never gets the name that was asked for.
    unfinished = Path(f"{archive}.part")
    try:
        with unfinished.open("wb") as stream:
            for chunk in received:
                stream.write(chunk.data)
        unfinished.replace(archive)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """A file to read, or stdin for `-`."""
    if path == "-":
        if sys.stdin.isatty():
            raise InvalidArgument("no archive: name a file, or send one through a pipe")
        yield sys.stdin.buffer
        return
    try:
        stream = Path(path).open("rb")  # noqa: SIM115 – closed below
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error
    with stream:
        yield stream


def chunks(stream: BinaryIO) -> Iterator[bytes]:
    """What is in a file, in pieces that fit into a message."""
    while chunk := stream.read(CHUNK):
        yield chunk


def has_own_registry(made: Session) -> bool:
    """Whether short names of images mean a registry of the swarm's own: then a new image goes there at once."""
    try:
        answer = made.control().call(lambda stub: stub.GetCluster, control.GetClusterRequest(), timeout=3.0)
    except SwarmError:
        return False  # a worker, or no swarm: the image stays on this host
    return bool(answer.cluster.spec.default_registry)
