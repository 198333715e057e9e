"""Which files of a directory an ignore file leaves out. Pure.

Patterns are relative to the directory; `*` and `?` stay within one name, `**` reaches over any depth, `!` takes back, and
the last pattern that matches counts. What lies in an ignored directory is ignored with it.
"""

from __future__ import annotations

import re

from swarm.errors import InvalidArgument


class Ignored:
    """The patterns of one ignore file."""

    def __init__(self, patterns: list[str]) -> None:
        self._patterns = [(not line.startswith("!"), _expression(line.lstrip("!"))) for line in patterns]
        self.has_exceptions = any(not ignore for ignore, _ in self._patterns)

    def covers(self, path: str) -> bool:
        """Whether a path, or a directory that it lies in, is ignored."""
        parts = path.split("/")
        prefixes = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        ignored = False
        for ignore, expression in self._patterns:
            if any(expression.fullmatch(prefix) for prefix in prefixes):
                ignored = ignore
        return ignored


def _expression(pattern: str) -> re.Pattern[str]:
    parts = pattern.removeprefix("./").strip("/").split("/")
    found = ""
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part == "**":
            found += ".+" if last else "(?:[^/]+/)*"
        else:
            found += _name(part) + ("" if last else "/")
    try:
        return re.compile(found)
    except re.error as error:  # as [z-a]
        raise InvalidArgument(f"the pattern {pattern!r} of the ignore file cannot be read: {error.msg}") from error


def _name(part: str) -> str:
    """One name of a pattern. A bracket that does not end stands for itself."""
    found, position = "", 0
    while position < len(part):
        character = part[position]
        end = part.find("]", position + 2) if character == "[" else -1
        if character == "*":
            found += "[^/]*"
        elif character == "?":
            found += "[^/]"
        elif end > 0:
            inside = part[position + 1 : end]
            negated = inside[0] in "!^"
            members = re.sub(r"([\\\]\[&~|])", r"\\\1", inside[1:] if negated else inside)
            found += f"(?!/)[{'^' if negated else ''}{members}]"
            position = end
        elif character == "\\" and position + 1 < len(part):
            position += 1
            found += re.escape(part[position])
        else:
            found += re.escape(character)
        position += 1
    return found
