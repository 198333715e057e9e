"""Who a container's process is: the `user` and `groups` of its settings, looked up in its own root filesystem.

Only /etc/passwd and /etc/group of the image are read, never those of the host, and symbolic links in the image are followed
inside the image only: a link to /etc/shadow means the image's own file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from swarm.errors import FailedPrecondition, InvalidArgument

_MAX_LINKS = 40  # as the kernel's own bound
_MAX_FILE_SIZE = 4 << 20
_MAX_DIGITS = 20  # Python refuses to read a number of some thousand
_MAX_ID = (1 << 32) - 2  # the last is "no id" to the kernel


@dataclass(frozen=True)
class Account:
    """A line of /etc/passwd."""

    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True)
class Group:
    """A line of /etc/group."""

    name: str
    gid: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class Identity:
    """What the kernel needs to know, and the home directory for $HOME."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def path_in_root(root: Path, inside: str) -> Path | None:
    """Where `inside` lies on the host, its symbolic links resolved as the container would; None for a loop of links."""
    todo = [part for part in inside.split("/") if part]
    done: list[str] = []
    links = 0
    while todo:
        part = todo.pop(0)
        if part == "..":
            del done[-1:]
        elif part != ".":
            here = root.joinpath(*done, part)
            if here.is_symlink():
                links += 1
                if links > _MAX_LINKS:
                    return None
                target = str(here.readlink())
                if target.startswith("/"):
                    done.clear()
                todo[:0] = [step for step in target.split("/") if step]
            else:
                done.append(part)
    return root.joinpath(*done)


def _lines(root: Path, inside: str) -> list[list[str]]:
    try:
        path = path_in_root(root, inside)
        if path is None or not path.is_file():
            return []
        with path.open("rb") as stream:
            text = stream.read(_MAX_FILE_SIZE).decode(errors="replace")
    except OSError as error:  # a link of the image to a name that is too long, or no descriptors
        raise FailedPrecondition(f"the image's {inside} cannot be read: {error.strerror}") from error
    return [line.strip().split(":") for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _number(text: str) -> int | None:
    is_number = text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
    return int(text) if is_number and int(text) <= _MAX_ID else None


def accounts(root: Path) -> list[Account]:
    found = []
    for fields in _lines(root, "/etc/passwd"):
        if len(fields) < 6:
            continue
        uid, gid = _number(fields[2]), _number(fields[3])
        if uid is not None and gid is not None:
            found.append(Account(fields[0], uid, gid, fields[5]))
    return found


def groups_of(root: Path) -> list[Group]:
    found = []
    for fields in _lines(root, "/etc/group"):
        gid = _number(fields[2]) if len(fields) >= 3 else None
        if gid is not None:
            members = tuple(name for name in fields[3].split(",") if name) if len(fields) > 3 else ()
            found.append(Group(fields[0], gid, members))
    return found


def identity(root: Path, user: str, extra_groups: Iterable[str] = ()) -> Identity:
    """Resolves "", "name", "uid", "name:group", "uid:gid" and supplementary groups (names or numbers).

    Without a group the primary one of /etc/passwd and all groups that list the user as a member; with one exactly that,
    as Docker does. Raises InvalidArgument where a name is not known to the image, FailedPrecondition where its files cannot
    be read.
    """
    wanted_user, _, wanted_group = user.partition(":")
    account = _find_account(root, wanted_user or "0")
    uid = account.uid if account is not None else _number(wanted_user or "0")
    if uid is None:
        raise InvalidArgument(f'user "{wanted_user}" is not in the image\'s /etc/passwd; name one that is, or a number')
    known_groups = groups_of(root) if wanted_group or extra_groups or account is not None else []
    if wanted_group:
        gid, supplementary = _group_number(known_groups, wanted_group), set[int]()
    else:
        gid = account.gid if account is not None else 0
        name = account.name if account is not None else ""
        supplementary = {group.gid for group in known_groups if name and name in group.members}
    supplementary.update(_group_number(known_groups, group) for group in extra_groups)
    home = account.home if account is not None and account.home else "/"
    return Identity(uid, gid, tuple(sorted(supplementary)), home)


def _find_account(root: Path, wanted: str) -> Account | None:
    number = _number(wanted)
    known = accounts(root)
    by_name = next((account for account in known if account.name == wanted), None)
    if by_name is not None or number is None:
        return by_name
    return next((account for account in known if account.uid == number), None)


def _group_number(known: list[Group], wanted: str) -> int:
    for group in known:
        if group.name == wanted:
            return group.gid
    number = _number(wanted)
    if number is None:
        raise InvalidArgument(f'group "{wanted}" is not in the image\'s /etc/group; name one that is, or a number')
    return number
