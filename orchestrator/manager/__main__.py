"""`python -m orchestrator.manager init | run | recover | restore | inspect`: see `options`.

All but `run` print one line of JSON; that of `init` is {"node_id", "cluster_id"}. A failure is one sentence on
stderr and an exit code: those of `swarm.errors`, 11 where what this manager has on disk is damaged, 12 where a newer version
wrote it.
"""

from __future__ import annotations

import sys

from swarm import footprint

footprint.begin(tls_listener=any(word.startswith("--metrics-token") for word in sys.argv))

# ruff: noqa: E402 – everything else is imported by a process that was told to stay small
import asyncio
import json
import logging
from collections.abc import Sequence

from swarm.clock import SystemClock
from swarm.errors import InternalError, ResourceExhausted, SwarmError, is_disk_full
from swarm.ids import id_source

from orchestrator.manager.options import InitOptions, OfflineOptions, RunOptions, parse

EXIT_DAMAGED = 11
EXIT_TOO_OLD = 12


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the process's exit code."""
    options = parse(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        if isinstance(options, InitOptions):
            _init(options)
        elif isinstance(options, OfflineOptions):
            _offline(options)
        else:
            _run(options)
    except SwarmError as error:
        sys.stderr.write(f"error: {error}\n")
        return exit_code(error)
    except OSError as error:  # a disk that is full, damaged or not ours to write to
        if isinstance(options, RunOptions):
            logging.getLogger(__name__).exception("the manager failed")
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"error: {where}{error.strerror or error}\n")
        return (ResourceExhausted if is_disk_full(error) else InternalError).exit_code
    return 0


def _init(options: InitOptions) -> None:
    from orchestrator.manager.bootstrap import initialise

    made = initialise(options, clock=SystemClock(), ids=id_source())
    sys.stdout.write(json.dumps(made) + "\n")


def _offline(options: OfflineOptions) -> None:
    from orchestrator.manager import offline

    if options.command == "recover":
        found = offline.recover(options, id_source())
    elif options.command == "restore":
        found = offline.restore(options, SystemClock(), id_source())
    else:
        assert options.file is not None
        found = offline.inspect(options.file)
    sys.stdout.write(json.dumps(found) + "\n")


def _run(options: RunOptions) -> None:
    from orchestrator.manager.pidfile import locked

    with locked(options.places.pid_file):
        asyncio.run(_manager(options))


async def _manager(options: RunOptions) -> None:
    from swarm import stalls

    from orchestrator.manager.process import Manager

    with stalls.told(asyncio.get_running_loop()):
        await Manager(options).run()


def exit_code(error: SwarmError) -> int:
    """The exit code of a manager that ends with `error`."""
    from orchestrator.raft.journal import JournalDamaged
    from orchestrator.raft.snapshots import SnapshotDamaged
    from orchestrator.store.features import NewerVersion

    if isinstance(error, NewerVersion):
        return EXIT_TOO_OLD
    return EXIT_DAMAGED if isinstance(error, JournalDamaged | SnapshotDamaged) else error.exit_code


if __name__ == "__main__":
    sys.exit(main())
