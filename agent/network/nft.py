"""Runs nftables commands in the namespace of the calling thread, through libnftables.

Each call is one transaction: all of it or nothing. A context belongs to the namespace that it was opened in, also after the
thread has left, and keeps it alive. The library keeps state of its own between contexts, so one call runs at a time.

Closing a context makes the kernel finish what the transaction left for later (10–20 ms), and an open one holds half a
megabyte: so contexts are closed apart, by threads of their own, and only so many are open at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from swarm.errors import FailedPrecondition, InternalError

LIBRARY = "libnftables.so.1"
MAX_COMPLAINT = 400

_lock = threading.Lock()


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise FailedPrecondition(
            f"{LIBRARY} is not installed on this host; install the package libnftables1 (nftables)"
        ) from error
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_new.restype = ctypes.c_void_p
    for name in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
        getattr(library, name).restype = ctypes.c_char_p
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    return library


class Nft:
    """An open context of the namespace that the calling thread is in. Calls of one context must not overlap."""

    def __init__(self) -> None:
        library = _library()
        with _lock:
            self._context = library.nft_ctx_new(0)
            if not self._context:
                raise InternalError("libnftables could not be opened")
            library.nft_ctx_buffer_output(self._context)
            library.nft_ctx_buffer_error(self._context)

    def close(self) -> None:
        """Frees the context. May block for a while; other contexts can be used meanwhile."""
        context, self._context = self._context, None
        if context:
            _library().nft_ctx_free(context)

    def run(self, commands: str) -> str:
        """Runs the commands as one transaction; the answer is what they list. Raises InternalError."""
        if not commands:
            return ""
        library = _library()
        with _lock:
            failed = library.nft_run_cmd_from_buffer(self._context, commands.encode())
            complaint = library.nft_ctx_get_error_buffer(self._context) or b""
            output: bytes = library.nft_ctx_get_output_buffer(self._context) or b""
        if failed:
            raise InternalError(
                f"nftables refused a change: {complaint.decode(errors='replace')[:MAX_COMPLAINT].strip()}"
            )
        return output.decode(errors="replace")


class NftContexts:
    """Opens contexts and closes them apart from whoever used them. `close` when done."""

    def __init__(self, limit: int = 12) -> None:
        self._slots = threading.BoundedSemaphore(limit)
        self._closers = ThreadPoolExecutor(8, thread_name_prefix="nft-close")

    @contextlib.contextmanager
    def open(self) -> Iterator[Nft]:
        """A context of the namespace that the calling thread is in; waits while too many are open."""
        self._slots.acquire()
        try:
            nft = Nft()
        except BaseException:
            self._slots.release()
            raise
        try:
            yield nft
        finally:
            self._closers.submit(self._discard, nft)

    def _discard(self, nft: Nft) -> None:
        try:
            nft.close()
        finally:
            self._slots.release()

    def close(self) -> None:
        """Waits until all contexts are closed."""
        self._closers.shutdown(wait=True)
