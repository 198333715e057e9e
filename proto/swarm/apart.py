"""Work that needs a large library now and then, done in a process of its own that soon ends.

Daemons stay small: making a key, signing a certificate or looking at a stranger's TLS chain happens a few times in their
lives, but the libraries that it needs (cryptography, OpenSSL) would stay resident for ever, a sixth of the whole process.
`apart` hands a call to a helper, `python -m swarm.apart`, which imports what the function needs, answers, and ends once it
has had nothing to do for a while; a busy time, as hundreds of joining hosts, is served by one helper.

Both sides are the same program and talk over pipes; what travels is pickled, so functions are named by their place in a
module, and arguments, results and errors must be picklable.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from typing import IO, Any, ParamSpec, TypeVar, cast

from swarm.errors import DeadlineExceeded, InternalError

P = ParamSpec("P")
T = TypeVar("T")

TIMEOUT = 30.0  # seconds of one call; a host under load starts an interpreter slowly
LINGER = 5.0  # seconds without work after which the helper ends


async def apart(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls a function of a module in the helper. Raises what it raises; DeadlineExceeded and InternalError for the helper."""
    try:
        async with asyncio.timeout(TIMEOUT):
            return cast(T, await asyncio.to_thread(_helper.call, function, args, kwargs))
    except TimeoutError:
        _helper.kill()  # the thread that waits for it goes on with the next call
        raise DeadlineExceeded(
            f"{function.__qualname__} did not end within {TIMEOUT:g} s; is the host overloaded?"
        ) from None


class _Helper:
    """At most one process; calls take turns."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: threading.Timer | None = None

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self._turn:
            if self._end is not None:
                self._end.cancel()
            process = self._process
            if process is None or process.poll() is not None:
                process = self._process = _start()
            assert process.stdin is not None and process.stdout is not None
            try:
                pickle.dump((function.__module__, function.__qualname__, args, kwargs), process.stdin)
                process.stdin.flush()
                succeeded, answer = pickle.load(process.stdout)
            except (OSError, EOFError) as error:
                self._stop()
                raise InternalError(f"{function.__qualname__}: the helper process ended unexpectedly") from error
            self._end = threading.Timer(LINGER, self._retire)
            self._end.daemon = True
            self._end.start()
        if not succeeded:
            raise answer
        return answer

    def kill(self) -> None:
        process = self._process
        if process is not None:
            process.kill()

    def _retire(self) -> None:
        if self._turn.acquire(blocking=False):  # else it has work again, and a new timer follows
            try:
                self._stop()
            finally:
                self._turn.release()

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()  # it keeps nothing
            with process:
                pass


_helper = _Helper()


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "swarm.apart"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", close_fds=True
    )


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """The helper's side: until whoever started it is gone."""
    while True:
        try:
            module, name, args, kwargs = pickle.load(requests)
        except EOFError:
            return
        answer: tuple[bool, Any]
        try:
            function = import_module(module)
            for part in name.split("."):
                function = getattr(function, part)
            answer = (True, cast(Any, function)(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 – raised again where it was called
            error.__traceback__ = error.__cause__ = error.__context__ = None
            answer = (False, error)
        data = pickle.dumps(answer)
        answers.write(data)
        answers.flush()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        serve(sys.stdin.buffer, sys.stdout.buffer)
