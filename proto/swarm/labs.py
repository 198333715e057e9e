"""Which labs there are on this machine, and which one is meant where nobody says.

`swarmctl lab up` writes a description of each lab (`lab.json` in its run directory); every other command finds hosts and
sockets by it. Here it is only read, together with what both sides say when a lab or a host is not there. Imported by each
start of `swarmctl`: nothing heavy here, and errors only where one is raised.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swarm.errors import FailedPrecondition, NotFound

RUN_ROOT = Path("/run/swarm-lab")
DEFAULT_LAB = "default"
DESCRIPTION = "lab.json"
NODE_SOCKET = "swarmd.sock"  # as in swarm.names, which costs imports
CONNECT_TIMEOUT = 1.0


def described(root: Path | None = None) -> list[str]:
    """The names of the labs that have a description, sorted."""
    return sorted(file.parent.name for file in (root or RUN_ROOT).glob(f"*/{DESCRIPTION}"))


def read_hosts(name: str, root: Path | None = None) -> list[dict[str, Any]]:
    """The hosts of a lab: `name`, `role`, `address`, `run_dir` of each.

    Raises NotFound where there is no such lab, InvalidArgument where its description is damaged.
    """
    path = (root or RUN_ROOT) / name / DESCRIPTION
    try:
        nodes = json.loads(path.read_text())["nodes"]
        return [one for one in nodes if isinstance(one, dict)]
    except FileNotFoundError as error:
        raise no_lab(name, root) from error
    except (ValueError, KeyError, TypeError) as error:
        from swarm.errors import InvalidArgument

        raise InvalidArgument(
            f"{path} cannot be understood ({error}); `swarmctl lab down` and `lab up` write it anew"
        ) from error


def answering(hosts: Iterable[dict[str, Any]]) -> list[str]:
    """The names of the hosts whose daemon listens."""
    return [str(one.get("name")) for one in hosts if _listens(Path(str(one.get("run_dir"))) / NODE_SOCKET)]


def implied(root: Path | None = None, *, flag: str = "--lab") -> str | None:
    """The lab that is meant where none is named; None where there is none.

    That is the one named `default`, running or not: else a command that is repeated after a fault might suddenly concern
    another lab. Without it, the only one that runs, or the only one at all. Raises FailedPrecondition, which names `flag`,
    where there are several.
    """
    there = described(root)
    if DEFAULT_LAB in there:
        return DEFAULT_LAB
    if len(there) > 1:
        there = [name for name in there if answering(_hosts_or_none(name, root))] or there
    if len(there) > 1:
        from swarm.errors import FailedPrecondition

        raise FailedPrecondition(
            f"there are several labs on this machine: {', '.join(there)}; say which with {flag} NAME or SWARM_LAB"
        )
    return there[0] if there else None


def no_lab(name: str, root: Path | None = None) -> NotFound:
    """There is no lab of that name."""
    from swarm.errors import NotFound

    others = described(root)
    there = f" (there is {', '.join(others)})" if others else ""
    return NotFound(f"there is no lab {name!r} on this machine{there}; `{up_command(name)}` builds it")


def no_host(lab: str, host: str, known: Iterable[str]) -> NotFound:
    """The lab has no host of that name."""
    from swarm.errors import NotFound

    return NotFound(f"lab {lab!r} has no host {host!r}; its hosts are {', '.join(known)}")


def not_running(lab: str, host: str) -> FailedPrecondition:
    """The host is powered off."""
    from swarm.errors import FailedPrecondition

    return FailedPrecondition(
        f"host {host!r} of lab {lab!r} is not running; boot it with `swarmctl lab start{_named(lab)} {host}`"
    )


def up_command(lab: str) -> str:
    """What to type to have the lab built, or started again."""
    return f"swarmctl lab up{_named(lab)}"


def _named(lab: str) -> str:
    return "" if lab == DEFAULT_LAB else f" --name {lab}"


def _hosts_or_none(name: str, root: Path | None) -> list[dict[str, Any]]:
    from swarm.errors import SwarmError

    try:
        return read_hosts(name, root)
    except SwarmError:  # damaged, or removed meanwhile
        return []


def _listens(path: Path) -> bool:
    import socket

    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(CONNECT_TIMEOUT)
        try:
            probe.connect(str(path))
        except PermissionError:
            return True  # somebody's, whom we may not talk to
        except OSError:
            return False
    return True
