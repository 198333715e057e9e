"""Runs nftables commands in the namespace of the calling thread, through libnftables.

Each call is one transaction: all of it or nothing. A context belongs to the namespace that it was opened in, also after the
thread has left. The library keeps state of its own between contexts, so one call runs at a time.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from types import TracebackType

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
    """An open context of the namespace that the calling thread was in."""

    def __init__(self) -> None:
        library = _library()
        with _lock:
            self._context = library.nft_ctx_new(0)
            if not self._context:
                raise InternalError("libnftables could not be opened")
            library.nft_ctx_buffer_output(self._context)
            library.nft_ctx_buffer_error(self._context)

    def __enter__(self) -> Nft:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with _lock:
            _library().nft_ctx_free(self._context)

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
