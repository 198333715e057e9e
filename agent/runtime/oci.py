"""The embedded runtime: containers by conmon and an OCI runtime (runc, or crun where the host allows it).

Nothing is remembered in this process.  What there is to know about a container is on disk and in the kernel: its bundle
(STATE/containers/ID/bundle, with the exit code once it has ended), pid files (RUN/containers/ID), the runtime's own state
(RUN/runc) and its control groups.  So an agent that starts again finds everything, and a container that ended meanwhile has
its exit code.  Signals, waiting and removal go through pidfds and files instead of further runs of the OCI runtime, which
would cost more than all the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
from pathlib import Path

from swarm.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    NotFound,
    ResourceExhausted,
    SwarmError,
    is_disk_full,
)
from swarm.process import run

from agent.disk import MAKE_ROOM
from agent.runtime import cgroups, host, monitor, processes
from agent.runtime.execution import execute
from agent.runtime.interface import (
    ContainerPhase,
    ContainerSettings,
    ContainerState,
    ContainerStats,
    ExecResult,
)
from agent.runtime.monitor import MonitorFiles
from agent.runtime.spec import HostFacts, specification
from agent.runtime.users import identity

log = logging.getLogger(__name__)

START_TIMEOUT = 30.0
KILL_TIMEOUT = 20.0  # seconds from SIGKILL to the end; longer only where the kernel hangs in a device
KILLED = 128 + signal.SIGKILL
_CGROUP_ATTEMPTS = 50
_CGROUP_WAIT = 0.02
MONITOR_LOST = "the container's monitor ended without recording an exit code (killed, or the host restarted)"


class OciRuntime:
    """A `Runtime`. One for each state directory; hosts of a lab on one machine do not see each other's containers.

    `cgroup_parent` is the group, from the root of each hierarchy, that containers' groups are made in (`/swarm/NODE`).
    `runtime` names the OCI runtime's program; runc, else crun, where it is None.
    """

    def __init__(self, state_dir: Path, run_dir: Path, cgroup_parent: str, runtime: str | None = None) -> None:
        self._state = state_dir / "containers"
        self._run = run_dir / "containers"
        self._sockets = run_dir / "s"
        self._runtime_root = run_dir / "runc"
        self._cgroup_parent = "/" + cgroup_parent.strip("/")
        self._wanted_runtime = runtime
        self._runtime: Path | None = None
        self._conmon: Path | None = None
        self._facts: HostFacts | None = None

    # ------------------------------------------------------------------------------------------------------- creation

    async def create(self, settings: ContainerSettings) -> None:
        """See `Runtime`. Raises AlreadyExists, InvalidArgument (user, mounts, limits), NotFound (command not in the image),
        FailedPrecondition (a program is missing, a mount failed), ResourceExhausted (disk full)."""
        files = self._files(settings.id)
        words = self._prepare(settings, files)
        try:
            await monitor.start(words, files, self._place_monitor)
        except BaseException as error:
            # Also where the caller was cancelled: half a container must not stay behind.
            await asyncio.shield(self.delete(settings.id))
            if isinstance(error, OSError):
                raise _disk_error(error, files.bundle) from error
            raise

    def _prepare(self, settings: ContainerSettings, files: MonitorFiles) -> list[str]:
        """Writes the bundle; the command line of its monitor."""
        if files.configuration.exists():
            raise AlreadyExists(f"container {settings.id} exists already; delete it first")
        conmon, runtime, facts = self._programs()
        who = identity(settings.rootfs, settings.user, settings.groups)
        spec = specification(settings, who, facts, f"{self._cgroup_parent}/{settings.id}")
        for mount in spec.document["mounts"]:
            if mount["type"] == "bind" and not Path(mount["source"]).exists():
                raise NotFound(
                    f"{mount['source']} does not exist on this host; it was to be mounted at {mount['destination']}"
                )
        for warning in spec.warnings:
            log.warning("container %s: %s", settings.id, warning)
        try:
            for directory in (files.bundle, files.run, files.sockets, settings.log_path.parent):
                directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            files.configuration.write_text(json.dumps(spec.document))
        except OSError as error:
            shutil.rmtree(files.bundle, ignore_errors=True)
            raise _disk_error(error, files.bundle) from error
        return monitor.arguments(
            files,
            settings.id,
            conmon=conmon,
            runtime=runtime,
            runtime_arguments=("--root", str(self._runtime_root)),
            log=settings.log_path,
            terminal=settings.terminal,
        )

    def _programs(self) -> tuple[Path, Path, HostFacts]:
        """Looked up at the first use, so that an agent starts on a host that lacks them and says so for each task."""
        if self._conmon is None or self._runtime is None or self._facts is None:
            self._conmon = host.program("conmon")
            self._runtime = host.choose_runtime(self._wanted_runtime)
            self._facts = host.facts()
        return self._conmon, self._runtime, self._facts

    def _place_monitor(self, pid: int) -> None:
        try:
            cgroups.move_monitor(cgroups.hierarchies(), self._cgroup_parent, pid)
        except OSError as error:
            log.warning("the monitor stays in the agent's control group and ends with it: %s", error)

    async def start(self, container_id: str) -> ContainerState:
        """Executes the first process. Not an error where it runs already."""
        state = self._state_of(container_id)
        if state is None:
            raise NotFound(f"there is no container {container_id} on this node")
        if state.phase is ContainerPhase.EXITED:
            raise FailedPrecondition(f"container {container_id} has ended already and cannot be started again")
        if state.phase is ContainerPhase.CREATED:
            try:
                async with asyncio.timeout(START_TIMEOUT):
                    await self._release(container_id)
            except TimeoutError:
                raise DeadlineExceeded(f"container {container_id} did not start within {START_TIMEOUT:g} s") from None
            except OSError as error:
                raise InternalError(f"container {container_id} cannot be started: {error.strerror}") from error
        return ContainerState(container_id, ContainerPhase.RUNNING, state.pid)

    async def _release(self, container_id: str) -> None:
        """Lets the waiting first process go on.

        runc's waits until someone opens a named pipe for reading, writes one byte and executes the command; reading that
        byte and removing the pipe is all that `runc start` does for a container without hooks.  crun has its own way.
        """
        _, runtime, _ = self._programs()
        fifo = self._fifo(container_id)
        if runtime.name != "runc":
            await run([runtime, "--root", self._runtime_root, "start", container_id], timeout=START_TIMEOUT)
            return
        with self._container(container_id) or contextlib.nullcontext() as handle:
            descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                waits = [asyncio.ensure_future(processes.readable(descriptor))]
                if handle is not None:
                    waits.append(asyncio.ensure_future(handle.ended()))
                try:
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for wait in waits:
                        wait.cancel()
                    await asyncio.gather(*waits, return_exceptions=True)
                try:
                    released = os.read(descriptor, 1) != b""
                except BlockingIOError:
                    released = False
            finally:
                os.close(descriptor)
        if not released:
            raise FailedPrecondition(f"container {container_id} ended before its command was executed")
        fifo.unlink(missing_ok=True)

    # ----------------------------------------------------------------------------------------------------- observation

    async def state(self, container_id: str) -> ContainerState | None:
        return self._state_of(container_id)

    async def containers(self) -> list[ContainerState]:
        if not self._state.is_dir():
            return []
        names = sorted(path.parent.parent.name for path in self._state.glob("*/bundle/config.json"))
        return [state for name in names if (state := self._state_of(name)) is not None]

    async def wait(self, container_id: str) -> ContainerState:
        """See `Runtime`. A monitor that was killed takes its container with it: nobody would read its output any more."""
        if not self._files(container_id).configuration.exists():
            raise NotFound(f"there is no container {container_id} on this node")
        watched = self._monitor(container_id)
        if watched is not None:
            with watched:
                await watched.ended()
        state = self._ended(container_id)
        if state is not None:
            return state
        if not self._files(container_id).configuration.exists():
            raise NotFound(f"container {container_id} was deleted while it was waited for")
        log.warning("container %s: %s; killing what is left of it", container_id, MONITOR_LOST)
        await self._kill(container_id)
        self._record_exit(container_id, KILLED)
        return self._ended(container_id) or ContainerState(
            container_id, ContainerPhase.EXITED, exit_code=KILLED, reason=MONITOR_LOST
        )

    def _record_exit(self, container_id: str, code: int) -> None:
        files = self._files(container_id)
        try:
            (files.bundle / "lost").write_text(MONITOR_LOST)
            files.exit_code(container_id).write_text(str(code))
        except FileNotFoundError:
            log.debug("container %s was deleted meanwhile", container_id)
        except OSError as error:  # a full disk: what is not recorded is found out again, and ends the same
            log.warning("container %s: its end cannot be recorded: %s", container_id, error)

    def _state_of(self, container_id: str) -> ContainerState | None:
        files = self._files(container_id)
        if not files.configuration.exists():
            return None
        ended = self._ended(container_id)
        if ended is not None:
            return ended
        with self._container(container_id) or contextlib.nullcontext() as found:
            if found is not None:
                waiting = self._fifo(container_id).exists()
                phase = ContainerPhase.CREATED if waiting else ContainerPhase.RUNNING
                return ContainerState(container_id, phase, found.pid)
        with self._monitor(container_id) or contextlib.nullcontext() as watched:
            if watched is not None:
                # It is still creating the container, or about to write the exit code: then the next look shows that.
                created = files.container_pid.exists()
                return ContainerState(container_id, ContainerPhase.RUNNING if created else ContainerPhase.CREATED)
        return self._ended(container_id) or ContainerState(
            container_id, ContainerPhase.EXITED, exit_code=KILLED, reason=MONITOR_LOST
        )

    def _ended(self, container_id: str) -> ContainerState | None:
        """From the recorded exit code; None where none is recorded. Raises InternalError where it cannot be read."""
        files = self._files(container_id)
        try:
            text = files.exit_code(container_id).read_text().strip()
            memory = (files.bundle / "oom").exists() or cgroups.killed_for_memory(
                cgroups.hierarchies(), self._cgroup_parent, container_id
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InternalError(f"how container {container_id} ended cannot be read: {error.strerror}") from error
        code = int(text) if text.removeprefix("-").isdigit() else KILLED
        reason = ""
        if memory and code == KILLED:
            reason = "a process was killed because the memory limit was reached"
        elif (files.bundle / "lost").exists():
            reason = MONITOR_LOST
        # a negative code is how the monitor writes down that it lost track
        return ContainerState(
            container_id,
            ContainerPhase.EXITED,
            exit_code=code if code >= 0 else KILLED,
            out_of_memory=memory and code != 0,
            reason=reason,
        )

    async def stats(self, container_id: str) -> ContainerStats:
        used = cgroups.usage(cgroups.hierarchies(), self._cgroup_parent, container_id)
        if used is None:
            raise NotFound(f"there is no container {container_id} on this node")
        return ContainerStats(used.cpu_seconds, used.memory_bytes, used.pids)

    # ----------------------------------------------------------------------------------------------------------- action

    async def signal(self, container_id: str, signal_number: int) -> None:
        """See `Runtime`. The end of the first process is the end of all in its pid namespace, so SIGKILL reaches them too."""
        found = self._container(container_id)
        if found is None:
            if not self._files(container_id).configuration.exists():
                raise NotFound(f"there is no container {container_id} on this node")
            return
        with found:
            found.send(signal_number)

    async def exec(self, container_id: str, arguments: tuple[str, ...], *, timeout: float) -> ExecResult:
        """Runs a command as the container's user in its environment.

        Raises NotFound (no such container, or command not in it), FailedPrecondition (not running), DeadlineExceeded (after
        `timeout` seconds; the command is killed).
        """
        state = self._state_of(container_id)
        if state is None:
            raise NotFound(f"there is no container {container_id} on this node")
        if state.phase is not ContainerPhase.RUNNING:
            raise FailedPrecondition(
                f"container {container_id} is {state.phase.value}, not running; nothing can be executed"
            )
        _, runtime, _ = self._programs()
        return await execute(
            [str(runtime), "--root", str(self._runtime_root)],
            container_id,
            arguments,
            pid_directory=self._files(container_id).run,
            belongs=lambda pid: processes.in_group(pid, f"{self._cgroup_parent}/{container_id}"),
            timeout=timeout,
        )

    async def delete(self, container_id: str) -> None:
        """See `Runtime`. Safe to repeat from any point at which it was interrupted: the bundle goes last."""
        files = self._files(container_id)
        await self._kill(container_id)
        await self._remove_groups(container_id)
        for directory in (self._runtime_root / container_id, files.run):
            _remove_tree(directory)
        with contextlib.suppress(FileNotFoundError):
            (self._sockets / container_id).unlink()
        _remove_tree(files.bundle)
        with contextlib.suppress(OSError):  # the log stays, and with it the directory
            files.bundle.parent.rmdir()

    async def _kill(self, container_id: str) -> None:
        """Ends every process of the container, then its monitor."""
        try:
            async with asyncio.timeout(KILL_TIMEOUT):
                container, watched = self._container(container_id), self._monitor(container_id)
                with container or contextlib.nullcontext(), watched or contextlib.nullcontext():
                    if container is not None:
                        container.send(signal.SIGKILL)
                        await container.ended()
                    if watched is not None:
                        if container is None:
                            # It is between two states; its children are the OCI runtime at work.
                            for pid in processes.descendants(watched.pid):
                                with contextlib.suppress(ProcessLookupError):
                                    os.kill(pid, signal.SIGKILL)
                            watched.send(signal.SIGKILL)
                        await watched.ended()
                # of an interrupted creation, which no pid file names
                cgroups.kill(cgroups.hierarchies(), self._cgroup_parent, container_id)
        except TimeoutError:
            raise DeadlineExceeded(
                f"container {container_id} did not end within {KILL_TIMEOUT:g} s of SIGKILL; a process hangs in the kernel"
            ) from None

    async def _remove_groups(self, container_id: str) -> None:
        """A group is busy for some milliseconds after its last process; version 1 tells nobody when that is over."""
        for attempt in range(_CGROUP_ATTEMPTS):
            try:
                if cgroups.remove(cgroups.hierarchies(), self._cgroup_parent, container_id):
                    return
            except OSError as error:
                raise InternalError(
                    f"the control group of container {container_id} cannot be removed: {error}"
                ) from error
            cgroups.kill(cgroups.hierarchies(), self._cgroup_parent, container_id)
            await asyncio.sleep(_CGROUP_WAIT * min(attempt + 1, 10))
        raise InternalError(f"the control group of container {container_id} stays busy; its processes do not end")

    async def clear(self) -> None:
        """See `Runtime`. Monitors that have just ended keep their group busy for a moment."""
        for _ in range(_CGROUP_ATTEMPTS):
            try:
                if cgroups.remove_parent(cgroups.hierarchies(), self._cgroup_parent):
                    break
            except OSError as error:
                raise InternalError(f"the control group {self._cgroup_parent} cannot be removed: {error}") from error
            await asyncio.sleep(_CGROUP_WAIT)
        else:
            log.warning("the control group %s stays: something that is not ours is in it", self._cgroup_parent)
        for directory in (self._run, self._sockets, self._runtime_root):
            with contextlib.suppress(OSError):  # never made, or not empty
                directory.rmdir()

    # ---------------------------------------------------------------------------------------------------------- places

    def _files(self, container_id: str) -> MonitorFiles:
        if not container_id or "/" in container_id or container_id.startswith("."):
            raise InternalError(f"{container_id!r} is not a container id")
        return MonitorFiles(self._state / container_id / "bundle", self._run / container_id, self._sockets)

    def _fifo(self, container_id: str) -> Path:
        return self._runtime_root / container_id / "exec.fifo"

    def _container(self, container_id: str) -> processes.Handle | None:
        """The first process of the container, while it lives."""
        group = f"{self._cgroup_parent}/{container_id}"
        pid = processes.read_pid(self._files(container_id).container_pid)
        return processes.find(pid, lambda number: processes.in_group(number, group))

    def _monitor(self, container_id: str) -> processes.Handle | None:
        files = self._files(container_id)
        bundle = str(files.bundle)
        pid = processes.read_pid(files.monitor_pid)
        return processes.find(pid, lambda number: bundle in processes.command_line(number))


def _remove_tree(directory: Path) -> None:
    """Raises InternalError where something stays."""
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InternalError(f"{directory} cannot be removed: {error}") from error


def _disk_error(error: OSError, place: Path) -> SwarmError:
    if is_disk_full(error):
        return ResourceExhausted(f"the disk is full: {error.filename or place}; {MAKE_ROOM}")
    return InternalError(f"the container's files cannot be written: {error}")
