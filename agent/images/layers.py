"""What is in the image store, read from its files: images, their configuration, and the directories of their layers.

The store is containers/storage, the library below buildah.  Its records are JSON files that it replaces by rename, so they
can be read at any time without a lock; asking buildah instead costs a process of 40 ms a question.

    DRIVER-images/images.json        id, digest, names, top layer, and the names of its "big data"
    DRIVER-images/ID/=BASE64(key)    big data: the configuration (key: sha256:ID) and manifests
    DRIVER-layers/layers.json        id, parent, size
    overlay/LAYER/link, lower        the layer's short name below overlay/l, and those of the layers under it
    vfs/dir/LAYER                    a whole tree
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from swarm.errors import InternalError

from agent.images.interface import Image, ImageConfig, ImageDetails, StoredImage

# The name of an image that people removed while containers stand on it; they do not see it.
KEPT = "localhost/swarm-kept/"


@dataclass(frozen=True)
class Record:
    """One image of the store."""

    id: str  # hexadecimal
    digest: str
    digests: frozenset[str]  # of every manifest that is kept for it, the list that it was chosen from as well
    names: tuple[str, ...]
    layer: str  # id of the top layer; "" for an image without layers
    created_at: float

    @property
    def visible_names(self) -> tuple[str, ...]:
        """Those that people gave it."""
        return tuple(name for name in self.names if not name.startswith(KEPT))

    def has_digest(self, digest: str) -> bool:
        return digest in self.digests or any(name.endswith(f"@{digest}") for name in self.names)


class Layers:
    """The store below `root` (buildah's --root) with a driver, overlay or vfs."""

    def __init__(self, root: Path, driver: str) -> None:
        self.root = root
        self.driver = driver
        self._images: tuple[tuple[int, int, int], list[Record]] | None = None

    @property
    def _images_directory(self) -> Path:
        return self.root / f"{self.driver}-images"

    def records(self) -> list[Record]:
        """All images. Read again only when the file was replaced."""
        path = self._images_directory / "images.json"
        try:
            status = path.stat()
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            if self._images is None or self._images[0] != stamp:
                entries: list[dict[str, Any]] = json.loads(path.read_bytes() or b"[]")
                self._images = (stamp, [_record(entry) for entry in entries])
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError) as error:
            raise _unreadable(path, error) from error
        return self._images[1]

    def by_name(self, name: str) -> Record | None:
        """By a fully qualified name with tag or digest."""
        return next((record for record in self.records() if name in record.names), None)

    def by_digest(self, digest: str) -> Record | None:
        return next((record for record in self.records() if record.has_digest(digest)), None)

    def by_id(self, beginning: str) -> Record | None:
        """By id, or by its beginning where that is unique."""
        found = [record for record in self.records() if record.id.startswith(beginning)]
        return found[0] if len(found) == 1 else None

    def image(self, record: Record, reference: str, digest: str = "") -> Image:
        """With its configuration; `digest` where the image was asked for by one."""
        return Image(f"sha256:{record.id}", digest or record.digest, reference, self._configuration(record.id))

    def _configuration(self, image_id: str) -> ImageConfig:
        try:
            return parse_configuration(self._document(image_id))
        except (TypeError, ValueError, AttributeError) as error:  # it was made by a stranger
            raise _damaged(image_id, f"its configuration cannot be understood: {error}") from error

    def _document(self, image_id: str) -> dict[str, Any]:
        key = base64.b64encode(f"sha256:{image_id}".encode()).decode()
        path = self._images_directory / image_id / f"={key}"
        try:
            document = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise _damaged(image_id, error) from error
        if not isinstance(document, dict):
            raise _damaged(image_id, "its configuration is no object")
        return document

    def details(self, record: Record) -> ImageDetails:
        """With what its configuration says."""
        document = self._document(record.id)
        return ImageDetails(
            self._stored(record, self._sizes()),
            architecture=str(document.get("architecture") or ""),
            system=str(document.get("os") or ""),
            layers=tuple((document.get("rootfs") or {}).get("diff_ids") or ()),
            config=dict(document.get("config") or {}),
        )

    def working_containers(self) -> bool:
        """Whether builds are under way, or were killed: each step of a build is a container of the store."""
        path = self.root / f"{self.driver}-containers" / "containers.json"
        try:
            return bool(json.loads(path.read_bytes() or b"[]"))
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from error

    def stored(self) -> list[StoredImage]:
        sizes = self._sizes()
        return [self._stored(record, sizes) for record in self.records()]

    def _stored(self, record: Record, sizes: dict[str, tuple[str, int]]) -> StoredImage:
        size = self._size(record.layer, sizes)
        return StoredImage(f"sha256:{record.id}", record.visible_names, record.digest, size, record.created_at)

    def parents(self) -> dict[str, str]:
        """Layer → the one under it."""
        return {layer: parent for layer, (parent, _) in self._sizes().items()}

    def bytes_of_layers(self) -> int:
        """What all layers take together."""
        return sum(own for _, own in self._sizes().values())

    def _sizes(self) -> dict[str, tuple[str, int]]:
        """Layer → (the one under it, its own bytes)."""
        path = self.root / f"{self.driver}-layers" / "layers.json"
        try:
            entries = json.loads(path.read_bytes() or b"[]")
            return {entry["id"]: (entry.get("parent", ""), int(entry.get("diff-size", 0))) for entry in entries}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError) as error:
            raise _unreadable(path, error) from error

    @staticmethod
    def _size(layer: str, sizes: dict[str, tuple[str, int]]) -> int:
        total = 0
        while layer in sizes:
            layer, own = sizes[layer]
            total += own
        return total

    def lower_directories(self, layer: str) -> list[str]:
        """The layers of an image, the top one first, as short paths relative to ROOT/overlay. Raises InternalError."""
        if not layer:
            return []
        directory = self.root / "overlay" / layer
        try:
            link = (directory / "link").read_text().strip()
            lower = directory / "lower"
            below = lower.read_text().strip().split(":") if lower.exists() else []
        except OSError as error:
            raise InternalError(
                f"the layer {layer[:12]} of the image is damaged; remove and pull it again: {error}"
            ) from error
        return [f"l/{link}", *(name for name in below if name)]

    def tree(self, layer: str) -> Path:
        """With the vfs driver, the whole tree of an image."""
        return self.root / "vfs" / "dir" / layer


def _unreadable(path: Path, error: Exception) -> InternalError:
    if isinstance(error, OSError):
        return InternalError(f"the image store's file {path} cannot be read: {error.strerror}")
    return InternalError(f"the image store's file {path} cannot be understood: {error!r}")


def _damaged(image_id: str, reason: object) -> InternalError:
    return InternalError(f"the image {image_id[:12]} is damaged; remove and pull it again: {reason}")


def _record(entry: dict[str, Any]) -> Record:
    digests = {
        str(digest)
        for key, digest in (entry.get("big-data-digests") or {}).items()
        if key == "manifest" or key.startswith("manifest-")
    }
    own = str(entry.get("digest", ""))
    return Record(
        id=str(entry["id"]),
        digest=own,
        digests=frozenset(digests | ({own} if own else set())),
        names=tuple(entry.get("names") or ()),
        layer=str(entry.get("layer", "")),
        created_at=_seconds(str(entry.get("created", ""))),
    )


def _seconds(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0


def parse_configuration(document: dict[str, Any]) -> ImageConfig:
    """From an image's configuration, Docker's or OCI's: both name these parts alike."""
    config = document.get("config") or {}
    health = config.get("Healthcheck")
    return ImageConfig(
        entrypoint=tuple(config.get("Entrypoint") or ()),
        command=tuple(config.get("Cmd") or ()),
        environment=tuple(config.get("Env") or ()),
        directory=config.get("WorkingDir") or "/",
        user=config.get("User") or "",
        stop_signal=config.get("StopSignal") or "",
        volumes=tuple(sorted(config.get("Volumes") or {})),
        healthcheck=dict(health) if health else None,
        labels=dict(config.get("Labels") or {}),
    )
