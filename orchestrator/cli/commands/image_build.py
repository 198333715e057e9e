"""`swarmctl image build`: packs a directory and has the node daemon build it.

The directory is packed by a thread into a pipe while it is sent, so that it is never held in memory; what
`.containerignore` or `.dockerignore` names stays behind.
"""

from __future__ import annotations

import os
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from swarm.errors import InvalidArgument
from swarm.v1 import node_pb2 as node

from orchestrator.cli import output
from orchestrator.cli.commands.images import CHUNK, TRANSFER_TIMEOUT, Push, chunks, has_own_registry, show
from orchestrator.cli.invocation import session
from orchestrator.cli.lazy import takes
from orchestrator.cli.parsing.fields import environment
from orchestrator.cli.parsing.ignore import Ignored

IGNORE_FILES = (".containerignore", ".dockerignore")
BUILD_FILES = ("Containerfile", "Dockerfile")


@dataclass
class BuildFlags:
    """The flags of `image build`."""

    tag: Annotated[list[str] | None, typer.Option("--tag", "-t", metavar="NAME[:TAG]", help="Name of the image")] = None
    file: Annotated[
        str | None, typer.Option("--file", "-f", metavar="FILE", help="Default: DIR/Containerfile, DIR/Dockerfile")
    ] = None
    build_arg: Annotated[
        list[str] | None, typer.Option("--build-arg", metavar="NAME=VALUE", help="Value for an ARG of the file")
    ] = None
    target: Annotated[str, typer.Option("--target", metavar="STAGE", help="Build up to this stage")] = ""
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Run every step anew")] = False
    push: Push = None
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the image's id only")] = False


@takes(BuildFlags)
def build(
    context: typer.Context,
    directory: Annotated[str, typer.Argument(metavar="DIR", help="What the file's COPY refers to")],
    *,
    options: BuildFlags,
) -> None:
    """Build an image from a directory."""
    root = Path(directory)
    if not root.is_dir():
        raise InvalidArgument(f"{directory} is not a directory; name the one with the files to build from")
    file = build_file(root, options.file)
    made = session(context)
    caller = made.images()
    pushed = options.push
    if pushed is None:
        pushed = bool(options.tag) and has_own_registry(made)
    if pushed and not options.tag:
        raise InvalidArgument("--push needs --tag: an image without a name has no place in a registry")
    arguments = environment(options.build_arg or (), os.environ, "--build-arg")
    first = node.BuildRequest(
        options=node.BuildRequest.Options(
            tags=options.tag or (),
            file=file,
            build_args=dict(word.split("=", 1) for word in arguments),
            target=options.target,
            no_cache=options.no_cache,
            push=pushed,
        )
    )

    def requests() -> Iterator[node.BuildRequest]:
        yield first
        for chunk in packed(root, keep={file}):
            yield node.BuildRequest(context=chunk)

    last = show(caller.send_stream(lambda stub: stub.Build, requests(), timeout=TRANSFER_TIMEOUT), options.quiet)
    output.line(last.image_id or last.reference)


def build_file(root: Path, named: str | None) -> str:
    """The path of the build file inside the directory. Raises InvalidArgument."""
    if named is None:
        for name in BUILD_FILES:
            if (root / name).is_file():
                return name
        raise InvalidArgument(f"{root} has neither a {' nor a '.join(BUILD_FILES)}; name the build file with --file")
    for candidate in (Path(named), root / named):
        if candidate.is_file():
            try:
                return str(candidate.resolve().relative_to(root.resolve()))
            except ValueError as error:
                raise InvalidArgument(f"--file {named} lies outside of {root}; only files in it are sent") from error
    raise InvalidArgument(f"--file {named} does not exist")


def packed(root: Path, keep: set[str]) -> Iterator[bytes]:
    """The directory as tar, in chunks. `keep` is packed whatever the ignore file says."""
    read_end, write_end = os.pipe()
    failures: list[BaseException] = []

    def pack() -> None:
        try:
            with os.fdopen(write_end, "wb") as sink, tarfile.open(fileobj=sink, mode="w|", bufsize=CHUNK) as archive:
                for path in contents(root, keep):
                    archive.add(root / path, arcname=path, recursive=False)
        except BrokenPipeError:
            pass  # nobody reads on: the call has ended
        except (OSError, tarfile.TarError) as error:
            failures.append(error)

    packer = threading.Thread(target=pack, name="pack", daemon=True)
    packer.start()
    with os.fdopen(read_end, "rb") as source:
        yield from chunks(source)
    packer.join()
    if failures:
        raise InvalidArgument(f"{root} cannot be packed: {failures[0]}")


def contents(root: Path, keep: set[str]) -> Iterator[str]:
    """The relative paths to pack, directories before what is in them, in a stable order."""
    ignored = Ignored(read_ignore_file(root))
    for directory, names, files in os.walk(root):
        here = Path(directory)
        for name in sorted([*files, *names]):
            path = str((here / name).relative_to(root))
            if not ignored.covers(path) or path in keep:
                yield path
        # What `!` takes back may lie in an ignored directory; without such a pattern it need not be walked.
        names[:] = sorted(
            name
            for name in names
            if not (here / name).is_symlink()
            and (ignored.has_exceptions or not ignored.covers(str((here / name).relative_to(root))) or keep)
        )


def read_ignore_file(root: Path) -> list[str]:
    for name in IGNORE_FILES:
        if (root / name).is_file():
            lines = (root / name).read_text(errors="replace").splitlines()
            return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    return []
