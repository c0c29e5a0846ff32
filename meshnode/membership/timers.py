"""What a core has to do later, in ticks. Where time is an argument, a timer is an entry in a heap."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Timers:
    """Calls back at given ticks, in order of time, then of setting. A timer isn't cancelled: its callback looks."""

    def __init__(self) -> None:
        self.now = 0
        self._heap: list[tuple[int, int, Callable[..., object], tuple[Any, ...]]] = []
        self._count = 0

    def after(self, ticks: int, callback: Callable[..., object], *arguments: Any) -> None:
        """Call back in `ticks`, at the next tick at the earliest."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + max(1, ticks), self._count, callback, arguments))

    def tick(self) -> None:
        """One tick has passed: call whatever is due."""
        self.now += 1
        while self._heap and self._heap[0][0] <= self.now:
            _, _, callback, arguments = heapq.heappop(self._heap)
            callback(*arguments)
