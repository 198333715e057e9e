"""Archives of images in Docker's format, as `docker save` writes them: several images in one tar file.

buildah writes one image an archive.  Joining them is a matter of names: a file is named by its digest, so equal names are
equal files, and only the list of images (manifest.json) is put together.
"""

from __future__ import annotations

import io
import json
import lzma
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_LIST = "manifest.json"
_OLD_LIST = "repositories"
MAX_LIST_BYTES = 4 << 20
MAX_MEMBERS = 50_000  # files of an archive of images: a few for each layer


def join(parts: Sequence[Path], target: Path) -> None:
    """Writes an archive with the images of all `parts`. Raises OSError, tarfile.TarError."""
    images: list[dict[str, Any]] = []
    repositories: dict[str, dict[str, str]] = {}
    written: set[str] = set()
    with tarfile.open(target, "w") as joined:
        for part in parts:
            with tarfile.open(part, "r:") as archive:
                for member in archive:
                    content = archive.extractfile(member) if member.isfile() else None
                    if member.name == _LIST and content is not None:
                        images += json.load(content)
                    elif member.name == _OLD_LIST and content is not None:
                        for name, tags in json.load(content).items():
                            repositories.setdefault(name, {}).update(tags)
                    elif member.name not in written:
                        written.add(member.name)
                        joined.addfile(member, content)
        for name, value in ((_LIST, images), (_OLD_LIST, repositories)):
            data = json.dumps(value).encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            joined.addfile(entry, io.BytesIO(data))


def names(archive: Path) -> list[str] | None:
    """The names of the images in a Docker archive; None where it is no such archive. Raises OSError."""
    try:
        with tarfile.open(archive) as opened:
            content = _list_of(opened)
            if content is None:
                return None
            return [name for image in json.loads(content) for name in image.get("RepoTags") or ()]
    except (EOFError, tarfile.TarError, ValueError, TypeError, AttributeError, zlib.error, lzma.LZMAError):
        return None


def _list_of(opened: tarfile.TarFile) -> bytes | None:
    """The list of images. The archive is a stranger's: neither the number of its files nor the list may fill the memory."""
    for number, member in enumerate(opened):
        if number >= MAX_MEMBERS:
            return None
        if member.name == _LIST and member.isfile() and member.size <= MAX_LIST_BYTES:
            content = opened.extractfile(member)
            return content.read() if content is not None else None
    return None
