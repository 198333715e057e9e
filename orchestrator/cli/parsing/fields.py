"""Flags that hold more than one value: `KEY=VALUE`, comma-separated fields, environments, mounts, networks. Pure."""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections.abc import Iterable, Mapping

from swarm.errors import InvalidArgument
from swarm.v1 import types_pb2 as types

from orchestrator.cli.parsing.quantities import byte_count, count

_MOUNT_TYPES = {"bind": types.MOUNT_TYPE_BIND, "volume": types.MOUNT_TYPE_VOLUME, "tmpfs": types.MOUNT_TYPE_TMPFS}
_MOUNT_KEYS = ("type", "source", "target", "readonly", "tmpfs-size", "tmpfs-mode")
_MOUNT_ALIASES = {"src": "source", "destination": "target", "dst": "target", "ro": "readonly"}


def pairs(
    text: str, where: str, known: Iterable[str], aliases: Mapping[str, str] | None = None, bare: Iterable[str] = ()
) -> dict[str, str]:
    """`a=1,b=2` as a dictionary; a value may be quoted. `bare` keys may stand alone and mean true."""
    known, bare = tuple(known), tuple(bare)
    found: dict[str, str] = {}
    for word in _separated(text, where):
        key, equals, value = word.strip().partition("=")
        key = (aliases or {}).get(key.strip().lower(), key.strip().lower())
        if key not in known:
            raise InvalidArgument(f"{where} {text!r}: {key!r} is not known here; there are {', '.join(known)}")
        if not equals:
            if key not in bare:
                raise InvalidArgument(f"{where} {text!r}: {key} needs a value, as in {key}=VALUE")
            value = "true"
        found[key] = value
    return found


def _separated(text: str, where: str) -> list[str]:
    try:
        rows = list(csv.reader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise InvalidArgument(f"{where} {text!r} has a quote that does not end ({error})") from error
    if len(rows) != 1:
        raise InvalidArgument(f"{where} {text!r} is empty or spans lines")
    return rows[0]


def labels(words: Iterable[str], where: str) -> dict[str, str]:
    """`KEY=VALUE` or `KEY` (an empty value) each; the last one of a key wins."""
    found: dict[str, str] = {}
    for word in words:
        key, _, value = word.partition("=")
        if not key.strip():
            raise InvalidArgument(f"{where} {word!r} lacks the key; write KEY=VALUE")
        found[key.strip()] = value
    return found


def assignments(words: Iterable[str], where: str) -> dict[str, str]:
    """`KEY=VALUE` each, both needed."""
    found = labels(words, where)
    for word in words:
        if "=" not in word:
            raise InvalidArgument(f"{where} {word!r} lacks a value; write {word}=VALUE")
    return found


def environment(words: Iterable[str], ours: Mapping[str, str], where: str = "--env") -> list[str]:
    """`NAME=VALUE` each; `NAME` alone takes our own environment's value, and is left out where there is none."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or any(character.isspace() for character in name):
            raise InvalidArgument(f"{where} {word!r} has no name before the sign =; write NAME=VALUE")
        if equals:
            found[name] = value
        elif name in ours:
            found[name] = ours[name]
    return [f"{name}={value}" for name, value in found.items()]


def environment_file(text: str, path: str) -> list[str]:
    """The lines of an --env-file that say something."""
    lines = [line.lstrip() for line in text.removeprefix("\ufeff").splitlines()]
    kept = [line for line in lines if line and not line.startswith("#")]
    environment(kept, {}, f"--env-file {path}:")  # complains with the file's name
    return kept


def shell_words(text: str, where: str) -> list[str]:
    """Words as a shell would split them."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InvalidArgument(f"{where} {text!r} cannot be split into words: {str(error).lower()}") from error


def mount(text: str, where: str = "--mount") -> types.Mount:
    """`type=volume,source=data,target=/data,readonly`; the type is volume where none is named."""
    given = pairs(text, where, _MOUNT_KEYS, _MOUNT_ALIASES, bare=("readonly",))
    kind = given.get("type", "volume")
    if kind not in _MOUNT_TYPES:
        raise InvalidArgument(f"{where} {text!r}: {kind!r} is not a type of mount; there are {', '.join(_MOUNT_TYPES)}")
    target, source = given.get("target", ""), given.get("source", "")
    if not target.startswith("/"):
        raise InvalidArgument(f"{where} {text!r} needs target=/PATH, an absolute path inside the container")
    if kind == "bind" and not source.startswith("/"):
        raise InvalidArgument(f"{where} {text!r}: a bind mount needs source=/PATH, an absolute path on the host")
    if kind == "tmpfs" and source:
        raise InvalidArgument(f"{where} {text!r}: a tmpfs has no source; leave it out")
    if kind != "tmpfs" and ("tmpfs-size" in given or "tmpfs-mode" in given):
        raise InvalidArgument(f"{where} {text!r}: tmpfs-size and tmpfs-mode belong to type=tmpfs")
    return types.Mount(
        type=_MOUNT_TYPES[kind],
        source=source,
        target=target,
        read_only=_truth(given.get("readonly", "false"), text, where),
        tmpfs_size_bytes=byte_count(given["tmpfs-size"], where) if "tmpfs-size" in given else 0,
        tmpfs_mode=_octal(given["tmpfs-mode"], text, where) if "tmpfs-mode" in given else 0,
    )


def network(text: str, where: str = "--network") -> types.NetworkAttachmentConfig:
    """`NAME` or `name=NAME,alias=ALIAS[,alias=ALIAS…]`."""
    if "=" not in text:
        if not text.strip():
            raise InvalidArgument(f"{where} needs the name of a network")
        return types.NetworkAttachmentConfig(network=text.strip())
    name, aliases = "", []
    for word in _separated(text, where):
        key, _, value = word.partition("=")
        if key.strip() == "name":
            name = value
        elif key.strip() == "alias" and value:
            aliases.append(value)
        else:
            raise InvalidArgument(f"{where} {text!r}: {word!r} is not known here; write name=NAME,alias=ALIAS")
    if not name:
        raise InvalidArgument(f"{where} {text!r} lacks name=NAME")
    return types.NetworkAttachmentConfig(network=name, aliases=aliases)


def spread(text: str, where: str = "--placement-pref") -> str:
    """`spread=node.labels.zone` → `node.labels.zone`: the only strategy there is."""
    strategy, equals, descriptor = text.partition("=")
    if strategy.strip() != "spread" or not equals or not descriptor.strip():
        raise InvalidArgument(f"{where} {text!r} is not a preference; write spread=node.labels.NAME")
    return descriptor.strip()


def host(text: str, where: str = "--host") -> str:
    """`NAME:ADDRESS` → the line `ADDRESS NAME` of /etc/hosts."""
    name, colon, address = text.partition(":")
    if not name or not colon or not address:
        raise InvalidArgument(f"{where} {text!r} is not NAME:ADDRESS, as in db:10.1.2.3")
    return f"{address.strip('[]')} {name}"


def ulimit(text: str, where: str = "--ulimit") -> types.Ulimit:
    """`nofile=1024:2048`, or `nofile=1024` for both."""
    name, equals, values = text.partition("=")
    if not name or not equals:
        raise InvalidArgument(f"{where} {text!r} is not NAME=SOFT[:HARD], as in nofile=1024:2048")
    soft_word, colon, hard_word = values.partition(":")
    soft = _limit(soft_word, where)
    hard = _limit(hard_word, where) if colon else soft
    if hard != -1 and (soft == -1 or soft > hard):
        raise InvalidArgument(f"{where} {text!r}: the soft limit is above the hard limit")
    return types.Ulimit(name=name.lower(), soft=soft, hard=hard)


def _limit(word: str, where: str) -> int:
    return -1 if word in ("-1", "unlimited") else count(word, where)


def capability(text: str, where: str) -> str:
    """`net_admin` → `CAP_NET_ADMIN`; ALL stays as it is."""
    word = text.strip().upper()
    if not word or not word.replace("_", "").isalnum():
        raise InvalidArgument(f"{where} {text!r} is not a capability; write it as NET_ADMIN, or ALL")
    return word if word == "ALL" or word.startswith("CAP_") else f"CAP_{word}"


def _truth(word: str, text: str, where: str) -> bool:
    if word.lower() in ("true", "1"):
        return True
    if word.lower() in ("false", "0"):
        return False
    raise InvalidArgument(f"{where} {text!r}: {word!r} is neither true nor false")


def _octal(word: str, text: str, where: str) -> int:
    if not re.fullmatch(r"(0o)?[0-7]{1,10}", word):
        raise InvalidArgument(f"{where} {text!r}: {word!r} is not a file mode; write it in octal, as 1777")
    return int(word, 8)
