"""Who votes, who only listens, and what a majority is (§6; dissertation §4.3).

A configuration takes effect when it is appended, committed or not, and ceases to when it is cut off again. From one
set of voters to another the way always leads over a joint configuration: while `outgoing` is not empty, every
decision needs a majority of `voters` and a majority of `outgoing`.

    {a b c}  --change to {b c d}-->  {b c d} and {a b c}  --committed: the leader leaves by itself-->  {b c d}

A learner gets all entries and counts for nothing. A voter that becomes a learner is in `outgoing` and `learners`
while the change is joint.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Container, Iterable

import msgspec


class Configuration(msgspec.Struct, array_like=True, frozen=True):
    """Node ids, each tuple sorted. `voters` and `learners` are disjoint."""

    voters: tuple[str, ...] = ()
    learners: tuple[str, ...] = ()
    outgoing: tuple[str, ...] = ()

    @property
    def members(self) -> frozenset[str]:
        """All nodes that get entries."""
        return frozenset(self.voters + self.outgoing + self.learners)

    @property
    def deciders(self) -> frozenset[str]:
        """All nodes whose vote counts in at least one half."""
        return frozenset(self.voters + self.outgoing)

    def agreed(self, yes: Container[str]) -> bool:
        """Whether a majority (of each half, if joint) is in `yes`."""
        return _majority(self.voters, yes) and (not self.outgoing or _majority(self.outgoing, yes))

    def reached(self, value_of: Callable[[str], int]) -> int:
        """The highest value that a majority (of each half, if joint) has reached; -1 without voters."""
        reached = _reached(self.voters, value_of)
        return min(reached, _reached(self.outgoing, value_of)) if self.outgoing else reached

    def entering(self, voters: Iterable[str], learners: Iterable[str]) -> Configuration:
        """The joint configuration on the way from this one; if the voters stay the same, none is needed."""
        target = tuple(sorted(set(voters)))
        listening = tuple(sorted(set(learners)))
        return Configuration(target, listening, self.voters if target != self.voters else ())

    def leaving(self) -> Configuration:
        """What follows this joint configuration."""
        return Configuration(self.voters, self.learners)


class History:
    """The configurations of the log that may still matter: the newest committed one and all after it."""

    def __init__(self, index: int, configuration: Configuration) -> None:
        self._indexes = [index]
        self._configurations = [configuration]

    @property
    def current(self) -> Configuration:
        """The newest one, which is in force whether committed or not."""
        return self._configurations[-1]

    @property
    def index(self) -> int:
        """Where the newest one stands in the log."""
        return self._indexes[-1]

    def at(self, index: int) -> Configuration:
        """The one in force at an index that is not compacted."""
        return self._configurations[max(bisect_right(self._indexes, index) - 1, 0)]

    def from_index(self, index: int) -> list[Configuration]:
        """The one in force at `index` and all later ones."""
        return self._configurations[max(bisect_right(self._indexes, index) - 1, 0) :]

    def between(self, after: int, to: int) -> list[tuple[int, Configuration]]:
        """Those at indexes above `after`, up to `to`."""
        return [pair for pair in zip(self._indexes, self._configurations, strict=True) if after < pair[0] <= to]

    def add(self, index: int, configuration: Configuration) -> None:
        """One was appended to the log."""
        assert index > self._indexes[-1], "configurations come in the order of the log"
        self._indexes.append(index)
        self._configurations.append(configuration)

    def truncate_from(self, index: int) -> None:
        """The log was cut: fall back to the configuration before."""
        while len(self._indexes) > 1 and self._indexes[-1] >= index:
            self._indexes.pop()
            self._configurations.pop()

    def forget_before(self, index: int) -> None:
        """Nothing before `index` will be asked for again."""
        keep = max(bisect_right(self._indexes, index) - 1, 0)
        del self._indexes[:keep], self._configurations[:keep]


def _majority(voters: tuple[str, ...], yes: Container[str]) -> bool:
    return sum(voter in yes for voter in voters) > len(voters) // 2


def _reached(voters: tuple[str, ...], value_of: Callable[[str], int]) -> int:
    if not voters:
        return -1
    return sorted(map(value_of, voters), reverse=True)[len(voters) // 2]
