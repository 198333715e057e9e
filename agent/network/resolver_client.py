"""The agent's side of the resolver: starts it where it does not run, tells it what changed, starts it again when it dies.

It is told differences only; after a new start (of it or of us) everything. A message that fails is sent again, once, to a
resolver started anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from swarm.errors import Unavailable

from agent.network.dns_records import Record
from agent.network.resolver_wire import PID, STATE, VERSION, Message, read_message, socket_path, write_message

START_SECONDS = 20.0
REPLY_SECONDS = 10.0
STREAM_LIMIT = 1 << 20
_LACKING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)

log = logging.getLogger(__name__)


class ResolverClient:
    """One resolver. `update` may be called at any time; calls are carried out in turn."""

    def __init__(self, run_dir: Path, log_path: Path, resolv_conf: Path) -> None:
        self._run_dir = run_dir
        self._log_path = log_path
        self._resolv_conf = resolv_conf  # of the host: whom the resolver asks
        self._networks_known = False  # before the first view those that the resolver kept must stay
        self._lock = asyncio.Lock()
        self._connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._networks: dict[str, Record] = {}
        self._containers: dict[str, Message] = {}
        self._failed: dict[str, str] = {}  # containers that it could not serve when it was told last, and why
        self._wanted_networks: dict[str, Record] = {}
        self._wanted_containers: dict[str, Message] = {}
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self, containers: Mapping[str, Message]) -> None:
        """Connects; starts the process where there is none or one of another version. The networks that it knows already
        stay until `set_networks` is called. Raises Unavailable."""
        self._wanted_containers = dict(containers)
        async with self._lock:
            await self._connect()

    async def set_networks(self, networks: Mapping[str, Record]) -> None:
        self._wanted_networks = dict(networks)
        if not self._networks_known:
            self._networks_known = True
            async with self._lock:
                await self._ask(self._everything())
        await self._tell()

    async def set_container(self, container_id: str, container: Message | None) -> None:
        """`container`: {"namespace", "inode", "networks", "nameservers", "outside"}; None when it goes. Raises Unavailable,
        also where the resolver cannot serve it: nobody would try that again before something else changes."""
        if container is None:
            self._wanted_containers.pop(container_id, None)
            self._failed.pop(container_id, None)
        else:
            self._wanted_containers[container_id] = container
        await self._tell()
        if container_id in self._failed and container is not None:
            raise Unavailable(f"the resolver cannot answer in the container: {self._failed[container_id]}")

    async def ended(self) -> None:
        """Returns when the resolver has ended, at once where there is none."""
        pid = running_resolver(self._run_dir)
        if pid is None:
            return
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            await _readable(descriptor)
        finally:
            os.close(descriptor)

    async def refresh(self) -> None:
        """Makes sure that the resolver runs and knows everything."""
        async with self._lock:
            await self._ask({"op": "ping"})
        await self._tell()

    async def _tell(self) -> None:
        async with self._lock:
            networks = _changes(self._networks, self._wanted_networks)
            containers = _changes(self._containers, self._wanted_containers)
            # Without a connection nobody knows what it heard: somebody gave up waiting for its answer, say.
            if not networks and not containers and self._connection is not None:
                return
            reply = await self._ask({"op": "update", "networks": networks, "containers": containers})
            if reply.get("restarted"):
                return  # it was told everything when it was started
            self._told(networks, containers, reply)

    def _told(
        self, networks: Mapping[str, Record | None], containers: Mapping[str, Message | None], reply: Message
    ) -> None:
        """Remembers what was said, and not what is wanted by now: that may be something else since."""
        failed = reply.get("failed", {})
        for network_id, record in networks.items():
            _keep(self._networks, network_id, record)
        for container_id, container in containers.items():
            self._failed.pop(container_id, None)
            if container_id not in failed:
                _keep(self._containers, container_id, container)
        for container_id, reason in failed.items():
            self._failed[container_id] = reason
            log.warning("task %s: its resolver could not be opened: %s", container_id, reason)

    async def _ask(self, message: Message) -> Message:
        try:
            return await self._exchange(message)
        except (OSError, ValueError) as error:
            log.warning("the resolver does not answer and is started again: %s", error or "timeout")
        await self._connect()
        return {"restarted": True}

    async def _exchange(self, message: Message) -> Message:
        if self._connection is None:
            raise ConnectionError("not connected")
        reader, writer = self._connection
        try:
            async with asyncio.timeout(REPLY_SECONDS):
                await write_message(writer, message)
                reply = await read_message(reader)
        except BaseException:
            self._disconnect()  # whatever comes now would answer another question
            raise
        if reply is None or not reply.get("ok"):
            self._disconnect()
            raise ConnectionError(str(reply.get("error")) if reply else "the connection ended")
        return reply

    async def _connect(self) -> None:
        """Leaves us connected to a resolver that was told everything."""
        self._disconnect()
        try:
            await self._open()
            hello = await self._exchange({"op": "ping"})
            if hello.get("version") != VERSION:
                await self._exchange({"op": "stop"})
                raise ConnectionError(f"version {hello.get('version')} is replaced")
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in _LACKING:  # it is ourselves who cannot talk to it
                raise Unavailable(f"the resolver of {self._run_dir} cannot be asked: {error.strerror}") from error
            try:
                await self._launch()
                await self._open()
            except OSError as error:
                raise Unavailable(f"the resolver of {self._run_dir} does not answer: {error}") from error
        everything = self._everything()
        try:
            reply = await self._exchange(everything)
        except (OSError, ValueError) as error:
            raise Unavailable(f"the resolver of {self._run_dir} does not answer: {error}") from error
        self._networks, self._containers = {}, {}
        self._told(everything.get("networks", {}), everything["containers"], reply)

    def _everything(self) -> Message:
        message: Message = {"op": "update", "complete": ["containers"], "containers": dict(self._wanted_containers)}
        if self._networks_known:
            message |= {"complete": ["containers", "networks"], "networks": dict(self._wanted_networks)}
        return message

    async def _open(self) -> None:
        async with asyncio.timeout(REPLY_SECONDS):
            self._connection = await asyncio.open_unix_connection(socket_path(self._run_dir), limit=STREAM_LIMIT)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection[1].close()
            self._connection = None

    async def _launch(self) -> None:
        """Starts the process and waits until it answers. It stays when we go."""
        await self._end(signal.SIGTERM)
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        self._run_dir.mkdir(parents=True, exist_ok=True)
        self._process, answers = _spawn(self._run_dir, self._log_path, self._resolv_conf)
        try:
            async with asyncio.timeout(START_SECONDS):
                ready = await _first_line(answers)
        except TimeoutError:
            ready = b""
        finally:
            os.close(answers)
        if ready.strip() != b"ready":
            raise Unavailable(f"the resolver did not start; see {self._log_path}")

    async def _end(self, number: int) -> None:
        """Ends a resolver that holds the run directory but does not talk, by the pid that it wrote."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            await _wait_for_end(self._process.pid)
            self._process.wait()
        self._process = None
        pid = running_resolver(self._run_dir)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            await _wait_for_end(pid)

    async def stop(self, *, remove: bool) -> None:
        """Lets go of the resolver; with `remove` ends it and removes its files."""
        async with self._lock:
            if remove:
                with contextlib.suppress(OSError, ValueError):
                    if self._connection is None:
                        await self._open()
                    await self._exchange({"op": "stop"})
                await self._end(signal.SIGTERM)
                for name in (STATE, PID, socket_path(self._run_dir).name):
                    (self._run_dir / name).unlink(missing_ok=True)
            self._disconnect()


def _spawn(run_dir: Path, log_path: Path, resolv_conf: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Starts the process, and the descriptor where it says that it is ready. Not one of asyncio's subprocesses: those are
    killed when the event loop ends, and this one must stay."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        with log_path.open("ab") as output:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "agent.network.resolver"),
                    *("--run-dir", str(run_dir.absolute()), "--resolv-conf", str(resolv_conf.absolute())),
                ],
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=output,
                start_new_session=True,
                cwd="/",
            )
    except OSError:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return process, reading


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(descriptor, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(descriptor)


async def _first_line(descriptor: int) -> bytes:
    """What is written to a pipe first; empty where it is closed instead."""
    await _readable(descriptor)
    return os.read(descriptor, 64)


def running_resolver(run_dir: Path) -> int | None:
    """The pid of the resolver that serves the run directory; None where none does."""
    try:
        pid = int((run_dir / PID).read_text())
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    # The number may belong to another program by now.
    ours = b"agent.network.resolver" in arguments and os.fsencode(run_dir.absolute()) in arguments
    return pid if ours else None


async def _wait_for_end(pid: int) -> None:
    """Waits until the process has ended; after REPLY_SECONDS it is killed."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        async with asyncio.timeout(REPLY_SECONDS):
            await _readable(descriptor)
    except TimeoutError:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    finally:
        os.close(descriptor)


def _changes(told: Mapping[str, Message], wanted: Mapping[str, Message]) -> dict[str, Message | None]:
    changed: dict[str, Message | None] = {key: value for key, value in wanted.items() if told.get(key) != value}
    changed.update((key, None) for key in told if key not in wanted)
    return changed


def _keep(kept: dict[str, Message], key: str, value: Message | None) -> None:
    if value is None:
        kept.pop(key, None)
    else:
        kept[key] = value
