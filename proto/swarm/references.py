"""Image references, by the grammar of the distribution project (distribution/reference):

reference      = name [ ":" tag ] [ "@" digest ]
name           = [ domain "/" ] component { "/" component }
domain         = host [ ":" port ]           – only where it has a '.', a ':' or an upper-case letter, or is localhost
component      = [a-z0-9]+ separated by  '.'  '_'  '__'  or any number of '-'
tag            = [A-Za-z0-9_] and up to 127 of [A-Za-z0-9_.-]
digest         = algorithm ":" at least 32 hexadecimal digits
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from swarm.errors import InvalidArgument

MAX_NAME_LENGTH = 255
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_HOST_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_HOST_LABEL}(?:\.{_HOST_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}")
_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")


@dataclass(frozen=True)
class ImageReference:
    """The parts of a reference; `domain`, `tag` and `digest` are empty where they were not given."""

    domain: str
    path: str
    tag: str
    digest: str

    @property
    def default_service_name(self) -> str:
        """The last part of the path: what a service is named after where it is given no name."""
        return self.path.rpartition("/")[2]


def parse_image_reference(text: str) -> ImageReference:
    """Raises InvalidArgument saying which part is malformed."""
    if not text:
        raise InvalidArgument("an image is needed, as `nginx`, `registry:5000/team/web:1.2` or `web@sha256:…`")
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise _malformed(text, f"{digest!r} is not a digest as `sha256:` and 64 hexadecimal digits")
    if digest.startswith("sha256:") and not _SHA256.fullmatch(digest):
        raise _malformed(text, "a sha256 digest has 64 hexadecimal digits in lower case")
    head, slash, last = rest.rpartition("/")
    last, colon, tag = last.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise _malformed(
            text, f"{tag!r} is not a tag: up to 128 letters, digits, '_', '.', '-', not beginning with '.' or '-'"
        )
    name = f"{head}{slash}{last}"
    if _IDENTIFIER.fullmatch(name):
        raise _malformed(text, "64 hexadecimal digits are an image id, not a name; write `name@sha256:…`")
    domain, path = _split_domain(name)
    if domain and not _DOMAIN.fullmatch(domain):
        raise _malformed(text, f"{domain!r} is not a registry as HOST or HOST:PORT")
    for component in path.split("/"):
        if not _COMPONENT.fullmatch(component):
            raise _malformed(text, _component_problem(component))
    if len(name) > MAX_NAME_LENGTH:
        raise _malformed(text[:60] + "…", f"the name is longer than {MAX_NAME_LENGTH} characters")
    return ImageReference(domain, path, tag, digest)


def _split_domain(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if slash and (any(mark in first for mark in ".:") or first == "localhost" or first.lower() != first):
        return first, rest
    return "", name


def _component_problem(component: str) -> str:
    if not component:
        return "a part of the name is empty"
    if component != component.lower():
        return f"{component!r} has upper-case letters; names are lower case"
    return f"{component!r} may have only a-z, 0-9 and single separators ('.', '_', '__', '-') between them"


def _malformed(text: str, problem: str) -> InvalidArgument:
    return InvalidArgument(f"image reference {text!r} is malformed: {problem}")
