"""Archives of images in Docker's format, as `docker save` writes them: several images in one tar file.

buildah writes one image an archive.  Joining them is a matter of names: a file is named by its digest, so equal names are
equal files, and only the list of images (manifest.json) is put together.
"""

from __future__ import annotations

import io
import json
import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swarm.errors import InvalidArgument, ResourceExhausted, SwarmError

from agent.images.complaints import explain

_LIST = "manifest.json"
_OLD_LIST = "repositories"
_INDEX = "index.json"  # of OCI's format
_ZSTANDARD = b"\x28\xb5\x2f\xfd"  # how such a file begins (RFC 8878)
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
    """The names of the images in a Docker archive; None for one of OCI's format, whose names buildah finds.

    Raises InvalidArgument, saying what it is instead of an archive of images, and OSError.
    """
    if archive.stat().st_size == 0:
        raise _no_images("it is empty")
    try:
        with tarfile.open(archive) as opened:
            content = _list_of(opened)
        if content is None:
            return None
        return [name for image in json.loads(content) for name in image.get("RepoTags") or ()]
    except tarfile.ReadError as error:
        if "unexpected end of data" in str(error):
            raise _no_images("it is cut short") from error
        raise _no_images("it is not a tar file") from error
    except EOFError as error:
        raise _no_images("it is cut short") from error
    except (tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        raise _no_images(f"it is damaged ({error})") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:  # the last for lists in lists in lists
        raise _no_images(f"its {_LIST} is no list of images") from error


def check_root(archive: Path) -> None:
    """Raises InvalidArgument where a root filesystem is no tar file: it would become an image with that file in it."""
    with archive.open("rb") as stream:
        beginning = stream.read(len(_ZSTANDARD))
    if not beginning:
        reason = "it is empty"
    elif beginning == _ZSTANDARD:  # buildah can, Python cannot
        return
    else:
        try:
            with tarfile.open(archive):
                return
        except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError):
            reason = "it is not a tar file"
    raise InvalidArgument(f"what was sent to be imported is no root filesystem: {reason}; send one packed with tar")


def unreadable(subject: str, complaint: str) -> SwarmError:
    """The error where buildah did not get through with an archive."""
    error = explain(subject, complaint)
    return error if isinstance(error, ResourceExhausted) else _no_images(f"it is damaged ({error})")


def _no_images(reason: str) -> InvalidArgument:
    return InvalidArgument(
        f"what was sent to be loaded is no archive of images: {reason}; "
        "send one that `image save` (or docker save) wrote, with --input FILE or through a pipe"
    )


def _list_of(opened: tarfile.TarFile) -> bytes | None:
    """Docker's list of images; None where there is OCI's index instead. The archive is a stranger's: neither the number of
    its files nor the list may fill the memory."""
    indexed = False
    for number, member in enumerate(opened):
        if number >= MAX_MEMBERS:
            raise _no_images(f"it has more than {MAX_MEMBERS} files")
        if member.name == _LIST and member.isfile():
            if member.size > MAX_LIST_BYTES:
                raise _no_images(f"its {_LIST} is larger than {MAX_LIST_BYTES >> 20} MiB")
            content = opened.extractfile(member)
            return content.read() if content is not None else None
        indexed = indexed or posixpath.normpath(member.name) == _INDEX
    if not indexed:
        raise _no_images(f"it has neither {_LIST} nor {_INDEX}; a root filesystem is for `image import`")
    return None
