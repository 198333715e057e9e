"""What the agent asks of an image store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class ImageConfig:
    """The parts of an image's configuration that a container is made of."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    directory: str = "/"
    user: str = ""
    stop_signal: str = ""
    volumes: tuple[str, ...] = ()
    healthcheck: dict[str, object] | None = None
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Image:
    id: str  # sha256:… of the configuration
    digest: str  # sha256:… of the manifest; empty for an image that was only built here
    reference: str  # fully qualified
    config: ImageConfig


@dataclass(frozen=True)
class StoredImage:
    id: str
    names: tuple[str, ...]
    digest: str
    size_bytes: int
    created_at: float  # seconds since the epoch


@dataclass(frozen=True)
class ImageDetails:
    """What an image's own configuration says besides."""

    image: StoredImage
    architecture: str
    system: str
    layers: tuple[str, ...]  # sha256:… of each layer's uncompressed content, the lowest first
    config: dict[str, object]  # as it is written there: Entrypoint, Cmd, Env …


@dataclass(frozen=True)
class Pruned:
    """What pruning removed."""

    images: tuple[StoredImage, ...]
    reclaimed_bytes: int


class ImageStore(Protocol):
    """References are as people write them; short names resolve to the cluster's default registry, else docker.io.
    Progress is lines of text; errors are SwarmErrors: NotFound (no such image), InvalidArgument (malformed reference),
    PermissionDenied (registry refused), Unavailable (registry not reachable), ResourceExhausted (disk full)."""

    async def ensure(
        self, reference: str, digest: str = "", auth: str = "", tell: Callable[[str], None] = lambda _: None
    ) -> Image:
        """The image, pulled where it is not here yet. With `digest` exactly that manifest. Concurrent calls pull once.

        `tell` hears what keeps the pull from getting on ("the registry has not answered yet"), and "" once that is over.
        """
        ...

    def holding(self) -> AbstractAsyncContextManager[None]:
        """While inside, nothing is pruned: from asking for an image until a container stands on it."""
        ...

    async def mount(self, container_id: str, image: Image) -> Path:
        """A writable root filesystem of the image for one container; the same path again where it is mounted already."""
        ...

    async def unmount(self, container_id: str) -> None:
        """Removes it with everything the container wrote. Not an error where it is gone."""
        ...

    async def mounted(self) -> set[str]:
        """The container ids that have a root filesystem here."""
        ...

    async def resolve(self, reference: str, auth: str = "") -> tuple[str, str]:
        """(fully qualified reference, manifest digest), asking the registry."""
        ...

    # The last line of build and pull is the image's id, that of push the digest in the registry: `sha256:…`.

    def build(
        self, context: Path, *, tags: list[str], file: str, build_args: dict[str, str], target: str, no_cache: bool
    ) -> AsyncIterator[str]: ...

    def pull(self, reference: str, auth: str = "") -> AsyncIterator[str]: ...

    def push(self, reference: str, auth: str = "") -> AsyncIterator[str]: ...

    async def images(self) -> list[StoredImage]: ...

    async def inspect(self, reference: str) -> ImageDetails:
        """By a name or an id. Raises NotFound."""
        ...

    async def tag(self, source: str, target: str) -> tuple[str, str]:
        """Gives an image a further name; another image that has it loses it. Its id, and the name, fully qualified.

        Raises NotFound, InvalidArgument (a name by digest)."""
        ...

    async def remove(self, reference: str, *, force: bool) -> str: ...

    async def prune(self, *, every: bool) -> Pruned:
        """Removes images without a tag, or all, that no container stands on. Raises InUse where images keep moving."""
        ...

    async def import_archive(self, archive: Path, reference: str, changes: list[str]) -> str: ...

    async def load(self, archive: Path) -> list[str]: ...

    async def save(self, references: list[str], archive: Path) -> None: ...
