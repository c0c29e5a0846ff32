"""One piece of work as the pool holds it, and what may be asked of a pool at most."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from meshnode.errors import MeshError, MeshTimeout
from meshnode.workers.protocol import Run, RunTool, TaskResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """queue: how many tasks may wait; None: as many as there are slots, at least 8. Times are seconds.

    memory_limit_bytes: resident memory of one worker process, without what it forked; None: no limit.
    liveness_s: how long a worker may be silent without computing. start_timeout_s: how long loading the app may take.
    """

    queue: int | None = None
    memory_limit_bytes: int | None = None
    liveness_s: float = 10.0
    start_timeout_s: float = 60.0


@dataclass(slots=True, eq=False)
class Job:
    """A task, or a call of a tool; `worker` is set for the latter, which is not assigned but sent.

    `number` is the pool's own. `sent_at`: when a worker began it, on the loop's clock, about; 0 while it waits.
    """

    number: int
    message: Run | RunTool
    future: asyncio.Future[TaskResult]
    timeout_s: float
    sent_at: float = 0.0
    worker: str = ""

    @property
    def name(self) -> str:
        """What errors call it."""
        message = self.message
        return f"program {message.task.program!r}" if isinstance(message, Run) else f"tool {message.name!r}"

    def end(self, outcome: TaskResult | MeshError) -> bool:
        """Tell whoever waits; False if nobody does any more."""
        if self.future.done():
            return False
        if isinstance(outcome, MeshError):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)
        return True

    def end_late(self) -> bool:
        """It ran out of its time."""
        return self.end(
            MeshTimeout(f"{self.name} ran longer than {self.timeout_s:g} s; give it more time, or see what hangs")
        )
