"""Many deadlines, one timer: what waits is looked at every few milliseconds instead of having a timer each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

SWEEP_S = 0.025


class Waits(Protocol):
    """Something with a deadline on the running loop's clock; equal only to itself."""

    deadline: float


W = TypeVar("W", bound=Waits)


class Deadlines(Generic[W]):
    """Calls `expire(item)` for each item whose time is up, at most SWEEP_S late; it is forgotten then."""

    def __init__(self, expire: Callable[[W], None]) -> None:
        self._expire = expire
        self.items: dict[W, None] = {}  # in the order they came; who has many takes them out himself
        self._timer: asyncio.TimerHandle | None = None

    def add(self, item: W) -> None:
        """Watch it."""
        self.items[item] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def drop(self, item: W) -> None:
        """It waits no more."""
        self.items.pop(item, None)

    def close(self) -> list[W]:
        """Watch nothing any more; returns what still waited."""
        if self._timer is not None:
            self._timer.cancel()
        left = list(self.items)
        self.items.clear()
        return left

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for item in [item for item in self.items if item.deadline <= now]:
            del self.items[item]
            self._expire(item)
        self._timer = loop.call_later(SWEEP_S, self._sweep) if self.items else None
