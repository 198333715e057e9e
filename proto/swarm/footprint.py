"""How our programs stay small and quick to start: what their interpreters need not load, and what the C library shall not
keep.

`begin` is the first thing that a daemon does, before it imports asyncio. Measured figures are in docs/performance.md.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from importlib.abc import Loader

# mallopt(3)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT_BYTES = 1 << 20  # of free memory at the end of the heap
_MAPPED_BYTES = 1 << 20  # allocations from this size on are given back one by one


@contextlib.contextmanager
def without(*modules: str) -> Iterator[None]:
    """Within, these modules count as not installed, unless they are loaded already. Libraries that take them where they
    find them then do without; whoever really needs them imports them later."""
    hidden = [name for name in modules if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in hidden:
            if sys.modules.get(name, ...) is None:
                del sys.modules[name]


@contextlib.contextmanager
def postponed(*modules: str) -> Iterator[None]:
    """Modules that are imported within are loaded once somebody uses what is in them. For what libraries import for a part of
    theirs that we do not use. Only modules that are files, and are only bound (`import x`, `from x import module`).

    Unlike `importlib.util.LazyLoader`, a module that is imported again, and no more, stays postponed.
    """
    finder = _Finder(frozenset(modules))
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def is_loaded(module: str) -> bool:
    """Whether the module has been imported, and not just postponed."""
    return not isinstance(sys.modules.get(module), _Postponed | None)


class _Finder:
    """Finds the named modules where they are, to be loaded on first use."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        found = PathFinder.find_spec(name, path, target) if name in self._names else None
        if found is not None and found.loader is not None:
            found.loader = cast("Loader", _Postponing(found.loader))
        return found


class _Postponing:
    """What the import system calls instead of the module's own loader."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Postponed(spec.name)

    def exec_module(self, module: _Postponed) -> None:
        module.__dict__["_own_loader"] = self._loader


class _Postponed(ModuleType):
    """A module that is loaded by the first look at something that it does not have yet."""

    _loading = threading.RLock()  # another thread waits; the module's own imports of itself do not

    def __getattr__(self, name: str) -> Any:
        with self._loading:
            loader = self.__dict__.pop("_own_loader", None)
            if loader is not None:
                assert self.__spec__ is not None
                self.__spec__.loader = self.__loader__ = loader
                loader.exec_module(self)
                self.__class__ = ModuleType  # type: ignore[assignment]  # as any other from now on
        return ModuleType.__getattribute__(self, name)


def begin(*, tls_listener: bool = False) -> None:
    """Loads asyncio and hashlib without OpenSSL, 4 MB a process: connections are encrypted by gRPC, which has a TLS of its
    own. A process that serves TLS itself says so (`tls_listener`)."""
    _bound_heaps()
    if not tls_listener:
        with without("ssl"):
            import asyncio  # noqa: F401
    # Python's own hashes serve for a few hundred bytes at a time; some builds have only OpenSSL's.
    if any(importlib.util.find_spec(name) for name in ("_sha256", "_sha2")):
        with without("_hashlib"):
            import hashlib
            import hmac  # noqa: F401

        if not hasattr(hashlib, "sha256"):
            del sys.modules["hashlib"]


def give_back() -> None:
    """Returns the free pages inside the heap to the system; under a millisecond where there are few. After a burst."""
    trim = getattr(_c_library(), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _bound_heaps() -> None:
    """glibc gives each thread a heap of its own, and keeps what large blocks were freed; gRPC has many threads and little to
    keep in them."""
    mallopt = getattr(_c_library(), "mallopt", None)  # musl has none, and no such heaps
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


def _c_library() -> Any:
    import ctypes  # commands that only want `without` start sooner

    return ctypes.CDLL(None)
