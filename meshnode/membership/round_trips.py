"""How long a probe takes to a member and back, smoothed."""

from __future__ import annotations

from collections.abc import Mapping

_TIMED_MAX = 1024  # pings under way that are timed; those whose answer never comes are forgotten in bulk
_WEIGHT = 0.2  # of the newest


class RoundTrips:
    """Told of pings and acks as they pass; times are seconds on one clock."""

    def __init__(self) -> None:
        self._sent: dict[int, tuple[str, float]] = {}
        self._seconds: dict[str, float] = {}

    def sent(self, sequence: int, target: str, now: float) -> None:
        """A ping goes out."""
        if len(self._sent) >= _TIMED_MAX:
            self._sent.clear()
        self._sent[sequence] = (target, now)

    def answered(self, sequence: int, source: str, now: float) -> None:
        """An ack came in; one that another member sent for the target says nothing of the way there."""
        target, sent = self._sent.pop(sequence, ("", 0.0))
        if target == source:
            took = now - sent
            self._seconds[target] = took + (1 - _WEIGHT) * (self._seconds.get(target, took) - took)

    def forget(self, node_id: str) -> None:
        """It is not listed any more."""
        self._seconds.pop(node_id, None)

    @property
    def seconds(self) -> Mapping[str, float]:
        """By node id."""
        return self._seconds
