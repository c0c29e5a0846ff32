"""This node's own workers: answers `RunTask`, and tells the mesh how many tasks run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from meshnode.app import App
from meshnode.config import Config
from meshnode.errors import UnknownMethod
from meshnode.evaluation.messages import RunTask, TaskError, TaskReply
from meshnode.mesh import Caller
from meshnode.workers.protocol import Task, TaskResult

if TYPE_CHECKING:
    from meshnode.workers.pool import WorkerPool


class Work:
    """The pool of one node. A client has none until it runs a task itself: then one is started.

    `load(slots, busy)` is told whenever they change; clients offer nothing.
    """

    def __init__(self, app: App | None, config: Config, load: Callable[[int, int], None]) -> None:
        self._app = app
        self._config = config
        self._load = load
        self._pool: WorkerPool | None = None
        self._starting: asyncio.Task[WorkerPool] | None = None
        self._offers = config.role == "node" and app is not None and config.workers > 0

    @property
    def programs(self) -> tuple[str, ...]:
        """What this node offers to the mesh, sorted."""
        return tuple(sorted(self._app.programs)) if self._offers and self._app is not None else ()

    async def start(self) -> None:
        """Start the workers, if this node offers any. Raises AppError if they can't load the app."""
        if self._offers:
            await self._started()

    def tell(self) -> None:
        """Tell the mesh the load as it is."""
        if self._offers and self._pool is not None:
            self._load(self._pool.slots, self._pool.busy)

    async def run(self, message: RunTask, caller: Caller) -> TaskReply:
        """Answer one task; raises what `RunTask` says."""
        if self._app is None or message.program not in self._app.programs:
            known = ", ".join(sorted(self._app.programs)) if self._app else "none, it was started without --app"
            raise UnknownMethod(f"this node has no program {message.program!r}; its programs: {known}")
        pool = self._pool or await self._started()
        task = Task(
            program=message.program,
            inputs=message.example,
            id=message.run_id,
            state=message.state,
            metric=message.metric,
            timeout_s=message.timeout_s,
            attempt=message.attempt,
            caller=caller.peer,
        )
        running = asyncio.ensure_future(pool.run(task))
        self.tell()
        try:
            result = await running
        finally:
            self.tell()
        return _reply(result)

    def statistics(self) -> dict[str, Any]:
        """The pool's figures; empty while there is none."""
        return self._pool.statistics() if self._pool is not None else {}

    async def drain(self, timeout_s: float) -> None:
        """Take no more tasks and wait for those that run."""
        if self._pool is not None:
            await self._pool.drain(timeout_s)

    async def close(self) -> None:
        """End the workers."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        if self._pool is not None:
            await self._pool.close()

    async def _started(self) -> WorkerPool:
        # Several first tasks may come at once; all wait for one start.
        if self._starting is None or (self._starting.done() and self._pool is None):
            self._starting = asyncio.get_running_loop().create_task(self._open())
        return await asyncio.shield(self._starting)

    async def _open(self) -> WorkerPool:
        assert self._app is not None
        from meshnode.workers.pool import WorkerPool  # a client that only calls never needs it

        pool = WorkerPool(
            self._app, workers=self._config.workers, threads=self._config.worker_threads, on_change=self.tell
        )
        try:
            await pool.start()
        except BaseException:
            await pool.close()
            raise
        self._pool = pool
        return pool


def _reply(result: TaskResult) -> TaskReply:
    error = result.error
    return TaskReply(
        result.prediction,
        result.score,
        TaskError(error.type, error.message, error.traceback) if error is not None else None,
        result.seconds,
        result.worker,
    )
