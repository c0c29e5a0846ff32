"""Runs a pure core on the event loop.

A core is a state machine: `tick()` and whatever steps it has return effects. The driver performs effects strictly
in order, one at a time; a step taken while an effect is still under way (an fsync, say) queues its effects behind it.
So `Persist` precedes the `Send` that depends on it. The simulator performs the same effects under a virtual clock.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, Protocol, TypeVar

E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)


class Core(Protocol[E_co]):
    """A pure state machine: no clock, no socket, no disk. Time is a tick."""

    def tick(self) -> Iterable[E_co]:
        """One tick of time has passed."""
        ...


class Driver(Generic[E]):
    """Ticks a core every `tick_s` seconds and performs its effects in order.

    `perform` returns None when the effect is done, or an awaitable that finishes when it is. An effect that raises
    stops the driver: `failed` gets the exception, for a core whose effects were skipped can't be trusted.

    rest: how many ticks the core can do without the next one, asked after each; for cores that are told how much time
    went by. What needs the next tick sooner must `hurry`.
    """

    def __init__(
        self,
        core: Core[E],
        perform: Callable[[E], Awaitable[None] | None],
        *,
        tick_s: float,
        failed: Callable[[Exception], None],
        rest: Callable[[], int] = lambda: 1,
    ) -> None:
        self._core = core
        self._rest = rest
        self._perform = perform
        self._tick_s = tick_s
        self._failed = failed
        self._queue: deque[E] = deque()
        self._pending: asyncio.Task[None] | None = None
        self._performing = False
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._stopped = True

    def start(self) -> None:
        """Begin ticking; the first tick comes after one interval."""
        self._stopped = False
        loop = asyncio.get_running_loop()
        self._arm(loop, loop.time() + self._tick_s)

    def hurry(self) -> None:
        """Let the next tick come after one interval, however long the core was to rest."""
        if not self._stopped and self._timer is not None:
            loop = asyncio.get_running_loop()
            if self._due > (when := loop.time() + self._tick_s):
                self._timer.cancel()
                self._arm(loop, when)

    def run(self, effects: Iterable[E]) -> None:
        """Perform what a step of the core returned, after all that was returned before."""
        self._queue.extend(effects)
        if self._pending is None and not self._performing:
            self._drain()

    async def stop(self) -> None:
        """Stop ticking and drop what is queued; the effect under way is finished first."""
        self._stopped = True
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._pending is not None:
            await asyncio.wait([self._pending])

    def _arm(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        self._due = when  # the handle can't be asked: what is due at once is no TimerHandle with uvloop
        self._timer = loop.call_at(when, self._on_tick, loop, when)

    def _on_tick(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        if self._stopped:
            return
        # A loop that was held up must not fire a burst of ticks: to the core, time simply went slower.
        due = max(due, loop.time())
        try:
            self.run(self._core.tick())
        finally:
            if not self._stopped:
                self._arm(loop, due + self._tick_s * max(1, self._rest()))

    def _drain(self) -> None:
        self._performing = True
        try:
            while self._queue and not self._stopped:
                under_way = self._perform(self._queue.popleft())
                if under_way is not None:
                    self._pending = asyncio.ensure_future(self._finish(under_way))
                    return
        except Exception as error:
            self._fail(error)
        finally:
            self._performing = False

    async def _finish(self, under_way: Awaitable[None]) -> None:
        try:
            await under_way
        except Exception as error:
            self._pending = None
            self._fail(error)
        else:
            self._pending = None
            self._drain()

    def _fail(self, error: Exception) -> None:
        self._stopped = True
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._failed(error)
