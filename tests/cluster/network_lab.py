"""Hosts for the data plane's tests: namespaces joined by a bridge, each with a data plane of its own, and an outsider.

Everything has names of its own (pid and a random part), so that several tests may run at once, and is removed whatever happens.
Sockets are opened inside namespaces by threads that go there; the servers of a test are threads of the test.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import os
import pickle
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from swarm import names
from swarm.v1 import dispatcher_pb2 as dispatcher
from swarm.v1 import types_pb2 as types

from agent.network import namespaces
from agent.network.interface import ContainerNetwork, HostPort, NetworkView, OverlayView
from agent.network.namespaces import NamespaceThreads
from agent.network.resolver_client import running_resolver

T = TypeVar("T")
REPOSITORY = Path(__file__).parents[2]
WAIT = 5.0

INGRESS = types.Network(
    id="ingress-id",
    vni=4096,
    subnet="10.255.0.0/20",
    gateway="10.255.0.1",
    spec=types.NetworkSpec(name="ingress", ingress=True, driver="overlay"),
)
BACKEND = types.Network(
    id="backend-id", vni=4097, subnet="10.0.16.0/20", gateway="10.0.16.1", spec=types.NetworkSpec(name="backend")
)
OTHER = types.Network(
    id="other-id", vni=4098, subnet="10.0.32.0/20", gateway="10.0.32.1", spec=types.NetworkSpec(name="other")
)
CLOSED = types.Network(
    id="closed-id",
    vni=4099,
    subnet="10.0.48.0/20",
    gateway="10.0.48.1",
    spec=types.NetworkSpec(name="closed", internal=True),
)


def run(*arguments: str | Path, namespace: str = "") -> str:
    prefix = ("nsenter", f"--net=/run/netns/{namespace}") if namespace else ()
    words = [*prefix, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise AssertionError(f"{words}: {done.stderr}{done.stdout}")
    return done.stdout


class Host:
    """One host: its namespace, its address, and its data plane in a process of its own."""

    def __init__(self, lab: Lab, number: int) -> None:
        self.number = number
        self.node_id = f"node{number}"
        self.namespace = f"{lab.prefix}h{number}"
        self.address = f"192.0.2.{number}"
        self.directory = lab.directory / f"h{number}"
        self.run_dir = self.directory / "run"
        self._resolv_conf = lab.directory / "resolv.conf"
        self._process: asyncio.subprocess.Process | None = None
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._reading: asyncio.Task[None] | None = None
        self._count = 0

    async def start(self) -> None:
        """Starts the process of the data plane and the data plane in it."""
        self.directory.mkdir(exist_ok=True)
        with (self.directory / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                "nsenter",
                f"--net=/run/netns/{self.namespace}",
                sys.executable,
                "-m",
                "tests.cluster.network_driver",
                str(self.directory / "state"),
                str(self.run_dir),
                str(self._resolv_conf),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                cwd=REPOSITORY,
                limit=64 << 20,
            )
        self._reading = asyncio.create_task(self._read())
        await self.call("start")

    async def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        while line := await self._process.stdout.readline():
            number, good, result = pickle.loads(base64.b64decode(line))
            future = self._waiting.pop(number)
            if not future.done():
                future.set_result(result) if good else future.set_exception(AssertionError(result))
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(AssertionError(f"{self.node_id} ended"))

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        assert self._process is not None and self._process.stdin is not None
        self._count += 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[self._count] = future
        data = pickle.dumps((self._count, method, args, kwargs))
        self._process.stdin.write(base64.b64encode(data) + b"\n")
        async with asyncio.timeout(30):
            return await future

    async def kill(self) -> None:
        """Kills the process as a crash would."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        if self._reading is not None:
            await self._reading
        self._process = None

    def namespace_of(self, task_id: str) -> Path:
        return self.run_dir / "netns" / task_id

    @property
    def path(self) -> Path:
        return Path("/run/netns") / self.namespace


class Lab:
    """Hosts 192.0.2.N on one wire, and an outsider at 192.0.2.200."""

    def __init__(self, hosts: int, mtu: int = 1500) -> None:
        self.prefix = f"t{os.getpid()}{secrets.token_hex(2)}"
        self.directory = Path(tempfile.mkdtemp(prefix="swarm-net-"))
        (self.directory / "resolv.conf").write_text("search example.test\nnameserver 192.0.2.200\n")
        self.hosts = [Host(self, number) for number in range(1, hosts + 1)]
        self.threads = NamespaceThreads(4)
        self._stopping = threading.Event()
        self._servers: list[threading.Thread] = []
        self._mtu = mtu
        self.tasks: dict[str, tuple[Host, tuple[types.NetworkAttachment, ...], dispatcher.Endpoint]] = {}
        self.endpoints: dict[tuple[str, str], dispatcher.Endpoint] = {}
        self.services: dict[tuple[str, str], dispatcher.ServiceEndpoint] = {}
        self.host_ports: list[HostPort] = []
        self.index = 0

    @property
    def outside(self) -> Path:
        return Path(f"/run/netns/{self.prefix}out")

    async def up(self) -> None:
        switch = f"{self.prefix}sw"
        run("ip", "netns", "add", switch)
        run("ip", "link", "add", "wire", "type", "bridge", namespace=switch)
        run("ip", "link", "set", "wire", "up", namespace=switch)
        for namespace, address in [
            *((host.namespace, host.address) for host in self.hosts),
            (self.outside.name, "192.0.2.200"),
        ]:
            run("ip", "netns", "add", namespace)
            port = f"p{address.rpartition('.')[2]}"
            words = ("ip", "link", "add", port, "type", "veth", "peer", "name", "uplink", "netns", namespace)
            run(*words, namespace=switch)
            run("ip", "link", "set", port, "master", "wire", "mtu", str(self._mtu), "up", namespace=switch)
            run("ip", "link", "set", "lo", "up", namespace=namespace)
            run("ip", "link", "set", "uplink", "mtu", str(self._mtu), "up", namespace=namespace)
            run("ip", "address", "add", f"{address}/24", "dev", "uplink", namespace=namespace)
            run("ip", "route", "add", "default", "via", "192.0.2.200", namespace=namespace)
        await asyncio.gather(*(host.start() for host in self.hosts))

    async def down(self) -> None:
        self._stopping.set()
        for host in self.hosts:
            await host.kill()
            pid = running_resolver(host.run_dir)
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for path in (host.run_dir / "netns").glob("*"):
                namespaces.delete(path)
        for server in self._servers:
            await asyncio.to_thread(server.join, WAIT)
        self.threads.close()
        for namespace in [*(host.namespace for host in self.hosts), self.outside.name, f"{self.prefix}sw"]:
            await asyncio.to_thread(namespaces.delete, Path("/run/netns") / namespace)
        shutil.rmtree(self.directory, ignore_errors=True)

    # ------------------------------------------------------------------------------------------------ cluster state

    def service(
        self,
        name: str,
        vip: str,
        network: types.Network = BACKEND,
        ports: tuple[types.PortConfig, ...] = (),
        **more: Any,
    ) -> None:
        """Declares a service; with ports it is published on the ingress network."""
        self.services[network.id, name] = dispatcher.ServiceEndpoint(
            network_id=network.id, service_id=name, name=name, virtual_ip=vip, **more
        )
        if ports:
            self.services[INGRESS.id, name] = dispatcher.ServiceEndpoint(
                network_id=INGRESS.id, service_id=name, name=name, ports=ports
            )

    def task(self, host: Host, service: str, slot: int, *, networks: tuple[types.Network, ...] = (BACKEND,)) -> str:
        """Declares a task that serves; its addresses end in 16 × service's length + slot."""
        task_id = f"{service}{slot}-{self.prefix}"
        attachments = []
        for network in networks:
            address = str(_nth(network.subnet, 16 * len(service) + slot))
            attachments.append(
                types.NetworkAttachment(network_id=network.id, address=f"{address}/20", mac=names.endpoint_mac(address))
            )
            self.endpoints[network.id, task_id] = dispatcher.Endpoint(
                network_id=network.id,
                task_id=task_id,
                service_id=service,
                node_id=host.node_id,
                address=address,
                mac=names.endpoint_mac(address),
                serving=True,
                hostname=f"{service}-{slot}",
                slot=slot,
            )
        self.tasks[task_id] = (host, tuple(attachments), self.endpoints[networks[0].id, task_id])
        return task_id

    def withdraw(self, task_id: str) -> None:
        """The task serves no longer."""
        for key, endpoint in self.endpoints.items():
            if key[1] == task_id:
                changed = dispatcher.Endpoint()
                changed.CopyFrom(endpoint)
                changed.serving = False
                self.endpoints[key] = changed

    def forget(self, task_id: str) -> None:
        self.tasks.pop(task_id)
        self.endpoints = {key: endpoint for key, endpoint in self.endpoints.items() if key[1] != task_id}

    def view(self, host: Host) -> NetworkView:
        used = {INGRESS.id} | {
            attachment.network_id
            for owner, attachments, _ in self.tasks.values()
            if owner is host
            for attachment in attachments
        }
        overlays = tuple(
            OverlayView(
                network,
                tuple(one for key, one in self.endpoints.items() if key[0] == network.id),
                tuple(one for key, one in self.services.items() if key[0] == network.id),
            )
            for network in (INGRESS, BACKEND, OTHER, CLOSED)
            if network.id in used
        )
        peers = tuple(
            dispatcher.NodePeer(node_id=one.node_id, name=one.node_id, address=one.address, number=one.number)
            for one in self.hosts
            if one is not host
        )
        ports = tuple(port for port in self.host_ports if self.tasks[port.task_id][0] is host)
        return NetworkView(self.index, host.node_id, host.number, host.address, peers, overlays, ports)

    async def apply(self, *hosts: Host) -> None:
        """Gives every host (or those named) the state as it is declared now."""
        self.index += 1
        await asyncio.gather(*(host.call("apply", self.view(host)) for host in hosts or self.hosts))

    async def attach(self, task_id: str, **more: Any) -> ContainerNetwork:
        host, attachments, endpoint = self.tasks[task_id]
        network: ContainerNetwork = await host.call("attach", task_id, attachments, hostname=endpoint.hostname, **more)
        return network

    async def deploy(self) -> None:
        """Applies, and attaches whatever is declared and not attached."""
        await self.apply()
        await asyncio.gather(*(self.attach(task_id) for task_id in self.tasks))

    def inside(self, task_id: str) -> Path:
        return self.tasks[task_id][0].namespace_of(task_id)

    def address(self, task_id: str, network: types.Network = BACKEND) -> str:
        return self.endpoints[network.id, task_id].address

    # ------------------------------------------------------------------------------------------------ traffic

    def _open(self, path: Path, job: Callable[[], T]) -> T:
        with self.threads.inside(path):
            return job()

    async def serve_tcp(self, path: Path, name: str, port: int = 80, *, hold: bool = False) -> None:
        """Answers each connection with `NAME ADDRESS PORT` of the client; with `hold` it then echoes until the client ends."""

        def listen() -> socket.socket:
            opened = socket.socket()
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(("0.0.0.0", port))
            opened.listen(512)
            opened.settimeout(0.2)
            return opened

        listening = await self.threads.run(self._open, path, listen)
        self._spawn(lambda: self._accept(listening, name, hold))

    def _accept(self, listening: socket.socket, name: str, hold: bool) -> None:
        with listening:
            while not self._stopping.is_set():
                try:
                    client, (address, port) = listening.accept()
                except TimeoutError:
                    continue
                client.settimeout(WAIT)
                with contextlib.suppress(OSError):
                    client.sendall(f"{name} {address} {port}\n".encode())
                if hold:
                    self._spawn(lambda client=client: self._echo(client))  # type: ignore[misc]
                else:
                    client.close()

    def _echo(self, client: socket.socket) -> None:
        client.settimeout(6 * WAIT)  # a client may be busy with something else for a while
        with client, contextlib.suppress(OSError):
            while data := client.recv(65536):
                client.sendall(data)

    async def serve_udp(self, path: Path, name: str, port: int = 53) -> None:
        """Answers each datagram with `NAME ADDRESS PORT` of the client."""

        def bind() -> socket.socket:
            opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            opened.bind(("0.0.0.0", port))
            opened.settimeout(0.2)
            return opened

        bound = await self.threads.run(self._open, path, bind)

        def answer() -> None:
            with bound:
                while not self._stopping.is_set():
                    with contextlib.suppress(OSError):
                        _, client = bound.recvfrom(2048)
                        bound.sendto(f"{name} {client[0]} {client[1]}".encode(), client)

        self._spawn(answer)

    def _spawn(self, job: Callable[[], None]) -> None:
        thread = threading.Thread(target=job, daemon=True)
        thread.start()
        self._servers.append(thread)

    async def connect(
        self, path: Path, address: str, port: int = 80, *, source: tuple[str, int] = ("", 0)
    ) -> socket.socket:
        """An open connection from inside a namespace."""

        def job() -> socket.socket:
            opened = socket.socket()
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.settimeout(WAIT)
            try:
                opened.bind(source)
                opened.connect((address, port))
            except OSError:
                opened.close()
                raise
            return opened

        return await self.threads.run(self._open, path, job)

    async def ask(self, path: Path, address: str, port: int = 80, **more: Any) -> list[str]:
        """What the server at the address says: its name, and our address and port as it sees them."""
        with await self.connect(path, address, port, **more) as connection:
            return (await self.threads.run(connection.recv, 1000)).decode().split()

    async def ask_udp(
        self, path: Path, address: str, port: int = 53, *, data: bytes = b"?", source: tuple[str, int] = ("", 0)
    ) -> bytes:
        def job() -> bytes:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
                opened.settimeout(WAIT)
                opened.bind(source)
                opened.connect((address, port))
                opened.send(data)
                return opened.recv(65535)

        return await self.threads.run(self._open, path, job)


def _nth(subnet: str, offset: int) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Network(subnet)[offset]


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float = 20.0) -> None:
    """Waits until something that no event announces has come true."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def laboratory(hosts: int = 2, mtu: int = 1500) -> AsyncIterator[Lab]:
    lab = Lab(hosts, mtu)
    try:
        await lab.up()
        yield lab
    finally:
        await lab.down()


def port(published: int, target: int = 80, *, udp: bool = False, host: bool = False) -> types.PortConfig:
    return types.PortConfig(
        published_port=published,
        target_port=target,
        protocol=types.PORT_PROTOCOL_UDP if udp else types.PORT_PROTOCOL_TCP,
        mode=types.PUBLISH_MODE_HOST if host else types.PUBLISH_MODE_INGRESS,
    )


@contextlib.contextmanager
def refused() -> Iterator[None]:
    """Expects that a connection is refused, at once."""
    try:
        yield
    except ConnectionRefusedError:
        return
    raise AssertionError("the connection was not refused")
