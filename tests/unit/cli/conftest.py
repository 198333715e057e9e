"""A manager and a node daemon that answer what a test tells them to, on Unix sockets, and remember what they were asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from swarm.errors import NotFound
from swarm.servers import RpcServer
from swarm.v1 import control_pb2_grpc, node_pb2_grpc

from orchestrator.cli import main as program


@dataclass
class Script:
    """What to answer: by method, a message, an error, a list (of a stream: messages and errors), or a function of the request.

    A list under a unary method is used up, one answer a call.
    """

    answers: dict[str, Any] = field(default_factory=dict)
    requests: list[tuple[str, Any]] = field(default_factory=list)

    def asked(self, method: str) -> list[Any]:
        return [request for name, request in self.requests if name == method]

    def only(self, method: str) -> Any:
        (request,) = self.asked(method)
        return request

    def answer(self, method: str, request: Any) -> Any:
        self.requests.append((method, request))
        if method not in self.answers:
            raise NotFound(f"the test has no answer for {method}")
        answer = self.answers[method]
        if isinstance(answer, list):
            answer = answer.pop(0)
        return self.resolve(answer, request)

    def stream(self, method: str, request: Any) -> Iterator[Any]:
        self.requests.append((method, request))
        answers = self.answers.get(method, [NotFound(f"the test has no answer for {method}")])
        if callable(answers):
            answers = answers(request)
        for answer in answers:
            yield self.resolve(answer, request)

    @staticmethod
    def resolve(answer: Any, request: Any) -> Any:
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, Exception):
            raise answer
        return answer


def _servicer(base: type[Any], script: Script, streams: set[str], uploads: set[str] = frozenset()) -> Any:  # type: ignore[assignment]
    def unary(name: str) -> Any:
        async def method(self: Any, request: Any, context: Any) -> Any:
            return script.answer(name, request)

        return method

    def stream(name: str) -> Any:
        async def method(self: Any, request: Any, context: Any) -> Any:
            if name in uploads:
                request = [part async for part in request]
            for answer in script.stream(name, request):
                yield answer

        return method

    names = [name for name in vars(base) if not name.startswith("_")]
    return type("Fake", (base,), {name: stream(name) if name in streams else unary(name) for name in names})()


class Served:
    """Runs the fake services in a thread with a loop of its own: the command line has none."""

    def __init__(self, directory: Path, script: Script, *, control: bool = True, daemon: bool = False) -> None:
        self.directory = directory
        self.control_socket = directory / "control.sock"
        self.script = script
        self._with = (control, daemon)
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)

    async def _serve(self) -> None:
        servers = []
        if self._with[0]:
            server = RpcServer()
            streams = {"WatchService", "ServiceLogs", "SaveSnapshot"}
            servicer = _servicer(control_pb2_grpc.ControlServicer, self.script, streams)
            control_pb2_grpc.add_ControlServicer_to_server(servicer, server.server)
            server.listen_unix(self.control_socket)
            servers.append(server)
        if self._with[1]:
            server = RpcServer()
            local = _servicer(node_pb2_grpc.LocalNodeServicer, self.script, set())
            node_pb2_grpc.add_LocalNodeServicer_to_server(local, server.server)
            streams = {"Build", "Pull", "Push", "Import", "Load", "Save"}
            images = _servicer(node_pb2_grpc.ImagesServicer, self.script, streams, {"Build", "Import", "Load"})
            node_pb2_grpc.add_ImagesServicer_to_server(images, server.server)
            server.listen_unix(self.directory / "swarmd.sock")
            servers.append(server)
        for server in servers:
            await server.start()
        self._ready.set()
        await self._stop.wait()
        for server in servers:
            await server.stop(0)

    def start(self) -> Served:
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        self._loop.close()


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever runs on this machine, or is set in the environment, is none of these tests' business."""
    for name in ("SWARM_HOST", "SWARM_TLS", "SWARM_LAB", "SWARM_NODE", "SWARMCTL_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("orchestrator.cli.target.RUN_DIRECTORY", tmp_path / "no-run")
    monkeypatch.setattr("orchestrator.cli.target.LAB_DIRECTORY", tmp_path / "no-lab")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts servers; they end with the test."""
    running: list[Served] = []

    def start(script: Script, name: str = "m", **what: bool) -> Served:
        directory = tmp_path / name
        directory.mkdir()
        running.append(Served(directory, script, **what).start())
        return running[-1]

    yield start
    for one in running:
        one.stop()


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def swarmctl(script: Script, serve: Callable[..., Served], capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs a command line against a manager and a daemon that follow `script`."""
    served = serve(script, daemon=True)

    def run(*words: str) -> Result:
        capsys.readouterr()
        code = program.run(["--host", f"unix://{served.control_socket}", *words])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run
