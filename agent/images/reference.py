"""Image references as people write them, and the fully qualified names that they stand for. Pure.

`HOST[:PORT]/PATH[:TAG][@DIGEST]`.  The first part is a host where it contains a dot or a colon, or is `localhost`; otherwise
the name is short and belongs to the cluster's default registry, or to Docker Hub (there, a name of one part lies below
`library/`).  Without a tag and digest the tag is `latest`.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from swarm.errors import InvalidArgument

PUBLIC_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
MAX_NAME_LENGTH = 255

# the grammar of the distribution project
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:.]+\])(?::[0-9]{{1,5}})?")
_IMAGE_ID = re.compile(r"(?:sha256:)?([0-9a-f]{12,64})")


@dataclass(frozen=True)
class Reference:
    """A fully qualified reference. Either `tag` or `digest` may be empty, not both."""

    registry: str
    path: str
    tag: str
    digest: str

    @property
    def name(self) -> str:
        """Without tag and digest."""
        return f"{self.registry}/{self.path}"

    def __str__(self) -> str:
        """The name that people see: both tag and digest."""
        return f"{self.tagged}@{self.digest}" if self.digest else self.tagged

    @property
    def tagged(self) -> str:
        return f"{self.name}:{self.tag}" if self.tag else self.name

    @property
    def pullable(self) -> str:
        """Exactly one of digest and tag, as registries and buildah want it."""
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"

    @property
    def is_loopback(self) -> bool:
        """A registry on this host may be one without TLS."""
        host = self.registry.rpartition(":")[0] if re.search(r":[0-9]+$", self.registry) else self.registry
        if host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host.strip("[]")).is_loopback
        except ValueError:
            return False

    def with_digest(self, digest: str) -> Reference:
        return Reference(self.registry, self.path, self.tag, parse_digest(digest))


def parse_digest(text: str) -> str:
    """Raises InvalidArgument where it is none."""
    if not _DIGEST.fullmatch(text):
        raise InvalidArgument(f'"{text}" is not a digest; it looks like sha256: and 64 hexadecimal digits')
    return text


def parse(text: str, default_registry: str = "") -> Reference:
    """What `text` stands for. Raises InvalidArgument, naming the part that is wrong."""
    rest, at, digest = text.partition("@")
    if at:
        parse_digest(digest)
    registry, slash, path = rest.partition("/")
    if not slash or not ("." in registry or ":" in registry or registry == "localhost"):
        registry, path = "", rest
    elif not _HOST.fullmatch(registry):
        raise InvalidArgument(f'image "{text}": "{registry}" is not the name of a registry')
    path, colon, tag = path.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise InvalidArgument(f'image "{text}": "{tag}" is not a tag; use up to 128 letters, digits, ".", "_" and "-"')
    if path != path.lower():
        raise InvalidArgument(f'image "{text}": names of images are lower case')
    if len(path) > MAX_NAME_LENGTH or not all(_COMPONENT.fullmatch(part) for part in path.split("/")):
        raise InvalidArgument(
            f'image "{text}" is not a reference; use a form as name, name:tag or registry:5000/team/name:tag'
        )
    if not registry:
        registry = default_registry or PUBLIC_REGISTRY
    if registry in (PUBLIC_REGISTRY, "index.docker.io"):
        registry = PUBLIC_REGISTRY
        path = path if "/" in path else f"library/{path}"
    return Reference(registry, path, tag or ("" if digest else DEFAULT_TAG), digest)


def image_id(text: str) -> str:
    """The hexadecimal digits where `text` may be an image's id (or the beginning of one), else ""."""
    found = _IMAGE_ID.fullmatch(text)
    return found[1] if found is not None else ""
