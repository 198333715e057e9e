"""`swarmd`, the node daemon: options, logging, the lock on the state directory, and the parts that do I/O."""

from __future__ import annotations

from swarm import footprint

footprint.begin()

# ruff: noqa: E402 – everything else is imported by a process that was told to stay small
import asyncio
import logging
import os
import random
import sys
from collections.abc import Sequence

from agent.node.options import Options, parse


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Ends with the exit code of the error that stopped it."""
    options = parse(arguments)
    # Children are started by vfork and exec; gRPC's own fork handlers only slow that down and log about it.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    _set_up_logging(options)
    from swarm.errors import SwarmError

    from agent.node.children import become_subreaper, lock_state, raise_open_files

    try:
        lock = lock_state(options.state)
        become_subreaper()
        raise_open_files()
        with lock:
            asyncio.run(_run(options))
    except SwarmError as error:
        print(f"swarmd: {error}", file=sys.stderr)  # noqa: T201 – before it ends, also where the log is a file
        raise SystemExit(error.exit_code) from error


async def _run(options: Options) -> None:
    from swarm import stalls
    from swarm.clock import SystemClock
    from swarm.identity import TlsFiles

    from agent.images.store import BuildahImages
    from agent.network.plane import LinuxDataPlane
    from agent.node.daemon import Daemon
    from agent.runtime.oci import OciRuntime

    options.run.mkdir(parents=True, exist_ok=True, mode=0o755)
    images = BuildahImages(options.state, options.run, TlsFiles(options.certificates), "")
    daemon = Daemon(
        options,
        OciRuntime(options.state, options.run, options.cgroup_parent),
        images,
        lambda: LinuxDataPlane(options.state, options.run),
        clock=SystemClock(),
        rng=random.Random(),
        use_registry=images.use_registry,
    )
    with stalls.told(asyncio.get_running_loop()):
        await daemon.run()


def _set_up_logging(options: Options) -> None:
    handler: logging.Handler
    if options.log_file is not None:
        from logging.handlers import WatchedFileHandler

        options.log_file.parent.mkdir(parents=True, exist_ok=True)
        handler = WatchedFileHandler(options.log_file)
    else:
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=options.log_level.upper(), handlers=[handler])
    logging.getLogger("grpc").setLevel(logging.WARNING)  # a line for each call otherwise


if __name__ == "__main__":
    main()
