"""The image store of a node: buildah for everything that moves or makes images, files and mounts for everything else.

Each operation is one buildah at most, and none where the image is here already: what is stored is read from the store's own
files (`layers`), a container's root filesystem is one mount (`rootfs`), and a registry is asked directly (`registry`).
Two rules hold things together: an image is pulled once however many ask for it at the same time; and layers under a
container's root filesystem are never removed, whoever asks.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import tempfile
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager
from functools import partial
from pathlib import Path

from swarm.errors import InUse, InvalidArgument, NotFound, ResourceExhausted, SwarmError, is_disk_full
from swarm.identity import TlsFiles

from agent.disk import MAKE_ROOM
from agent.images import archives, registry
from agent.images.commands import BUILD_TIMEOUT, PULL_TIMEOUT, RETRY_OPTIONS, Buildah, Explained, check_auth
from agent.images.complaints import explain, explain_build
from agent.images.interface import Image, ImageDetails, Pruned, StoredImage
from agent.images.layers import KEPT, Layers, Record
from agent.images.pruning import Traffic, unneeded
from agent.images.pulls import Pulls, Step, Tell, goes_elsewhere, unreachable, watched
from agent.images.reference import Reference, image_id, parse
from agent.images.rootfs import RootFilesystems, choose_driver

log = logging.getLogger(__name__)

# What buildah says at the end: the id without its algorithm, and each name of the image, also those of earlier builds.
_BARE_ID = re.compile(r"[0-9a-f]{64}")
_TAGGED = "Successfully tagged "
_ID_LENGTH = 64


class BuildahImages:
    """An `ImageStore`. One for each state directory; hosts of a lab on one machine share nothing.

    `tls` is the node's certificate (or the directory with it): it is shown to the default registry, which must be under the
    cluster's authority. `default_registry` is HOST[:PORT] or "", or a function that says it; `use_registry` changes it.
    """

    def __init__(
        self, state_dir: Path, run_dir: Path, tls: TlsFiles | Path, default_registry: str | Callable[[], str] = ""
    ) -> None:
        self._root = state_dir / "images"
        self._rootfs_directory = state_dir / "rootfs"
        self._tls = tls if isinstance(tls, TlsFiles) else TlsFiles(tls)
        self._buildah = Buildah(self._root, run_dir / "images", self._tls)
        self._default_registry = default_registry
        self._store: tuple[Layers, RootFilesystems] | None = None
        self._opening = asyncio.Lock()
        self._pulls = Pulls(self._pull)
        # Between choosing an image and recording that a container stands on it, no image may be removed.
        self._standing = asyncio.Lock()
        self._traffic = Traffic()
        self._builds = 0
        self._tidying = asyncio.Lock()  # what builds left goes as a whole: none may begin meanwhile

    def use_registry(self, name: str) -> None:
        """Sets the default registry: where short names belong."""
        self._default_registry = name

    def _reference(self, text: str) -> Reference:
        chosen = self._default_registry
        self._buildah.default_registry = chosen if isinstance(chosen, str) else chosen()
        return parse(text, self._buildah.default_registry)

    async def _open(self) -> tuple[Layers, RootFilesystems]:
        async with self._opening:
            if self._store is None:
                try:
                    self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
                    self._rootfs_directory.mkdir(parents=True, exist_ok=True, mode=0o711)
                except OSError as error:
                    raise _disk_error(error, self._root) from error
                layers = Layers(self._root, await choose_driver(self._root, self._rootfs_directory))
                self._store = layers, RootFilesystems(self._rootfs_directory, layers)
            return self._store

    # ------------------------------------------------------------------------------------------------- for containers

    async def ensure(self, reference: str, digest: str = "", auth: str = "", tell: Tell = lambda _: None) -> Image:
        """See `ImageStore`. An image that is here is taken without asking the registry, unless another digest is wanted."""
        wanted = self._reference(reference)
        wanted = wanted.with_digest(digest) if digest else wanted
        layers, _ = await self._open()
        record = _find(layers, wanted)
        if record is None:
            await self._pulls.join(wanted, auth, tell)
            record = _find(layers, wanted)
        if record is None:
            raise NotFound(f"image {wanted} was pulled, but is not in the store; another command may have removed it")
        return layers.image(record, str(wanted), wanted.digest)

    async def _pull(self, wanted: Reference, auth: str, tell: Tell) -> None:
        async for step in self._pull_steps(wanted, auth):
            if step.trouble is not None:
                tell(step.trouble)

    def holding(self) -> AbstractAsyncContextManager[None]:
        """See `ImageStore`."""
        return self._traffic.moving()

    async def mount(self, container_id: str, image: Image) -> Path:
        """See `ImageStore`. Raises NotFound where the image was removed meanwhile, ResourceExhausted with the full disk."""
        layers, filesystems = await self._open()
        async with self._standing:
            record = layers.by_id(image.id.removeprefix("sha256:"))
            if record is None:
                raise NotFound(f"image {image.reference} is not on this node any more; it will be pulled again")
            return await filesystems.mount(container_id, record)

    async def unmount(self, container_id: str) -> None:
        layers, filesystems = await self._open()
        await filesystems.unmount(container_id)
        for record in layers.records():
            if record.names and not record.visible_names:
                await self._remove_kept(layers, filesystems, record)

    async def _remove_kept(self, layers: Layers, filesystems: RootFilesystems, record: Record) -> None:
        """An image that was removed while containers stood on it goes with the last of them."""
        async with self._standing:
            try:
                if filesystems.image_users().get(record.id) or layers.by_id(record.id) is None:
                    return
                await self._buildah.run(layers.driver, ["rmi", "--force", record.id], f"image {record.id[:12]}")
            except SwarmError as error:
                log.warning("a removed image stays on the disk: %s", error)

    async def mounted(self) -> set[str]:
        _, filesystems = await self._open()
        return filesystems.ids()

    async def resolve(self, reference: str, auth: str = "") -> tuple[str, str]:
        """See `ImageStore`. For an image of several platforms the digest is that of the list."""
        wanted = self._reference(reference)
        tls = self._tls if wanted.registry == self._buildah.default_registry and self._tls.exists() else None
        credentials = check_auth(auth) if auth else None
        return str(wanted), await registry.manifest_digest(wanted, credentials=credentials, tls=tls)

    # ------------------------------------------------------------------------------------------------------ for people

    async def pull(self, reference: str, auth: str = "") -> AsyncIterator[str]:
        """Always asks the registry. The last line is the image's id, `sha256:…`."""
        wanted = self._reference(reference)
        layers, _ = await self._open()
        async for step in self._pull_steps(wanted, auth):
            if (step.line or step.trouble) and not _BARE_ID.fullmatch(step.line):
                yield step.line or str(step.trouble)
        record = _find(layers, wanted)
        if record is not None:
            yield f"sha256:{record.id}"

    async def _pull_steps(self, wanted: Reference, auth: str) -> AsyncIterator[Step]:
        with self._buildah.auth_file(wanted.registry, auth) as credentials:
            words = ["pull", "--policy", "always", *RETRY_OPTIONS, *self._buildah.policy_options()]
            words += [*self._buildah.registry_options(wanted), *credentials, wanted.pullable]
            said = self._moving(words, f"image {wanted}", PULL_TIMEOUT)
            async with aclosing(watched(said, wanted, partial(self._unreachable, wanted))) as steps:
                async for step in steps:
                    yield step

    async def _moving(
        self,
        words: list[str],
        subject: str,
        timeout: float,
        *,
        environment: Mapping[str, str] | None = None,
        explained: Explained = explain,
    ) -> AsyncGenerator[str, None]:
        """What buildah says while it moves images; nothing is pruned meanwhile."""
        layers, _ = await self._open()
        said = self._buildah.lines(
            layers.driver, words, subject, timeout=timeout, environment=environment, explained=explained
        )
        async with self._traffic.moving(), aclosing(said) as lines:
            async for line in lines:
                yield line

    async def _unreachable(self, wanted: Reference) -> str:
        if goes_elsewhere(self._buildah.host_registries()):
            return ""
        return await unreachable(wanted.registry)

    async def push(self, reference: str, auth: str = "") -> AsyncIterator[str]:
        """The last line is the digest that the registry knows the image by, `sha256:…`."""
        wanted = self._reference(reference)
        layers, _ = await self._open()
        if _find(layers, wanted) is None:
            raise NotFound(f"image {wanted} is not on this node; build or pull it first")
        digest_file = self._buildah.temporary / f"digest-{uuid.uuid4().hex}"
        try:
            with self._buildah.auth_file(wanted.registry, auth) as credentials:
                words = ["push", "--digestfile", str(digest_file), *RETRY_OPTIONS, *self._buildah.policy_options()]
                words += [*self._buildah.registry_options(wanted), *credentials, wanted.pullable]
                words.append(f"docker://{wanted.pullable}")
                async for line in self._moving(words, f"image {wanted}", PULL_TIMEOUT):
                    yield line
            yield digest_file.read_text().strip()
        finally:
            digest_file.unlink(missing_ok=True)

    async def build(
        self, context: Path, *, tags: list[str], file: str, build_args: dict[str, str], target: str, no_cache: bool
    ) -> AsyncIterator[str]:
        """From the instructions in `file` (relative to the context; Containerfile, else Dockerfile, where it is empty).

        The last line is the image's id. Raises InvalidArgument where there are no instructions.
        """
        names = [str(self._reference(tag)) for tag in tags]
        instructions = _instructions(context, file)
        layers, _ = await self._open()
        # Docker's format, because the other one has no health checks
        words = ["build", "--layers", "--format", "docker", "--isolation", "chroot", "--file", str(instructions)]
        words += [*self._buildah.policy_options(), *self._base_image_options()]
        for name in names:
            words += ["--tag", name]
        for key, value in build_args.items():
            words += ["--build-arg", f"{key}={value}"]
        words += ["--target", target] if target else []
        words += ["--no-cache"] if no_cache else []
        subject = f"building {', '.join(names) or context.name}"
        with self._scratch() as scratch:
            id_file = scratch / "id"
            words += ["--iidfile", str(id_file), str(context)]
            async with self._tidying:
                self._builds += 1
            try:
                said = self._moving(
                    words, subject, BUILD_TIMEOUT, environment=self._buildah.short_names(), explained=explain_build
                )
                async with aclosing(said) as lines:
                    async for line in lines:
                        if line.removeprefix(_TAGGED) == line or line.removeprefix(_TAGGED) in names:
                            yield line
            finally:
                self._builds -= 1
                await asyncio.shield(self._remove_unfinished(layers))
            yield id_file.read_text().strip()

    async def _remove_unfinished(self, layers: Layers) -> None:
        """What a build that was killed left in the store, with its mounts; not while others are under way."""
        async with self._tidying:
            try:
                if self._builds or not layers.working_containers():
                    return
                await self._buildah.run(layers.driver, ["rm", "--all"], "what an unfinished build left")
            except SwarmError as error:
                log.warning("%s", error)

    def _base_image_options(self) -> list[str]:
        """A build pulls from wherever its instructions say; the certificates serve the default registry among them."""
        name = self._reference("any").registry
        return (
            self._buildah.registry_options(Reference(name, "any", "latest", ""))
            if self._buildah.default_registry
            else []
        )

    async def images(self) -> list[StoredImage]:
        layers, _ = await self._open()
        return [image for image in layers.stored() if image.names]  # the others are steps of builds, or kept

    async def inspect(self, reference: str) -> ImageDetails:
        """See `ImageStore`."""
        layers, _ = await self._open()
        return layers.details(self._named(layers, reference))

    async def tag(self, source: str, target: str) -> tuple[str, str]:
        """See `ImageStore`."""
        wanted = self._reference(target)
        if wanted.digest:
            raise InvalidArgument(f"{target} names an image by its digest; a further name is NAME or NAME:TAG")
        layers, _ = await self._open()
        async with self._standing:
            record = self._named(layers, source)
            await self._buildah.run(layers.driver, ["tag", record.id, wanted.pullable], f"image {source}")
        return f"sha256:{record.id}", str(wanted)

    def _named(self, layers: Layers, text: str) -> Record:
        """By an id, or the beginning of one, or a name. Raises NotFound."""
        record = _by_id(layers, text)
        if record is None:
            wanted = self._reference(text)
            record = _find(layers, wanted)
            if record is None:
                raise _unknown(wanted)
        return record

    async def remove(self, reference: str, *, force: bool) -> str:
        """Removes a name, and the image with its last name; by id all names. Returns the image's id.

        Raises NotFound, InUse (a container stands on it). With `force` only the names of such an image go: its layers stay
        as long as a container stands on them.
        """
        layers, filesystems = await self._open()
        async with self._standing:
            record, names = self._names_to_remove(layers, reference, force)
            users = filesystems.image_users().get(record.id, set())
            last = set(record.visible_names) <= set(names)
            if users and last and not force:
                count = "1 container" if len(users) == 1 else f"{len(users)} containers"
                raise InUse(
                    f"image {reference} is in use by {count} on this node ({', '.join(sorted(users)[:3])}); "
                    "remove their service first, or use --force to remove only its name"
                )
            if users and last:
                await self._buildah.run(layers.driver, ["tag", record.id, f"{KEPT}{record.id}"], f"image {reference}")
                last = False
            # by its names one after the other, or with the last of them the image itself
            words = ["rmi", "--force", record.id] if last else ["rmi", *names]
            if last or names:
                await self._buildah.run(layers.driver, words, f"image {reference}")
            return f"sha256:{record.id}"

    async def prune(self, *, every: bool) -> Pruned:
        """Removes the images without a tag, with `every` all, that no container stands on.

        Raises InUse where images keep moving. One that cannot be removed stays, and the others go.
        """
        layers, filesystems = await self._open()
        async with self._traffic.stopped(), self._standing:
            before = layers.bytes_of_layers()
            stored = {image.id: image for image in layers.stored()}
            used = filesystems.image_users().keys()
            chosen = unneeded(layers.records(), used, layers.parents(), every=every)
            for record in chosen:
                if layers.by_id(record.id) is None:
                    continue  # with one that was built upon it
                try:
                    await self._buildah.run(layers.driver, ["rmi", "--force", record.id], f"image {record.id[:12]}")
                except SwarmError as error:
                    log.warning("an image that nobody needs stays: %s", error)
            gone = tuple(stored[f"sha256:{record.id}"] for record in chosen if layers.by_id(record.id) is None)
            return Pruned(gone, max(0, before - layers.bytes_of_layers()))

    def _names_to_remove(self, layers: Layers, reference: str, force: bool) -> tuple[Record, list[str]]:
        record = _by_id(layers, reference)
        if record is not None:
            return record, _all_of(record.visible_names, reference, force)
        wanted = self._reference(reference)
        record = _find(layers, wanted)
        if record is None:
            raise _unknown(wanted)
        if wanted.pullable not in record.names:
            # By a digest that the image has under other names. buildah would take it for the last of them.
            names = [name for name in record.visible_names if name.startswith((f"{wanted.name}:", f"{wanted.name}@"))]
            if not names:
                raise _unknown(wanted)
            return record, [wanted.tagged] if wanted.tagged in names else _all_of(names, reference, force)
        # where only names by digest would be left, nobody means the image by a name any more
        names = [wanted.pullable]
        left = [name for name in record.visible_names if name not in names]
        if all(name.startswith(f"{wanted.name}@") for name in left):
            names = list(record.visible_names)
        return record, names

    async def import_archive(self, archive: Path, reference: str, changes: list[str]) -> str:
        """An image of one layer from a root filesystem as tar; `changes` are instructions as `CMD ["sh"]`. Returns its id."""
        with self._scratch() as scratch:
            try:
                await asyncio.to_thread(archives.check_root, archive)
                _link_or_copy(archive, scratch / "root.tar")
                instructions = "\n".join(["FROM scratch", "ADD root.tar /", *changes, ""])
                (scratch / "Containerfile").write_text(instructions)
            except OSError as error:
                raise _disk_error(error, scratch) from error
            last = ""
            lines = self.build(scratch, tags=[reference], file="", build_args={}, target="", no_cache=True)
            async for line in lines:
                last = line
            return last

    async def load(self, archive: Path) -> list[str]:
        """Images of an archive that `save` (or docker or podman) wrote; their names. Raises InvalidArgument."""
        try:
            names = await asyncio.to_thread(archives.names, archive)
        except OSError as error:
            raise InvalidArgument(f"the archive {archive} cannot be read: {error.strerror}") from error
        if names is None:
            sources, names = [f"oci-archive:{archive}"], []
        else:
            sources = [f"docker-archive:{archive}:{name}" for name in names] or [f"docker-archive:{archive}"]
        layers, _ = await self._open()
        async with self._traffic.moving():
            for source in sources:
                words = ["pull", *self._buildah.policy_options(), source]
                subject = f"the archive {archive.name}"
                printed = await self._buildah.run(
                    layers.driver, words, subject, timeout=PULL_TIMEOUT, explained=archives.unreadable
                )
                if not names:
                    record = layers.by_id(printed.strip().rpartition("\n")[2])
                    names = list(record.names or (f"sha256:{record.id}",)) if record is not None else []
        return names

    async def save(self, references: list[str], archive: Path) -> None:
        """Writes the images to one archive in Docker's format."""
        if not references:
            raise InvalidArgument("name at least one image to save")
        layers, _ = await self._open()
        async with self._traffic.moving():
            await self._save(layers, references, archive)

    async def _save(self, layers: Layers, references: list[str], archive: Path) -> None:
        with self._scratch() as scratch:
            parts = []
            for number, text in enumerate(references):
                wanted = self._reference(text)
                record = _find(layers, wanted)
                if record is None:
                    raise NotFound(f"image {wanted} is not on this node; pull it first")
                part = scratch / f"{number}.tar"
                words = ["push", *self._buildah.policy_options(), record.id, f"docker-archive:{part}:{wanted.tagged}"]
                await self._buildah.run(layers.driver, words, f"image {wanted}", timeout=PULL_TIMEOUT)
                parts.append(part)
            try:
                await asyncio.to_thread(archives.join, parts, archive)
            except OSError as error:
                archive.unlink(missing_ok=True)
                raise _disk_error(error, archive) from error

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A directory on the store's disk that goes away."""
        try:
            scratch = Path(tempfile.mkdtemp(dir=self._buildah.temporary))
        except OSError as error:
            raise _disk_error(error, self._root) from error
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _find(layers: Layers, wanted: Reference) -> Record | None:
    if wanted.digest:
        return layers.by_digest(wanted.digest)
    return layers.by_name(wanted.pullable)


def _all_of(names: Sequence[str], reference: str, force: bool) -> list[str]:
    """Raises InUse where somebody who named an image by its content may not know of all its names."""
    if len(names) > 1 and not force:
        raise InUse(f"image {reference} has several names: {', '.join(names)}; remove them by name, or use --force")
    return list(names)


def _by_id(layers: Layers, text: str) -> Record | None:
    """The image, where `text` is the id of one or the beginning of it. Raises NotFound where it can be nothing else."""
    beginning = image_id(text)
    record = layers.by_id(beginning) if beginning else None
    if record is not None and (record.visible_names or not record.names):
        return record
    if beginning and (text != beginning or len(beginning) == _ID_LENGTH):
        raise NotFound(f"no image on this node has the id {text}; `swarmctl image ls` shows what is")
    return None


def _unknown(wanted: Reference) -> NotFound:
    return NotFound(f"image {wanted} is not on this node; `swarmctl image ls` shows what is")


def _instructions(context: Path, file: str) -> Path:
    candidates = [file] if file else ["Containerfile", "Dockerfile"]
    for name in candidates:
        path = (context / name).resolve()
        if not path.is_relative_to(context.resolve()):
            raise InvalidArgument(f"the file {name} lies outside of the build context; put it inside")
        if path.is_file():
            return path
    raise InvalidArgument(f"the build context has no {' or '.join(candidates)}; name the file with --file")


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _disk_error(error: OSError, place: Path) -> SwarmError:
    if is_disk_full(error):
        return ResourceExhausted(f"the disk of {place} is full; {MAKE_ROOM}")
    return InvalidArgument(f"{place} cannot be used: {error.strerror}")
