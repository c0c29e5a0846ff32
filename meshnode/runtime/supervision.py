"""Long-lived tasks that are never lost: each has a name, a crash is logged and restarted or reported, none leaks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

log = structlog.get_logger("meshnode.supervision")


class Supervisor:
    """Owns the background tasks of a node; `close` cancels them, the youngest first, and waits for each.

    A task that crashes is started again after `backoff_s`, doubled at each crash up to `backoff_max_s`; after
    `max_crashes` in a row `gave_up(name, error)` is called instead. Running `healthy_s` seconds forgives the past.
    """

    def __init__(
        self,
        gave_up: Callable[[str, BaseException], None],
        *,
        backoff_s: float = 0.1,
        backoff_max_s: float = 5.0,
        max_crashes: int = 8,
        healthy_s: float = 30.0,
    ) -> None:
        self._gave_up = gave_up
        self._backoff_s = backoff_s
        self._backoff_max_s = backoff_max_s
        self._max_crashes = max_crashes
        self._healthy_s = healthy_s
        self._tasks: dict[asyncio.Task[None], str] = {}

    def start(self, name: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Run `work` until it returns or `close`; restart it when it crashes."""
        task = asyncio.get_running_loop().create_task(self._keep(name, work), name=name)
        self._tasks[task] = name
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return task

    def names(self) -> list[str]:
        """What runs at this moment."""
        return sorted(self._tasks.values())

    async def close(self) -> None:
        """Cancel every task and wait until all have ended."""
        for task in reversed(list(self._tasks)):
            task.cancel()
            await asyncio.wait([task])

    async def _keep(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        crashes = 0
        while True:
            started = loop.time()
            try:
                await work()
            except Exception as error:
                crashes = 1 if loop.time() - started > self._healthy_s else crashes + 1
                log.error("task crashed", task=name, crashes=crashes, error=repr(error), exc_info=error)
                if crashes >= self._max_crashes:
                    self._gave_up(name, error)
                    return
                await asyncio.sleep(min(self._backoff_s * 2 ** (crashes - 1), self._backoff_max_s))
            else:
                return
