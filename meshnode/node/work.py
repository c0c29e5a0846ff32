"""This node's own workers: answers `RunTask` and `CallTool`, and tells the mesh how many tasks run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from consensus.machines.variables import Change as VariableChange
from meshnode.app import App
from meshnode.errors import UnknownMethod
from meshnode.evaluation.messages import RunTask, TaskError, TaskReply
from meshnode.mesh import Caller, Mesh, State
from meshnode.spans import Spans, await_within, within
from meshnode.tool_calls import ToolRouter
from meshnode.workers.protocol import Task, TaskResult

if TYPE_CHECKING:
    from meshnode.config import Config
    from meshnode.workers.pool import WorkerPool

PUSH_AFTER_S = 0.01


class Work:
    """The pool of one node. A client has none until it runs a task itself: then one is started.

    Tools that programs call are answered over `mesh` by whoever asked for the run.
    """

    def __init__(self, app: App | None, config: Config, mesh: Mesh, spans: Spans | None) -> None:
        self._app = app
        self._config = config
        self._spans = spans
        self._load: Callable[[int, int], None] | None = None
        self._environment: Mapping[str, str] = {}
        self._tools = ToolRouter(mesh, self.call_tool)
        self._variables: Mapping[str, Any] | None = None
        self._stop_following: Callable[[], None] | None = None
        self._pool: WorkerPool | None = None
        self._starting: asyncio.Task[WorkerPool] | None = None
        self._offers = config.role == "node" and app is not None and config.workers > 0

    @property
    def programs(self) -> tuple[str, ...]:
        """What this node offers to the mesh, sorted."""
        return tuple(sorted(self._app.programs)) if self._offers and self._app is not None else ()

    async def start(self, load: Callable[[int, int], None], environment: Mapping[str, str]) -> None:
        """Start the workers, if this node offers any. Raises AppError if they can't load the app.

        load: told (slots, busy) whenever they change; clients offer nothing. environment: for worker processes, beside
        this one's.
        """
        self._load, self._environment = load, environment
        if self._offers:
            await self._started()

    def tell(self) -> None:
        """Tell the mesh the load as it is."""
        if self._load is not None and self._offers and self._pool is not None:
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
        span = None if self._spans is None else self._spans.begin(f"task {message.program}")
        running = asyncio.ensure_future(pool.run(task))
        self.tell()
        try:
            result = await (running if span is None else await_within(span, running))
        finally:
            self.tell()
        if span is not None:
            span.tell_work(f"run {message.program}", result.seconds, worker=str(result.worker))
        return _reply(result)

    async def call_tool(self, name: str, args: Mapping[str, Any], *, timeout_s: float = 30.0) -> Any:
        """Call one of this node's own tools in a worker; raises what `WorkerPool.call_tool` says."""
        if self._app is None or name not in self._app.tools:
            known = ", ".join(sorted(self._app.tools)) if self._app else "none, it was started without --app"
            raise UnknownMethod(f"this node has no tool {name!r}; its tools: {known or 'none'}")
        self._app.tools[name].check(args)  # here already: what is refused costs no worker
        pool = self._pool or await self._started()
        with within(self._spans, f"tool {name}"):
            return await pool.call_tool(name, args, timeout_s=timeout_s)

    def follow(self, state: State, read: Callable[[], Mapping[str, Any]]) -> None:
        """Push the variables that `read` gives to the workers, now and after each change; later runs see them."""
        if not self._offers:
            return
        loop = asyncio.get_running_loop()
        due: asyncio.TimerHandle | None = None

        def push() -> None:
            nonlocal due
            due = None
            self._variables = read()
            if self._pool is not None:
                self._pool.set_variables(self._variables)

        def stop() -> None:
            stop_listening()
            if due is not None:
                due.cancel()

        def note(changes: list[Any]) -> None:
            nonlocal due
            # Many writes in a row are one push: workers need the newest values, not each.
            if due is None and (not changes or any(isinstance(change, VariableChange) for change in changes)):
                due = loop.call_later(PUSH_AFTER_S, push)

        stop_listening = state.listen(note)
        self._stop_following = stop
        push()

    def statistics(self) -> dict[str, Any]:
        """The pool's figures; empty while there is none."""
        return self._pool.statistics() if self._pool is not None else {}

    def models(self) -> list[dict[str, Any]]:
        """What this node's programs asked of models so far."""
        return self._pool.models.describe() if self._pool is not None else []

    async def drain(self, timeout_s: float) -> None:
        """Take no more tasks and wait for those that run."""
        if self._pool is not None:
            await self._pool.drain(timeout_s)

    async def close(self) -> None:
        """End the workers."""
        if self._stop_following is not None:
            self._stop_following()
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
        from meshnode.workers.pool import Limits, WorkerPool  # a client that only calls never needs it

        memory_mb = self._config.worker_memory_mb
        pool = WorkerPool(
            self._app,
            workers=self._config.workers,
            threads=self._config.worker_threads,
            limits=Limits(memory_limit_bytes=memory_mb * 2**20 if memory_mb else None),
            on_tool_call=self._tools.route,
            on_change=self.tell,
            environment=self._environment,
        )
        try:
            await pool.start()
        except BaseException:
            await pool.close()
            raise
        self._pool = pool
        if self._variables is not None:
            pool.set_variables(self._variables)  # they may have changed while it started
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
