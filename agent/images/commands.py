"""buildah as a subprocess: its settings, its output as lines, its complaints as our errors.

Every host (also of a lab) has its own store, its own configuration files and its own temporary directory; what an
administrator configured under /etc/containers is respected, what is missing there is written by us.  Nothing that a buildah
needs is in our memory.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import shutil
import signal
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path

from swarm.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidArgument,
    ResourceExhausted,
    SwarmError,
    is_disk_full,
)
from swarm.identity import TlsFiles, write_atomically
from swarm.process import kill_group, missing_program

from agent.disk import MAKE_ROOM
from agent.images import short_names
from agent.images.complaints import explain, progress_of, separated
from agent.images.reference import PUBLIC_REGISTRY, Reference

RETRY_OPTIONS = ("--retry", "2", "--retry-delay", "500ms")  # of one pull or push; who asks for it repeats it at leisure
PULL_TIMEOUT = 1800.0  # seconds for one image
BUILD_TIMEOUT = 3600.0
LOCAL_TIMEOUT = 120.0  # for what asks nobody else
MAX_LINE = 64 * 1024
_COMPLAINT_LINES = 12
_HOST_CONFIGURATION = Path("/etc/containers")

Explained = Callable[[str, str], SwarmError]  # (subject, what buildah complained of) → the error for people


class Buildah:
    """Runs buildah on one store. `root` on disk, `run_root` gone after a reboot."""

    def __init__(self, root: Path, run_root: Path, tls: TlsFiles) -> None:
        self._root = root
        self._run_root = run_root
        self._tls = tls
        self._configuration = run_root.with_name(run_root.name + "-configuration")
        self._temporary = root.with_name(root.name + "-temporary")
        self.default_registry = ""

    @property
    def temporary(self) -> Path:
        """A directory on the store's disk for what is under way."""
        with _as_swarm_error(self._temporary):
            self._temporary.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self._temporary

    def registry_options(self, reference: Reference) -> list[str]:
        """How the registry of a reference is to be trusted."""
        if reference.registry == self.default_registry and self._tls.exists():
            return ["--cert-dir", str(self._certificates())]
        return ["--tls-verify=false"] if reference.is_loopback else []

    def _certificates(self) -> Path:
        """The node's certificate under the names that containers tools look for; links, so that a renewal shows at once."""
        directory = self._configuration / "certificates"
        wanted = {"client.cert": self._tls.certificate, "client.key": self._tls.key, "ca.crt": self._tls.ca}
        with _as_swarm_error(directory):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name, target in wanted.items():
                link = directory / name
                if not link.is_symlink() or link.readlink() != target:
                    link.unlink(missing_ok=True)
                    with contextlib.suppress(FileExistsError):  # made by another pull
                        link.symlink_to(target)
        return directory

    def policy_options(self) -> list[str]:
        """Which signatures are required: what the host says, nothing where it says nothing."""
        if (_HOST_CONFIGURATION / "policy.json").exists():
            return []
        path = self._configuration / "policy.json"
        _write_once(path, json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
        return ["--signature-policy", str(path)]

    def _global_options(self, driver: str) -> list[str]:
        # what somebody's podman once recorded for short names on this host stays out
        aliases = self._configuration / "short-name-aliases.conf"
        _write_once(aliases, "")
        # else the store bind-mounts its directory on itself and leaves that mount behind
        options = ["--storage-opt", "overlay.skip_mount_home=true"] if driver == "overlay" else []
        return [
            *("--root", str(self._root), "--runroot", str(self._run_root), "--storage-driver", driver, *options),
            *("--short-name-alias-conf", str(aliases)),
        ]

    def short_names(self) -> dict[str, str]:
        """The environment of a build: what its instructions call by a short name comes from where short names belong."""
        home = self._configuration / "home"
        with _as_swarm_error(home):
            texts = self.host_registries()
            short_names.prepare_home(home, self.default_registry or PUBLIC_REGISTRY, texts, short_names.user_home())
        return {"HOME": str(home)}

    @staticmethod
    def host_registries() -> list[str]:
        """What the host's administrator says of registries: the texts of the files."""
        files = []
        for directory in (_HOST_CONFIGURATION, short_names.user_home() / short_names.USER_CONFIGURATION):
            files += [directory / "registries.conf", *sorted((directory / short_names.DROP_INS).glob("*.conf"))]
        return [path.read_text(errors="replace") for path in files if path.is_file()]

    @contextlib.contextmanager
    def auth_file(self, registry: str, auth: str) -> Iterator[list[str]]:
        """Options that carry credentials (base64 of user:password): in a file, because everybody can read a command line."""
        if not auth:
            yield []
            return
        check_auth(auth)
        key = "https://index.docker.io/v1/" if registry == PUBLIC_REGISTRY else registry
        path = self._configuration / f"auth-{uuid.uuid4().hex}.json"
        with _as_swarm_error(path):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(path, json.dumps({"auths": {key: {"auth": auth}}}).encode())
        try:
            yield ["--authfile", str(path)]
        finally:
            path.unlink(missing_ok=True)

    async def run(
        self,
        driver: str,
        words: Sequence[str],
        subject: str,
        *,
        timeout: float = LOCAL_TIMEOUT,
        explained: Explained = explain,
    ) -> str:
        """Runs to the end; what it printed to stdout. Raises what `explained` makes of a failure of `subject`."""
        said = self.lines(driver, words, subject, timeout=timeout, only_stdout=True, explained=explained)
        return "\n".join([line async for line in said])

    async def lines(
        self,
        driver: str,
        words: Sequence[str],
        subject: str,
        *,
        timeout: float,
        only_stdout: bool = False,
        environment: Mapping[str, str] | None = None,
        explained: Explained = explain,
    ) -> AsyncGenerator[str, None]:
        """What it prints, line by line. Leaving the iteration ends the program with all its children.

        `environment` adds to ours; `explained` makes an error of `subject` and what it complained of at last.
        """
        arguments = ["buildah", *self._global_options(driver), *words]
        # its own, so that what it leaves when it is killed can be removed
        temporary = self.temporary / uuid.uuid4().hex
        settings = {"TMPDIR": str(temporary), "BUILDAH_ISOLATION": "chroot", "LC_ALL": "C", **(environment or {})}
        with _as_swarm_error(temporary):
            temporary.mkdir(mode=0o700)
        try:
            process = await asyncio.create_subprocess_exec(
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, **settings},
                start_new_session=True,
            )
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, FileNotFoundError):
                raise missing_program(arguments[0]) from error
            if isinstance(error, (OSError, RuntimeError)):  # as in `swarm.process`
                reason = error.strerror if isinstance(error, OSError) else error
                raise ResourceExhausted(f"{subject}: the program `buildah` could not be started: {reason}") from error
            raise
        queue: asyncio.Queue[str | None] = asyncio.Queue(1000)
        complaints: list[str] = []

        async def pump(stream: asyncio.StreamReader, show: bool) -> None:
            async for line in _lines(stream):
                for part in separated(line) if stream is process.stderr else [line]:
                    if stream is process.stderr:
                        complaints.append(part)
                        del complaints[:-_COMPLAINT_LINES]
                    shown = progress_of(part) if stream is process.stderr else part
                    if show and shown:
                        await queue.put(shown)
            await queue.put(None)

        assert process.stdout is not None and process.stderr is not None
        pumps = [
            asyncio.ensure_future(pump(process.stdout, True)),
            asyncio.ensure_future(pump(process.stderr, not only_stdout)),
        ]
        # Not one deadline around all: whoever iterates may do other things between two lines.
        deadline = asyncio.get_running_loop().time() + timeout
        try:
            open_streams = len(pumps)
            while open_streams:
                async with asyncio.timeout_at(deadline):
                    line = await queue.get()
                if line is None:
                    open_streams -= 1
                else:
                    yield line
            async with asyncio.timeout_at(deadline):
                code = await process.wait()
        except TimeoutError:
            raise DeadlineExceeded(
                f"{subject}: `buildah {words[0]}` did not end within {timeout:g} s and was killed"
            ) from None
        finally:
            for task in pumps:
                task.cancel()
            await asyncio.shield(_end(process))
            shutil.rmtree(temporary, ignore_errors=True)
        if code != 0:
            raise explained(subject, "\n".join(complaints))


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ends it, where it runs, and what a step of a build left running in the background."""
    await kill_group(process)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines without limit of the reader's own: a longer one comes in pieces. A carriage return ends one, too."""
    rest = b""
    while piece := await stream.read(MAX_LINE):
        *complete, rest = re.split(rb"[\r\n]+", rest + piece)
        if len(rest) > MAX_LINE:
            complete, rest = [*complete, rest], b""
        for line in complete:
            if line:
                yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")


def _write_once(path: Path, text: str) -> None:
    with _as_swarm_error(path):
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(path, text.encode())


@contextlib.contextmanager
def _as_swarm_error(place: Path) -> Iterator[None]:
    """Around what buildah needs of ours on a disk."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise ResourceExhausted(f"the disk of {place} is full; {MAKE_ROOM}") from error
        raise InternalError(f"{place} cannot be made: {error.strerror or error}") from error


def check_auth(auth: str) -> tuple[str, str]:
    """(user, password) from base64 of `user:password`. Raises InvalidArgument."""
    try:
        user, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
    except ValueError as error:
        raise InvalidArgument("the registry's credentials are not base64 of user:password") from error
    if not colon or not user:
        raise InvalidArgument("the registry's credentials are not base64 of user:password")
    return user, password
