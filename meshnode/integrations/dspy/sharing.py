"""Who turns the shared cache on: a caller by `mesh.share_cache()`, a worker because its node holds a part of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

import dspy
import structlog

from meshnode.errors import MeshError
from meshnode.integrations.dspy.cache import MeshCache, share, unshare
from meshnode.lm_cache.asking import from_environment
from meshnode.lm_cache.service import LmCache
from meshnode.mesh import Mesh

log = structlog.get_logger("meshnode.dspy")

SLACK_S = 0.5  # for the way to the node's loop and back
_lock = threading.Lock()


class SharedCache:
    """A caller's: this process' DSPy cache with the mesh behind it, until `close`; `with` closes it."""

    def __init__(
        self,
        mesh: Mesh,
        submit: Callable[[Coroutine[Any, Any, Any]], Future[Any]],
        *,
        loop_thread: threading.Thread,
        timeout_s: float,
    ) -> None:
        self._submit = submit
        self._loop_thread = loop_thread
        self._timeout_s = timeout_s
        self._service = LmCache(mesh, None, timeout_s=timeout_s)
        if not self._service.holders():
            log.warning("no node of this mesh shares a cache; start them with --lm-cache 64MiB, say")
        with _lock:
            self._cache: MeshCache = share(self)

    def get(self, key: bytes) -> bytes | None:
        """As `cache.Asked` says."""
        if threading.current_thread() is self._loop_thread:
            return None  # it would wait for itself
        try:
            future: Future[bytes | None] = self._submit(self._service.get(key))
        except MeshError:
            return None
        try:
            return future.result(self._timeout_s + SLACK_S)
        except (TimeoutError, asyncio.CancelledError, MeshError):
            future.cancel()
            return None

    def put(self, key: bytes, value: bytes) -> None:
        """As above."""
        work = self._put(key, value)
        try:
            self._submit(work)
        except MeshError:
            work.close()

    def hit(self) -> None:
        """Counted by the cache itself."""

    def statistics(self) -> dict[str, int]:
        """`hits_local` (this process' own cache), `hits_mesh`, `misses`, `puts`, values `unshared` and `refused`."""
        names = ["hits_local", "hits_mesh", "misses", "puts", "unshared", "refused"]
        return {name: self._cache.counts[name] for name in names}

    def close(self) -> None:
        """This process' cache is its own again; what was found stays in it."""
        with _lock:
            unshare(self._cache)

    def __enter__(self) -> SharedCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _put(self, key: bytes, value: bytes) -> None:
        self._service.put(key, value)


def share_in_worker() -> None:
    """In a worker process whose node holds a part of the cache: ask there. Once, and again if the app made another."""
    with _lock:
        asking = from_environment()
        if asking is not None and not isinstance(dspy.cache, MeshCache):
            share(asking)
