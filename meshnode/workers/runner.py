"""Inside a worker: takes the pool's messages, runs programs, metrics and tools, and sends back what came of them.

Plain functions run in threads, coroutines on the worker's loop. All bookkeeping is done on that loop; a thread hands
its outcome over and wakes the loop once for all that ended meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextvars import Context
from functools import partial
from types import MappingProxyType
from typing import Any, TypeAlias

from channels.errors import Fault
from meshnode.app import App
from meshnode.blame import user_traceback
from meshnode.declarations import session_variables
from meshnode.errors import Closed, InvalidInput, MeshError, MeshTimeout, UnknownMethod, from_fault
from meshnode.lm import usage
from meshnode.values import pack, unpack
from meshnode.workers.programs import Program, Programs
from meshnode.workers.protocol import (
    MESSAGE_CHARACTERS,
    TRACEBACK_CHARACTERS,
    Asked,
    Cancel,
    Declined,
    Done,
    FromWorker,
    Ping,
    Pong,
    Run,
    RunTool,
    Stuck,
    Task,
    TaskError,
    TaskResult,
    TimedOut,
    ToolAnswer,
    ToolCall,
    ToWorker,
    Variables,
)
from meshnode.workers.session import Session, Tools
from meshnode.workers.threads import Job, Threads

BUILD_TIMEOUT_S = 120.0  # a first run also builds the program, which may import much
STUCK_AFTER_S = 1.0  # how long an interrupted run may take to end
TOOL_THREADS = 32

#: prediction -> score; raises what the user's metric raises
Metric: TypeAlias = Callable[[Any], float]

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class _Running:
    """One job under way. `outcome` is what will be sent when it ends; `calls` are its tool calls without an answer."""

    __slots__ = ("calls", "dropped", "job", "outcome", "program", "task", "thread", "timer", "work")

    def __init__(self, job: int, work: Task | RunTool) -> None:
        self.job = job
        self.work = work
        self.outcome: FromWorker | None = None
        self.program: Program | None = None
        self.thread: Job | None = None
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.dropped = False  # it timed out or was cancelled: nobody waits for what comes of it
        self.calls: dict[int, Future[bytes]] = {}


class Runner:
    """Runs jobs of one app. `send` is called on `loop`, as is every method here that is public."""

    def __init__(
        self, app: App, name: str, threads: int, send: Callable[[FromWorker], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._app = app
        self._name = name
        self._send = send
        self._loop = loop
        self._loop_thread = threading.get_ident()
        self._programs = Programs(app)
        self._threads = Threads(threads, "program")
        self._tool_threads = Threads(TOOL_THREADS, "tool")
        self._variables = _NOTHING
        self._free_slots = threads
        self._ahead: OrderedDict[int, Task] = OrderedDict()  # given before there was a slot for them
        self._running: dict[int, _Running] = {}
        self._calls: dict[int, _Running] = {}
        self._next_call = 0
        self._ended: deque[_Running] = deque()
        self._collecting = False

    def take(self, message: ToWorker) -> None:
        """Act on one message."""
        if isinstance(message, Run):
            if self._free_slots:
                self._run(message.job, message.task)
            else:
                self._ahead[message.job] = message.task
        elif isinstance(message, Ping):
            self._tell_models()
            self._send(Pong())
        elif isinstance(message, Cancel):
            self._cancel(message.job)
        elif isinstance(message, RunTool):
            self._run_tool(message)
        elif isinstance(message, ToolAnswer):
            self._answer(message)
        elif isinstance(message, Variables):
            self._variables = MappingProxyType(unpack(message.values))

    def close(self) -> None:
        """Begin nothing more, cancel coroutines, and let idle threads end; threads at work are left alone."""
        self._ahead.clear()
        for running in list(self._running.values()):
            self._cancel(running.job)
        self._threads.close()
        self._tool_threads.close()

    # Starting and ending jobs, on the loop.

    def _run(self, job: int, task: Task) -> None:
        self._free_slots -= 1
        running = self._running[job] = _Running(job, task)
        running.program = self._programs.built(task.program, task.state)
        if running.program is not None and running.program.is_async:
            self._arm(running, task.timeout_s)
            running.task = self._loop.create_task(self._run_async(running, running.program, task))
            return
        self._arm(running, task.timeout_s if running.program else max(task.timeout_s, BUILD_TIMEOUT_S))
        running.thread = self._threads.submit(partial(self._run_sync, running, task), partial(self._hand_over, running))

    def _run_tool(self, message: RunTool) -> None:
        running = self._running[message.job] = _Running(message.job, message)
        tool = self._app.tools.get(message.name)
        try:
            if tool is None:
                known = ", ".join(sorted(self._app.tools)) or "none"
                raise UnknownMethod(f"no tool {message.name!r}; there is: {known}")
            args = tool.check(unpack(message.args))
        except MeshError as error:
            running.outcome = Declined(message.job, error.code, str(error))
            self._finish(running)
            return
        self._arm(running, message.timeout_s)
        if tool.is_async:
            running.task = self._loop.create_task(self._tool_async(running, partial(tool.function, **args)))
        else:
            work = partial(self._tool_sync, running, partial(tool.function, **args))
            running.thread = self._tool_threads.submit(work, partial(self._hand_over, running))

    def _arm(self, running: _Running, timeout_s: float) -> None:
        if running.timer is not None:
            running.timer.cancel()
        if running.job in self._running:
            running.timer = self._loop.call_later(timeout_s, self._expire, running)

    def _expire(self, running: _Running) -> None:
        self._send(TimedOut(running.job))
        self._drop(running, MeshTimeout("the run that called this tool is out of time"))
        if running.thread is not None:
            self._threads.interrupt(running.thread)
        running.timer = self._loop.call_later(STUCK_AFTER_S, self._give_up, running)

    def _cancel(self, job: int) -> None:
        if self._ahead.pop(job, None) is not None:
            self._send(Done(job, TaskResult(worker=self._name)))
            return
        running = self._running.get(job)
        if running is not None:
            self._drop(running, Closed("the run that called this tool was cancelled"))

    def _drop(self, running: _Running, why: MeshError) -> None:
        running.dropped = True
        if running.task is not None:
            running.task.cancel()
        for call, future in running.calls.items():
            self._calls.pop(call, None)
            future.set_exception(why)
        running.calls.clear()

    def _give_up(self, running: _Running) -> None:
        if running.job in self._running:
            self._send(Stuck(running.job))

    def _finish(self, running: _Running) -> None:
        self._running.pop(running.job, None)
        if running.timer is not None:
            running.timer.cancel()
        for call in running.calls:
            self._calls.pop(call, None)
        self._tell_models()
        if running.dropped or running.outcome is None:
            self._send(Done(running.job, TaskResult(worker=self._name)))
        else:
            self._send(running.outcome)
        if isinstance(running.work, Task):
            self._free_slots += 1
            if self._ahead:
                self._run(*self._ahead.popitem(last=False))

    def _tell_models(self) -> None:
        if uses := usage.take():
            self._send(Asked(uses))

    def _hand_over(self, running: _Running) -> None:
        """In a thread: it is done with this job."""
        self._ended.append(running)
        if not self._collecting:
            self._collecting = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for it
                self._loop.call_soon_threadsafe(self._collect)

    def _collect(self) -> None:
        self._collecting = False
        while self._ended:
            running = self._ended.popleft()
            running.thread = None
            if running.outcome is None and running.program is not None and not running.dropped:
                # It was built in the thread and turned out to be async.
                assert isinstance(running.work, Task)
                running.task = self._loop.create_task(self._run_async(running, running.program, running.work))
            else:
                self._finish(running)

    # Running programs.

    def _run_sync(self, running: _Running, task: Task) -> None:
        """In a thread: build if need be, run, score."""
        program = running.program
        if program is None:
            try:
                program = self._programs.build(task.program, task.state)
            except MeshError as error:
                running.outcome = Declined(running.job, error.code, str(error))
                return
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits for it
                self._loop.call_soon_threadsafe(self._arm, running, task.timeout_s)
            if program.is_async:
                running.program = program
                return
        try:
            inputs, metric, _ = self._prepare(task)
        except MeshError as error:
            running.outcome = Declined(running.job, error.code, str(error))
            return
        # A context of its own: what the program sets in it does not reach the next run in this thread.
        running.outcome = Context().run(self._call_sync, running, program, inputs, metric)

    def _call_sync(self, running: _Running, program: Program, inputs: Any, metric: Metric | None) -> FromWorker:
        started = time.perf_counter()
        prediction, score, error = b"", None, None
        try:
            session = self._session(running, program)
            session_variables.set(session.variables)
            value = program.call(inputs, session)
            if inspect.isawaitable(value):
                value = asyncio.run_coroutine_threadsafe(_awaited(value), self._loop).result()
            prediction = _pack_prediction(program, value)
            if metric is not None:
                score = metric(value)
        except BaseException as raised:  # SystemExit, too: user code ends its run with it, not this worker
            error = describe(raised)
        seconds = time.perf_counter() - started
        return Done(running.job, TaskResult(prediction, score, error, seconds, self._name))

    async def _run_async(self, running: _Running, program: Program, task: Task) -> None:
        started = time.perf_counter()
        prediction, score, error = b"", None, None
        try:
            try:
                inputs, metric, is_immediate = self._prepare(task)
            except MeshError as refused:
                running.outcome = Declined(running.job, refused.code, str(refused))
                return
            session = self._session(running, program)
            session_variables.set(session.variables)
            value = await program.call(inputs, session)
            prediction = _pack_prediction(program, value)
            if metric is not None:
                score = metric(value) if is_immediate else await self._in_thread(partial(metric, value))
        except BaseException as raised:  # also a cancellation: if it was not ours, it is the program's own doing
            error = describe(raised)
        finally:
            if running.outcome is None:
                seconds = time.perf_counter() - started
                running.outcome = Done(running.job, TaskResult(prediction, score, error, seconds, self._name))
            self._finish(running)

    def _prepare(self, task: Task) -> tuple[Any, Metric | None, bool]:
        """The inputs, what scores a prediction, and whether that may be done on the loop.

        Raises InvalidInput or UnknownMethod.
        """
        inputs = unpack(task.inputs)
        if not isinstance(inputs, Mapping):
            kind = type(inputs).__name__
            raise InvalidInput(f"program {task.program!r}: its inputs are a mapping by name, not a {kind}")
        if task.metric is None:
            return inputs, None, True
        from meshnode.evaluation import fields, metrics  # only a worker that scores needs them

        metric = metrics.find(task.metric, self._app.metrics)
        # Unpacked anew, for the program may have changed its inputs.
        example = fields.as_fields(unpack(task.example if task.example is not None else task.inputs))

        def score(prediction: Any) -> float:
            return metrics.score(metric, example, fields.as_fields(prediction))

        return inputs, score, any(metric is quick for quick in metrics.IMMEDIATE)

    async def _in_thread(self, work: Callable[[], float]) -> float:
        future: Future[float] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        self._threads.submit(run, _do_nothing)
        return await asyncio.wrap_future(future)

    # Tools: those of this app, and calls of programs to their session's owner.

    def _tool_sync(self, running: _Running, call: Callable[[], Any]) -> None:
        running.outcome = Context().run(self._call_tool, running, call)

    def _call_tool(self, running: _Running, call: Callable[[], Any]) -> FromWorker:
        started = time.perf_counter()
        try:
            result = TaskResult(pack(call()), None, None, time.perf_counter() - started, self._name)
        except BaseException as raised:
            result = TaskResult(b"", None, describe(raised), time.perf_counter() - started, self._name)
        return Done(running.job, result)

    async def _tool_async(self, running: _Running, call: Callable[[], Any]) -> None:
        started = time.perf_counter()
        try:
            result = TaskResult(pack(await call()), None, None, time.perf_counter() - started, self._name)
        except BaseException as raised:
            result = TaskResult(b"", None, describe(raised), time.perf_counter() - started, self._name)
        running.outcome = Done(running.job, result)
        self._finish(running)

    def _session(self, running: _Running, program: Program) -> Session:
        task = running.work
        assert isinstance(task, Task), "tools have no session of their own"
        variables = self._variables
        if program.variables:
            variables = MappingProxyType({**variables, **program.variables})
        if task.variables is not None:
            variables = MappingProxyType({**variables, **unpack(task.variables)})
        return Session(task.session, task.caller, task.attempt, variables, Tools(partial(self._ask, running)))

    def _ask(self, running: _Running, name: str, args: dict[str, Any]) -> Any:
        """From a program, in whatever thread it runs."""
        future: Future[bytes] = Future()
        packed = pack(args, name=f"{name}'s arguments")
        if threading.get_ident() == self._loop_thread:
            self._send_call(running, name, packed, future)
            return _unpacked(future)
        self._loop.call_soon_threadsafe(self._send_call, running, name, packed, future)
        return unpack(future.result())

    def _send_call(self, running: _Running, name: str, args: bytes, future: Future[bytes]) -> None:
        if running.dropped or running.job not in self._running:
            future.set_exception(Closed("the run that called this tool is over"))
            return
        self._next_call += 1
        running.calls[self._next_call] = future
        self._calls[self._next_call] = running
        self._send(ToolCall(self._next_call, running.job, name, args))

    def _answer(self, message: ToolAnswer) -> None:
        running = self._calls.pop(message.call, None)
        future = running.calls.pop(message.call, None) if running is not None else None
        if future is None or future.cancelled():
            return
        if message.code:
            future.set_exception(from_fault(Fault(message.code, message.message)))
        else:
            future.set_result(message.value)


def describe(error: BaseException) -> TaskError:
    """An exception as it travels, cut to a bounded size."""
    try:
        message = str(error)
    except Exception:  # a broken __str__ is the user's, too
        message = "(its message can't be shown)"
    trace = user_traceback(error)
    return TaskError(type(error).__name__, message[:MESSAGE_CHARACTERS], trace[-TRACEBACK_CHARACTERS:])


def _pack_prediction(program: Program, value: Any) -> bytes:
    if not isinstance(value, Mapping):
        raise TypeError(f"program {program.name!r} returned a {type(value).__name__}; return a dict")
    return pack(dict(value), name="prediction")


async def _awaited(value: Any) -> Any:
    return await value


async def _unpacked(future: Future[bytes]) -> Any:
    return unpack(await asyncio.wrap_future(future))


def _do_nothing() -> None:
    pass
