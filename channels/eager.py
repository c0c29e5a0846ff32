"""Start a coroutine as a task that takes its first step at once.

Most handlers that are coroutines finish without ever waiting; a task's detour through the loop costs them 7 us, this
2.5. It is a full task from its first step on, so `asyncio.timeout`, task groups and cancellation work in it as always.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
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


if sys.version_info >= (3, 12):

    def starts_here(_: asyncio.AbstractEventLoop) -> bool:
        """Whether `start` takes the first step if it is called here."""
        return True

    def start(coroutine: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> asyncio.Task[Any]:
        """A task that has taken its first step; it may be done."""
        return asyncio.Task(coroutine, loop=loop, eager_start=True)

else:
    _capture = _Capture()

    def starts_here(loop: asyncio.AbstractEventLoop) -> bool:
        """Whether `start` takes the first step if it is called here: not inside a task."""
        return asyncio.current_task(loop) is None

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
