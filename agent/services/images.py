"""The service `Images`: builds, pulls, pushes and moves images on this node, for its own socket and for managers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from swarm.clock import timestamp
from swarm.errors import InvalidArgument
from swarm.v1 import node_pb2 as node
from swarm.v1.node_pb2_grpc import ImagesServicer

from agent.images.interface import ImageStore, StoredImage
from agent.images.reference import is_image_id
from agent.services import archives

CHUNK_BYTES = 1 << 20


class ImagesService(ImagesServicer):
    """`containers_of` counts the containers that were made of an image digest."""

    def __init__(self, images: ImageStore, state: Path, containers_of: Callable[[str], int]) -> None:
        self._images = images
        self._uploads = state / "uploads"
        self._containers_of = containers_of

    async def Build(
        self, requests: AsyncIterator[node.BuildRequest], context: Any
    ) -> AsyncIterator[node.ImageProgress]:
        options = (await _first(requests)).options
        if not options.tags:
            raise InvalidArgument("a build needs at least one name for its image; give it with --tag")
        async with archives.scratch(self._uploads) as directory:
            archive, unpacked = directory / "context.tar", directory / "context"
            await archives.receive(_pieces(requests, "context"), archive, archives.MAX_CONTEXT_BYTES)
            unpacked.mkdir()
            await asyncio.to_thread(archives.extract_context, archive, unpacked)
            archive.unlink()
            async with self._images.holding():
                async for line in self._images.build(
                    unpacked,
                    tags=list(options.tags),
                    file=options.file,
                    build_args=dict(options.build_args),
                    target=options.target,
                    no_cache=options.no_cache,
                ):
                    if not is_image_id(line):  # which the last message names
                        yield node.ImageProgress(line=line)
                async for message in self._pushed_and_named(list(options.tags), options.push):
                    yield message

    async def _pushed_and_named(self, references: list[str], push: bool) -> AsyncIterator[node.ImageProgress]:
        """Pushes where that is wanted, and ends with what the first reference is now."""
        if push:
            for reference in references:
                async for message in self._pushed(reference):
                    yield message
        yield await self._named(references[0])

    async def _pushed(self, reference: str, auth: str = "") -> AsyncIterator[node.ImageProgress]:
        """What is said of a push, at last the digest in the registry: of compressed layers, so another than here."""
        digest = ""
        async for line in self._images.push(reference, auth):
            if digest:
                yield node.ImageProgress(line=digest)
            digest = line
        image = await self._images.ensure(reference)
        yield node.ImageProgress(
            line=f"pushed {image.reference}@{digest}", image_id=image.id, digest=digest, reference=image.reference
        )

    async def _named(self, reference: str) -> node.ImageProgress:
        image = await self._images.ensure(reference)
        return node.ImageProgress(image_id=image.id, digest=image.digest, reference=image.reference)

    async def Pull(self, request: node.ImageRequest, context: Any) -> AsyncIterator[node.ImageProgress]:
        async for line in self._images.pull(request.reference, request.registry_auth):
            yield node.ImageProgress(line=line)
        yield await self._named(request.reference)

    async def Push(self, request: node.ImageRequest, context: Any) -> AsyncIterator[node.ImageProgress]:
        async for message in self._pushed(request.reference, request.registry_auth):
            yield message

    async def List(self, request: node.ListImagesRequest, context: Any) -> node.ListImagesResponse:
        return node.ListImagesResponse(images=[self._counted(image) for image in await self._images.images()])

    def _counted(self, image: StoredImage) -> node.ImageInfo:
        return _information(image, self._containers_of(image.digest) if image.digest else 0)

    async def Inspect(self, request: node.InspectImageRequest, context: Any) -> node.InspectImageResponse:
        details = await self._images.inspect(request.reference)
        return node.InspectImageResponse(
            image=self._counted(details.image),
            architecture=details.architecture,
            os=details.system,
            layers=details.layers,
            config=json.dumps(details.config),
        )

    async def Tag(self, request: node.TagImageRequest, context: Any) -> node.TagImageResponse:
        image_id, reference = await self._images.tag(request.source, request.target)
        return node.TagImageResponse(image_id=image_id, reference=reference)

    async def Remove(self, request: node.RemoveImageRequest, context: Any) -> node.RemoveImageResponse:
        return node.RemoveImageResponse(image_id=await self._images.remove(request.reference, force=request.force))

    async def Prune(self, request: node.PruneImagesRequest, context: Any) -> node.PruneImagesResponse:
        pruned = await self._images.prune(every=request.all)
        removed = [_information(image, 0) for image in pruned.images]
        return node.PruneImagesResponse(removed=removed, reclaimed_bytes=pruned.reclaimed_bytes)

    async def Import(
        self, requests: AsyncIterator[node.ImportRequest], context: Any
    ) -> AsyncIterator[node.ImageProgress]:
        options = (await _first(requests)).options
        if not options.reference:
            raise InvalidArgument("the imported image needs a name")
        async with archives.scratch(self._uploads) as directory:
            archive = directory / "rootfs.tar"
            await archives.receive(_pieces(requests, "archive"), archive, archives.MAX_ARCHIVE_BYTES)
            yield node.ImageProgress(line=f"importing {options.reference}")
            async with self._images.holding():
                await self._images.import_archive(archive, options.reference, list(options.changes))
                async for message in self._pushed_and_named([options.reference], options.push):
                    yield message

    async def Load(self, requests: AsyncIterator[node.ImageChunk], context: Any) -> AsyncIterator[node.ImageProgress]:
        async with archives.scratch(self._uploads) as directory:
            archive = directory / "images.tar"
            await archives.receive(_data(requests), archive, archives.MAX_ARCHIVE_BYTES)
            for reference in await self._images.load(archive):
                yield node.ImageProgress(line=f"loaded {reference}", reference=reference)

    async def Save(self, request: node.SaveImageRequest, context: Any) -> AsyncIterator[node.ImageChunk]:
        if not request.references:
            raise InvalidArgument("name at least one image to save")
        async with archives.scratch(self._uploads) as directory:
            archive = directory / "images.tar"
            await self._images.save(list(request.references), archive)
            with archive.open("rb") as stream:
                while piece := await asyncio.to_thread(stream.read, CHUNK_BYTES):
                    yield node.ImageChunk(data=piece)

    async def Resolve(self, request: node.ImageRequest, context: Any) -> node.ResolveImageResponse:
        reference, digest = await self._images.resolve(request.reference, request.registry_auth)
        return node.ResolveImageResponse(reference=reference, digest=digest)


def _information(image: StoredImage, containers: int) -> node.ImageInfo:
    return node.ImageInfo(
        id=image.id,
        names=image.names,
        digest=image.digest,
        size_bytes=image.size_bytes,
        created_at=timestamp(image.created_at),
        containers=containers,
    )


async def _first(requests: AsyncIterator[Any]) -> Any:
    """The message with the options, which comes before the data."""
    try:
        first = await anext(requests)
    except StopAsyncIteration as error:
        raise InvalidArgument("nothing was sent") from error
    if first.WhichOneof("part") != "options":
        raise InvalidArgument("the first message must hold the options")
    return first


async def _pieces(requests: AsyncIterator[Any], field: str) -> AsyncIterator[bytes]:
    async for request in requests:
        yield getattr(request, field)


async def _data(requests: AsyncIterator[node.ImageChunk]) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request.data
