"""The evaluations that a node runs now, and how the last few ended: for whoever shows it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec

from meshnode.evaluation.results import Progress

KEEP_ENDED = 4
KEEP_ENDED_S = 120.0


class Watched(msgspec.Struct):
    """One evaluation. `state` is "running" until it ended; `ended_s` is on the monotonic clock."""

    number: int
    program: str
    progress: Progress | None = None
    state: Literal["running", "done", "stopped", "failed"] = "running"
    ended_s: float = 0.0


class UnderWay:
    """All evaluations of one node. Counting `examples` and `failed` over its life, for metrics."""

    def __init__(self) -> None:
        self._numbers = 0
        self._running: dict[int, Watched] = {}
        self._ended: deque[Watched] = deque(maxlen=KEEP_ENDED)
        self.examples = 0
        self.failed = 0

    @contextlib.contextmanager
    def watch(self, program: str, then: Callable[[Progress], None] | None) -> Iterator[Callable[[Progress], None]]:
        """Follow one evaluation: gives what to call with its progress, which goes on to `then`."""
        self._numbers += 1
        one = self._running[self._numbers] = Watched(self._numbers, program)

        def note(progress: Progress) -> None:
            before = one.progress
            self.examples += progress.done - (before.done if before else 0)
            self.failed += progress.failed - (before.failed if before else 0)
            one.progress = progress
            if then is not None:
                then(progress)

        try:
            yield note
        except BaseException as error:
            one.state = "stopped" if isinstance(error, asyncio.CancelledError) else "failed"
            raise
        else:
            one.state = "done"
        finally:
            one.ended_s = time.monotonic()
            del self._running[one.number]
            self._ended.append(one)

    def describe(self) -> list[dict[str, Any]]:
        """Those that ended lately and those that run, oldest first, in plain values."""
        since = time.monotonic() - KEEP_ENDED_S
        shown = [*(one for one in self._ended if one.ended_s > since), *self._running.values()]
        return [
            {
                "number": one.number,
                "program": one.program,
                "state": one.state,
                **(msgspec.to_builtins(one.progress) if one.progress is not None else {}),
            }
            for one in sorted(shown, key=lambda one: one.number)
        ]
