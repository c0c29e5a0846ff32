"""A virtual clock and a faulty network, shared by all simulations.

Everything is drawn from one seeded generator, so a seed names a run: the same seed gives the same trace. Nothing here
knows a protocol: a simulation schedules callbacks and sends opaque messages between node names.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


class Clock:
    """Virtual time in seconds. Callbacks due at the same time run in the order they were scheduled."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (max(when, self.now), self._count, callback))

    def call_later(self, delay: float, callback: Callable[[], None]) -> None:
        self.call_at(self.now + delay, callback)

    def run_until(self, end: float, stop: Callable[[], bool] | None = None) -> bool:
        """Run callbacks up to `end`, or until `stop()` is true after one; returns whether it became true."""
        while self._heap and self._heap[0][0] <= end:
            self.now, _, callback = heapq.heappop(self._heap)
            callback()
            if stop is not None and stop():
                return True
        self.now = max(self.now, end)
        return False


@dataclass
class Faults:
    """What the network does to a message. Rates are probabilities, delays are seconds."""

    delay_min: float = 0.0005
    delay_max: float = 0.002
    loss: float = 0.0
    duplication: float = 0.0
    reorder: float = 0.0  # chance of an extra delay of up to `reorder_delay`
    reorder_delay: float = 0.1


@dataclass
class Network:
    """Delivers messages between named nodes, through seeded faults and one-way cuts."""

    clock: Clock
    rng: random.Random
    faults: Faults = field(default_factory=Faults)
    link_faults: dict[tuple[str, str], Faults] = field(default_factory=dict)
    cuts: set[tuple[str, str]] = field(default_factory=set)  # (source, target): nothing passes that way
    receivers: dict[str, Callable[[str, Any], None]] = field(default_factory=dict)
    sent: int = 0
    dropped: int = 0

    def attach(self, name: str, receive: Callable[[str, Any], None]) -> None:
        self.receivers[name] = receive

    def detach(self, name: str) -> None:
        self.receivers.pop(name, None)

    def send(self, source: str, target: str, message: Any) -> None:
        self.sent += 1
        faults = self.link_faults.get((source, target), self.faults)
        copies = 2 if self.rng.random() < faults.duplication else 1
        for _ in range(copies):
            if self.rng.random() < faults.loss:
                self.dropped += 1
                continue
            delay = self.rng.uniform(faults.delay_min, faults.delay_max)
            if self.rng.random() < faults.reorder:
                delay += self.rng.uniform(0, faults.reorder_delay)
            self.clock.call_later(delay, lambda: self._deliver(source, target, message))

    def _deliver(self, source: str, target: str, message: Any) -> None:
        receive = self.receivers.get(target)
        # A cut also loses what was under way: judged on arrival.
        if receive is None or (source, target) in self.cuts:
            self.dropped += 1
            return
        receive(source, message)

    def partition(self, *sides: set[str]) -> None:
        """Cut every link between different sides, both ways; links within a side are untouched."""
        for side in sides:
            for other in sides:
                if other is not side:
                    self.cuts |= {(a, b) for a in side for b in other}

    def cut_one_way(self, source: str, target: str) -> None:
        self.cuts.add((source, target))

    def heal(self) -> None:
        self.cuts.clear()
        self.link_faults.clear()
