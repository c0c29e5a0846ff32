"""Start a coroutine as a task that takes its first step at once; let a task wait for a call that resumes it at once.

Most handlers that are coroutines finish without ever waiting; a task's detour through the loop costs them 7 us, this
2.5. It is a full task from its first step on, so `asyncio.timeout`, task groups and cancellation work in it as always.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any


class _Capture:
    """Stands in for `loop.call_soon` while a task is made, and keeps the first step it wants to schedule."""

    __slots__ = ("context", "step")

    step: Callable[[], None]
    context: Context

    def __call__(self, step: Callable[[], None], *, context: Context) -> None:
        self.step = step
        self.context = context


def starts_here(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a task may take a step if it is told to here: not inside another task."""
    return asyncio.current_task(loop) is None


class Pause:
    """What a task awaits to be resumed by `resume()`, within that call. For one task, as often as it likes.

    To asyncio it is a future: these methods and the attribute are all that a task asks of one.
    """

    __slots__ = ("_asyncio_future_blocking", "_callback", "_cancelled", "_context", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asyncio_future_blocking = False
        self._callback: Callable[[Pause], object] | None = None
        self._context: Context | None = None
        self._cancelled = False

    def __await__(self) -> Generator[Pause, None, None]:
        self._asyncio_future_blocking = True
        yield self

    def resume(self) -> None:
        """Let the task that waits here take its next step now; `starts_here` must hold."""
        callback, self._callback = self._callback, None
        if callback is not None and self._context is not None:
            self._context.run(callback, self)

    def add_done_callback(self, callback: Callable[[Pause], object], *, context: Context) -> None:
        """The task tells how it wants to be resumed."""
        self._callback, self._context = callback, context

    def result(self) -> None:
        """The task asks with what it is resumed."""
        if self._cancelled:
            raise asyncio.CancelledError

    def cancel(self, msg: Any = None) -> bool:  # noqa: ARG002 - as a future has it
        """The task is to end."""
        self._cancelled = True
        self._loop.call_soon(self.resume)
        return True

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The loop the task runs on."""
        return self._loop


if sys.version_info >= (3, 12):

    def start(coroutine: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> asyncio.Task[Any]:
        """A task that has taken its first step; it may be done."""
        return asyncio.Task(coroutine, loop=loop, eager_start=True)

else:
    _capture = _Capture()

    def start(coroutine: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> asyncio.Task[Any]:
        """A task that has taken its first step, unless we are inside a task already; it may be done.

        Python 3.12 has this as `eager_start`. Before it, the loop's call_soon is covered for the moment in which the
        task schedules its first step, and the step is taken here. Nothing else can run in that moment.
        """
        if not starts_here(loop):
            return loop.create_task(coroutine)
        covered: Any = loop
        covered.call_soon = _capture
        try:
            task = asyncio.Task(coroutine, loop=loop, name="serve")
        finally:
            del covered.call_soon
        _capture.context.run(_capture.step)
        return task
