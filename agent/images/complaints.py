"""What buildah says, for people: its progress line by line, its last complaints as our errors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from swarm.errors import (
    FailedPrecondition,
    InternalError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    SwarmError,
    Unavailable,
)

from agent.disk import MAKE_ROOM
from agent.images.reference import PUBLIC_REGISTRY

# What buildah says once a registry has sent an image's manifest.
PULLED = ("Getting image source signatures", "Copying ", "Writing manifest", "Storing signatures")
# What the isolation of RUN prints about a command's end, without a line feed of its own; the exit status comes again below.
_ENDINGS = re.compile(r"(?<!^)(?=process (?:failed to start|exited) with error: |subprocess exited with status )")
_NO_NEWS = re.compile(r"(?:sub)?process exited with (?:status \d+|error: (?:exec: not started|exit status \d+))")
_RESOLVING = 'Resolving "'  # a short name, by a file of ours; the next line has the result
_UNHANDLED = "(UNHANDLED LOGLEVEL)"  # before an unknown instruction, which the final complaint names
_COPIED = re.compile(r'checking on sources under "[^"]*": copier: stat: ("[^"]*"): no such file or directory')
_USEFUL_LINES = 3
# buildah 1.28 ends with the step's command, and on a busy host without what that wrote at last.
_LOST = "without a word on stderr (buildah loses the last ones at times: build again to see them)"
_LONGEST = 500  # characters of what buildah said


def separated(line: str) -> Iterator[str]:
    """The sentences of a line that buildah ran together."""
    yield from (part for part in _ENDINGS.split(line) if part)


def progress_of(line: str) -> str:
    """What a line on stderr tells about progress: without the log's frame, and nothing where it is the final complaint,
    which becomes our own error, or speaks of buildah's insides."""
    if line.startswith(("Error: ", _RESOLVING)) or _NO_NEWS.fullmatch(line) or _UNHANDLED in line:
        return ""
    framed = re.fullmatch(r'time="[^"]*" level=\w+ msg=(".*")', line)
    if framed is None:
        return line
    try:
        return str(json.loads(framed[1]))
    except ValueError:
        return line


_NOT_FOUND = (
    "manifest unknown",
    "name unknown",
    "not known to registry",
    "image not known",
    "no such image",
    "404 (not found)",
)
_DENIED = ("unauthorized", "authentication required", "access to the resource is denied", "denied:", "403 (forbidden)")
_UNREACHABLE = (
    *("connection refused", "no such host", "i/o timeout", "network is unreachable", "no route to host", "tls: "),
    *("x509:", "connection reset", "server gave http response", "context deadline exceeded", "timeout exceeded"),
    *("service unavailable", "bad gateway", "internal server error", "too many requests", "toomanyrequests"),
)


def explain(subject: str, complaint: str) -> SwarmError:
    """An error for people from what buildah printed. `subject` is the image (or what else failed), its registry included."""
    text = " ".join(re.sub(r'time="[^"]*" level=\w+ msg=', "", complaint).split())
    text = text.rpartition("Error: ")[2] or text
    short = text[-_LONGEST:] or "buildah ended without a word"
    lower = text.lower()
    if "no space left on device" in lower or "disk quota exceeded" in lower:
        place = re.search(r"(/[^\s:\"]+): no space left", text)
        where = f" of {place[1]}" if place else ""
        return ResourceExhausted(f"{subject}: the disk{where} is full; {MAKE_ROOM}")
    if any(sign in lower for sign in _NOT_FOUND):
        return NotFound(f"{subject} was not found; push it to that registry first, or check its name")
    if any(sign in lower for sign in _DENIED):
        return PermissionDenied(
            f"{subject}: the registry refused access; it needs credentials, or there is no such image: {short}"
        )
    if any(sign in lower for sign in _UNREACHABLE) or re.search(r"\beof\b", lower):  # not the name of a geofence
        return Unavailable(f"{subject}: the registry cannot be reached: {short}")
    if "no image found in" in lower and "for architecture" in lower:
        return FailedPrecondition(f"{subject} has no variant for this host's architecture: {short}")
    return InternalError(f"{subject}: {short}")


def explain_build(subject: str, complaint: str) -> SwarmError:
    """Like `explain`, for `subject` "building NAME": what failed may be its base image, or a step with its own words."""
    said, _, final = complaint.rpartition("Error: ")
    full = [line for line in complaint.splitlines() if "no space left on device" in line.lower()]
    if full:
        return explain(subject, full[-1])
    step = re.match(r'building at STEP "(.*?)": (.*)', final, re.DOTALL)
    reason = step[2] if step is not None else final
    if "docker://" in reason:
        # the latter leaves docker.io/library out
        base = (re.findall(r"Trying to pull (\S+)\.\.\.", said) or re.findall(r"docker://(\S+?):? ", reason))[-1:]
        error = explain(f"{subject}: the image {' '.join(base)} that it starts from", reason)
        if isinstance(error, NotFound) and not any(name.startswith(f"{PUBLIC_REGISTRY}/") for name in base):
            return NotFound(f"{error}; one of Docker Hub is called `{PUBLIC_REGISTRY}/library/NAME`")
        return error
    if step is None:
        return InternalError(f"{subject}: {_short(final) or 'buildah ended without a word'}")
    what, why = step[1], " ".join(reason.partition(" &imagebuilder.Step")[0].split())
    why = _COPIED.sub(r"there is no \1 in what it copies from", why)
    useful = [
        line for line in said.splitlines() if progress_of(line) and not line.startswith(("Trying to pull ", *PULLED))
    ]
    ended = re.search(r"exit status \d+$", why) is not None
    words = [why, *useful[-_USEFUL_LINES:]] if ended else [why]
    lost = f" {_LOST}" if ended and not useful else ""
    return InternalError(f"{subject}: the step `{_short(what)}` failed: {_short('; '.join(words))}{lost}")


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _LONGEST else words[:_LONGEST] + "…"
