"""The resolver: answers DNS inside every container's namespace. `python -m agent.network.resolver --run-dir DIR`.

A process of its own, one a host, so that names resolve while the agent restarts. The agent tells it over a Unix socket which
containers there are and which names their networks hold (resolver_wire); it keeps that on disk and takes it up again when it
is itself restarted. Its sockets are opened inside the containers' namespaces by a thread that goes there and comes back;
questions to the outside leave from the host. It imports no more than it needs: it runs on every host, all the time.
"""

from __future__ import annotations

if __name__ == "__main__":
    from swarm import footprint

    footprint.begin()

import argparse
import asyncio
import contextlib
import fcntl
import ipaddress
import json
import logging
import os
import random
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agent.network.dns_answers import NetworkNames, answer, failure
from agent.network.layout import RESOLVER_ADDRESS, RESOLVER_PORT
from agent.network.namespaces import NamespaceThreads
from agent.network.resolver_upstream import HostResolvers, forward
from agent.network.resolver_wire import PID, STATE, VERSION, Message, read_message, socket_path, write_message

MAX_OUTSTANDING = 1000  # questions under way to upstream servers
MAX_CONTAINER_OUTSTANDING = 100  # of them, of one container: others have their names whatever it does
MAX_CONTAINER_STREAMS = 50  # TCP connections of one container
IDLE_SECONDS = 10.0  # of a TCP client
CLOSE_SECONDS = 1.0  # for connections to end when we do
BACKLOG = 64

log = logging.getLogger("swarm.resolver")


class Container(asyncio.DatagramProtocol):
    """One container: its two sockets and what it may know."""

    def __init__(self, resolver: Resolver, description: Message) -> None:
        self._resolver = resolver
        self.description = description
        self._transport: asyncio.DatagramTransport | None = None
        self._server: asyncio.Server | None = None
        self._outstanding = 0
        self._streams = 0

    async def open(self, threads: NamespaceThreads) -> None:
        """Listens inside the namespace. Raises OSError."""
        datagrams, stream = await threads.run(_listen, threads, Path(self.description["namespace"]))
        loop = asyncio.get_running_loop()
        try:
            self._transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=datagrams)
            self._server = await asyncio.start_server(self._serve_stream, sock=stream)
        except OSError:
            self.close()
            datagrams.close()
            stream.close()
            raise

    def close(self) -> None:
        """Closes the sockets: they alone would keep the namespace alive."""
        if self._transport is not None:
            self._transport.abort()
        if self._server is not None:
            self._server.close()

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        transport = self._transport
        if transport is None:
            return
        reply = self._resolver.answer(self.description, data, stream=False)
        if reply is None:

            def send(found: bytes) -> None:
                if not transport.is_closing():  # the container may be gone before its answer
                    transport.sendto(found, addr)

            self._ask_upstream(data, send)
        elif reply:
            transport.sendto(reply, addr)

    def _ask_upstream(self, query: bytes, send: Callable[[bytes], None]) -> None:
        if self._outstanding >= MAX_CONTAINER_OUTSTANDING:
            send(failure(query))
            return
        self._outstanding += 1

        def done() -> None:
            self._outstanding -= 1

        self._resolver.ask_upstream(self.description, query, send, done)

    def error_received(self, exc: Exception) -> None:
        log.debug("a client went away before its answer: %s", exc)

    async def _serve_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._streams >= MAX_CONTAINER_STREAMS:
            writer.close()
            return
        self._streams += 1
        try:
            with self._resolver.serving(writer):
                await self._answer_stream(reader, writer)
        finally:
            self._streams -= 1

    async def _answer_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                async with asyncio.timeout(IDLE_SECONDS):
                    query = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
                reply = self._resolver.answer(self.description, query, stream=True)
                if reply is None:
                    reply = await self._resolver.upstream(self.description, query, stream=True)
                if not reply:
                    return
                writer.write(len(reply).to_bytes(2, "big") + reply)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            return  # the client has what it wanted, or is gone


def _listen(threads: NamespaceThreads, namespace: Path) -> tuple[socket.socket, socket.socket]:
    with threads.inside(namespace):
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            datagrams.bind((RESOLVER_ADDRESS, RESOLVER_PORT))
            stream.bind((RESOLVER_ADDRESS, RESOLVER_PORT))
            stream.listen(BACKLOG)
        except OSError:
            datagrams.close()
            stream.close()
            raise
        return datagrams, stream


class Resolver:
    """Everything that is known, and the conversation with the agent."""

    def __init__(self, run_dir: Path, resolv_conf: Path, rng: random.Random) -> None:
        self._run_dir = run_dir
        self._rng = rng
        self._threads = NamespaceThreads(1)
        self._host = HostResolvers(resolv_conf)
        self._networks: dict[str, NetworkNames] = {}
        self._described: dict[str, Message] = {}  # networks as the agent sent them
        self._containers: dict[str, Container] = {}
        self._asking: set[asyncio.Task[None]] = set()
        self._streams: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}  # open connections and who serves them
        self._updating = asyncio.Lock()
        self.stopping = asyncio.Event()

    # ----------------------------------------------------------------------------------------------------- answers

    def answer(self, container: Message, query: bytes, *, stream: bool) -> bytes | None:
        networks = [self._networks[one] for one in container["networks"] if one in self._networks]
        return answer(query, networks, self._rng, stream=stream)

    async def upstream(self, container: Message, query: bytes, *, stream: bool) -> bytes:
        servers = tuple(container.get("nameservers") or ())
        if not servers and container.get("outside", True):  # else its questions would be a way out of its networks
            servers = self._host.servers()
        return await forward(query, servers, stream=stream) or failure(query)

    def ask_upstream(
        self, container: Message, query: bytes, send: Callable[[bytes], None], done: Callable[[], None]
    ) -> None:
        """Asks in the background and hands the answer to `send`; calls `done` in the end."""
        if len(self._asking) >= MAX_OUTSTANDING:
            send(failure(query))
            done()
            return

        async def ask() -> None:
            reply = await self.upstream(container, query, stream=False)
            if reply:
                send(reply)

        task = asyncio.create_task(ask())
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        task.add_done_callback(lambda _: done())

    # ----------------------------------------------------------------------------------------------------- updates

    async def update(self, message: Message) -> dict[str, str]:
        """Takes over what the agent says; the answer names the containers that could not be served, with the reason."""
        async with self._updating:
            networks: dict[str, Message | None] = message.get("networks", {})
            containers: dict[str, Message | None] = message.get("containers", {})
            complete = message.get("complete", ())
            if "networks" in complete:
                networks = {**dict.fromkeys(self._described), **networks}
            if "containers" in complete:
                containers = {**dict.fromkeys(self._containers), **containers}
            for network_id, record in networks.items():
                self._forget_network(network_id)
                if record is not None:
                    self._described[network_id] = record
                    self._networks[network_id] = _network_names(record)
            failed: dict[str, str] = {}
            for container_id, description in containers.items():
                try:
                    await self._set_container(container_id, description)
                except OSError as error:
                    failed[container_id] = str(error)
            self._save()
            return failed

    def _forget_network(self, network_id: str) -> None:
        self._described.pop(network_id, None)
        self._networks.pop(network_id, None)

    async def _set_container(self, container_id: str, description: Message | None) -> None:
        present = self._containers.get(container_id)
        if present is not None and description is not None and present.description["inode"] == description["inode"]:
            present.description = description
            return
        if present is not None:
            present.close()
            del self._containers[container_id]
        if description is not None:
            container = Container(self, description)
            await container.open(self._threads)
            self._containers[container_id] = container

    # ----------------------------------------------------------------------------------------------------- persistence

    def _save(self) -> None:
        state = {
            "networks": self._described,
            "containers": {key: container.description for key, container in self._containers.items()},
        }
        path = self._run_dir / STATE
        temporary = path.with_suffix(".new")
        try:
            temporary.write_text(json.dumps(state))
            temporary.replace(path)
        except OSError as error:  # names are answered all the same, and the next update is written again
            log.warning("what there is to answer cannot be kept: %s", error)

    async def restore(self) -> None:
        """Takes up what an earlier process kept. What another version wrote may be anything: the agent tells it all again."""
        try:
            state = json.loads((self._run_dir / STATE).read_text())
            failed = await self.update({"networks": state["networks"], "containers": state["containers"]})
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("what an earlier resolver kept cannot be understood: %r", error)
            return
        for container_id, reason in failed.items():
            log.info("container %s is not served: %s", container_id, reason)

    # ----------------------------------------------------------------------------------------------------- conversation

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection of the agent's."""
        with self.serving(writer):
            await self._converse(reader, writer)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (message := await read_message(reader)) is not None:
                operation = message.get("op")
                reply: Message = {"ok": True, "version": VERSION, "pid": os.getpid()}
                if operation == "update":
                    reply["failed"] = await self.update(message)
                elif operation == "stop":
                    self.stopping.set()
                elif operation != "ping":
                    reply = {"ok": False, "error": f"unknown operation {operation!r}"}
                await write_message(writer, reply)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("the agent's connection ended: %s", error)

    @contextlib.contextmanager
    def serving(self, writer: asyncio.StreamWriter) -> Iterator[None]:
        """Around whoever serves a connection, so that `close` can end it."""
        task = asyncio.current_task()
        assert task is not None
        self._streams[writer] = task
        try:
            yield
        finally:
            del self._streams[writer]
            writer.close()

    async def close(self) -> None:
        """Ends all connections and sockets."""
        streams = dict(self._streams)
        for writer in streams:
            writer.close()
        if streams:
            await asyncio.wait(streams.values(), timeout=CLOSE_SECONDS)
        for task in self._asking:
            task.cancel()
        for container in self._containers.values():
            container.close()
        self._threads.close()


def _network_names(record: Message) -> NetworkNames:
    return NetworkNames(record["name"], ipaddress.IPv4Network(record["subnet"]), record["names"], record["reverse"])


async def serve(run_dir: Path, resolv_conf: Path) -> int:
    """Runs until a signal or the agent's `stop`. One process a run directory: the second ends at once."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / PID).open("a+") as pid_file:
        try:
            fcntl.flock(pid_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.error("another resolver serves %s already", run_dir)
            return 1
        pid_file.truncate(0)
        pid_file.write(f"{os.getpid()}\n")
        pid_file.flush()
        resolver = Resolver(run_dir, resolv_conf, random.Random())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, resolver.stopping.set)
        await resolver.restore()
        path = socket_path(run_dir)
        path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(resolver.converse, path)
        path.chmod(0o600)
        _say_ready()
        await resolver.stopping.wait()
        server.close()
        await resolver.close()
        path.unlink(missing_ok=True)
        return 0


def _say_ready() -> None:
    """Tells whoever started us, through standard output, that questions are answered from now on."""
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), b"ready\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="swarm-resolver", description="DNS inside the containers of this host.")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--resolv-conf", type=Path, default=Path("/etc/resolv.conf"), help="names the servers to ask")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    sys.exit(asyncio.run(serve(options.run_dir, options.resolv_conf)))


if __name__ == "__main__":
    main()
