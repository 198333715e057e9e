"""What image references stand for on this host: fully qualified names. Pure; the grammar is that of `swarm.references`.

A name without a host is short and belongs to the cluster's default registry, or to Docker Hub (there, a name of one part lies
below `library/`).  Without a tag and digest the tag is `latest`.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from swarm.errors import InvalidArgument
from swarm.references import parse_image_reference

PUBLIC_REGISTRY = "docker.io"
PUBLIC_HOST = "registry-1.docker.io"  # where that is asked
DEFAULT_TAG = "latest"

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
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
    written = parse_image_reference(text)
    registry, path = written.domain, written.path
    if written.digest:
        parse_digest(written.digest)
    if not registry:
        registry = default_registry or PUBLIC_REGISTRY
    if registry in (PUBLIC_REGISTRY, "index.docker.io"):
        registry = PUBLIC_REGISTRY
        path = path if "/" in path else f"library/{path}"
    return Reference(registry, path, written.tag or ("" if written.digest else DEFAULT_TAG), written.digest)


def image_id(text: str) -> str:
    """The hexadecimal digits where `text` may be an image's id (or the beginning of one), else ""."""
    found = _IMAGE_ID.fullmatch(text)
    return found[1] if found is not None else ""


def is_image_id(text: str) -> bool:
    """Whether it is a whole id with its algorithm."""
    return text.startswith("sha256:") and _DIGEST.fullmatch(text) is not None
