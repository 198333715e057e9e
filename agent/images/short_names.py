"""Short names in build instructions (`FROM web`): they come from the registry where short names belong on this cluster.

Everywhere else a name is completed by `reference` before buildah hears it; instructions it reads itself, and completes by its
configuration: registries.conf, then the files of /etc/containers/registries.conf.d, then those of the user's
~/.config/containers/registries.conf.d, each above the one before.  (Its option --registries-conf-dir has no effect on this:
it is taken for the directory of signatures.)  So a build gets a home directory of ours, whose last file names one registry
and takes back the host's aliases, which would come before any registry.  All else that the user configured is linked there.
"""

from __future__ import annotations

import contextlib
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path

from swarm.identity import write_atomically

USER_CONFIGURATION = Path(".config/containers")
DROP_INS = "registries.conf.d"
LOGINS = ".docker"
_OURS = "zzz-swarm.conf"  # the last in alphabetical order


def user_home() -> Path:
    """The home directory of who runs this daemon; the root directory where neither HOME nor /etc/passwd knows one."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")


def drop_in(registry: str, host_texts: Iterable[str]) -> str:
    """The file that puts short names below `registry`. `host_texts`: the host's own registries.conf and drop-ins."""
    aliases: set[str] = set()
    for text in host_texts:
        with contextlib.suppress(tomllib.TOMLDecodeError):  # buildah says so itself
            found = tomllib.loads(text).get("aliases")
            aliases |= set(found) if isinstance(found, dict) else set()
    lines = [
        f"unqualified-search-registries = {json.dumps([registry])}",
        'short-name-mode = "disabled"',
        "[aliases]",
        *(f'{json.dumps(name)} = ""' for name in sorted(aliases)),
    ]
    return "\n".join(lines) + "\n"


def prepare_home(home: Path, registry: str, host_texts: Iterable[str], user: Path) -> None:
    """Makes `home` the home directory of builds: that of `user` as far as buildah looks there, with our file on top."""
    drop_ins = home / USER_CONFIGURATION / DROP_INS
    drop_ins.mkdir(parents=True, exist_ok=True, mode=0o700)
    _link(user, home, [LOGINS])
    _link(user / USER_CONFIGURATION, home / USER_CONFIGURATION, leave=DROP_INS)
    _link(user / USER_CONFIGURATION / DROP_INS, drop_ins)
    text, path = drop_in(registry, host_texts), drop_ins / _OURS
    if not path.exists() or path.read_text() != text:
        write_atomically(path, text.encode())


def _link(source: Path, target: Path, names: Iterable[str] | None = None, leave: str = "") -> None:
    """Links in `target` to what is in `source`; those to what is gone go."""
    for link in target.iterdir():
        if link.is_symlink() and not link.exists():
            link.unlink(missing_ok=True)
    wanted = names if names is not None else [entry.name for entry in source.iterdir()] if source.is_dir() else []
    for name in wanted:
        if name != leave and (source / name).exists():
            with contextlib.suppress(FileExistsError):  # linked before, or by another build
                (target / name).symlink_to(source / name)
