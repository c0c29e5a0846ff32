"""What a log tells of itself, above all how long its disk takes."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

#: Upper bounds in seconds: a good disk syncs in the first three, one above 0.1 s is a slow disk.
BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class Durations:
    """A histogram of durations in seconds."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self.count = 0
        self.sum_s = 0.0
        self.max_s = 0.0
        self.last_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.count += 1
        self.sum_s += seconds
        self.max_s = max(self.max_s, seconds)
        self.last_s = seconds

    def statistics(self) -> dict[str, Any]:
        """Cumulative counts by upper bound, as Prometheus has them, with count, sum, max and last."""
        buckets: dict[str, int] = {}
        total = 0
        for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), self._counts, strict=True):
            total += count
            buckets[bound] = total
        return {
            "count": self.count,
            "sum_s": self.sum_s,
            "max_s": self.max_s,
            "last_s": self.last_s,
            "buckets": buckets,
        }
