"""`swarmctl image inspect | tag`: what an image of a host is made of, and what it is called."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from swarm.v1 import node_pb2 as node

from orchestrator.cli import output
from orchestrator.cli.invocation import inspect_each, session
from orchestrator.cli.lazy import takes
from orchestrator.cli.messages import as_json

Named = Annotated[list[str], typer.Argument(metavar="IMAGE…", help="NAME[:TAG], NAME@DIGEST or id")]


@dataclass
class ImageInspectOptions:
    """The flags of `image inspect`."""

    format: Annotated[str, typer.Option("--format", "-f", metavar="json", help="How to print")] = "json"

    def __post_init__(self) -> None:
        output.check_format(self.format, ("json",))


@takes(ImageInspectOptions)
def inspect(context: typer.Context, images: Named, *, options: ImageInspectOptions) -> None:
    """Show images of a host in full: names, digest, size, platform, layers and configuration."""
    caller = session(context).images()

    def get(reference: str) -> node.InspectImageResponse:
        return caller.call(lambda stub: stub.Inspect, node.InspectImageRequest(reference=reference), timeout=60.0)

    inspect_each(images, get, document=document, pretty=None)


def document(answer: node.InspectImageResponse) -> dict[str, Any]:
    """One object: what `image ls` tells of it, and what its configuration says."""
    return {
        **as_json(answer.image),
        "architecture": answer.architecture,
        "os": answer.os,
        "layers": list(answer.layers),
        "config": json.loads(answer.config or "{}"),
    }


def tag(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="IMAGE", help="NAME[:TAG], NAME@DIGEST or id")],
    target: Annotated[str, typer.Argument(metavar="NAME[:TAG]", help="The further name; `image push` sends it")],
) -> None:
    """Give an image of a host a further name."""
    request = node.TagImageRequest(source=source, target=target)
    answer = session(context).images().call(lambda stub: stub.Tag, request, timeout=60.0)
    output.line(answer.reference)
