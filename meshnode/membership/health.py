"""How far this node trusts itself (Lifeguard §IV-A: local health multiplier).

A node that is short of CPU or network sees everyone else fail. Signs of that (an own probe without answer, nacks that
should have come and didn't, having to refute) raise a score that stretches its own probes; each answered probe
lowers it.
"""

from __future__ import annotations


class Health:
    """0 is healthy. Invariant: 0 <= score < max(1, limit)."""

    __slots__ = ("_limit", "score")

    def __init__(self, limit: int) -> None:
        self._limit = max(1, limit)
        self.score = 0

    @property
    def multiplier(self) -> int:
        """What probe intervals and timeouts are multiplied by."""
        return self.score + 1

    def better(self) -> None:
        """A probe was answered."""
        self.score = max(0, self.score - 1)

    def worse(self, signs: int = 1) -> None:
        """This many signs that the fault is here."""
        self.score = min(self._limit - 1, self.score + signs)
