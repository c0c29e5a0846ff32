"""What became of the entries this node proposed: one future a batch, however many entries it has.

The rules are those of `consensus.raft.proposals`: an entry that was applied at its index in its term has an outcome;
if a later term stands there, it is LOST for good; if a snapshot jumped over it, its outcome is UNKNOWN. Here they are
kept by ranges, for under load the leader settles a hundred thousand entries a second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from consensus.raft.effects import Accepted, Apply
from consensus.raft.messages import Snapshot
from meshnode.replication.messages import LOST, UNKNOWN, Outcome


class Asker(Protocol):
    """Who wants to know: a future, or what sends the answer on."""

    def done(self) -> bool:
        """Whether nobody waits any more."""
        ...

    def set_result(self, outcomes: list[Outcome], /) -> None:
        """These are the outcomes, in the order of the entries."""
        ...

    def set_exception(self, error: Exception, /) -> None:
        """None was taken."""
        ...


class Batch:
    """Entries that are proposed together. `future` (None: nobody asks) gets their outcomes, in their order."""

    __slots__ = ("entries", "first_index", "future", "missing", "next_index", "outcomes", "term")

    def __init__(self, entries: Sequence[bytes], future: Asker | None) -> None:
        self.entries = entries
        self.future = future
        self.missing = len(entries)
        self.outcomes: list[Outcome] = []
        self.first_index = 0
        self.next_index = 0
        self.term = 0

    def settle(self, rest: Outcome) -> None:
        """Answer; what has no outcome yet has this one."""
        if self.future is not None and not self.future.done():
            self.future.set_result(self.outcomes + [rest] * self.missing)

    def refuse(self, error: Exception) -> None:
        """Answer that none of it was taken."""
        if self.future is not None and not self.future.done():
            self.future.set_exception(error)


class Batches:
    """Those that wait, in the order they were accepted; their indexes rise."""

    def __init__(self) -> None:
        self._batches: deque[Batch] = deque()

    def __len__(self) -> int:
        return sum(batch.missing for batch in self._batches)

    @property
    def is_waiting(self) -> bool:
        """Whether the outcome of anything is still to come."""
        return bool(self._batches)

    def accepted(self, effect: Accepted, batches: Sequence[Batch]) -> None:
        """The core took these, one after the other."""
        index = effect.first_index
        for batch in batches:
            batch.first_index = batch.next_index = index
            batch.term = effect.term
            batch.entries = ()  # they are in the log now
            index += batch.missing
        assert index == effect.last_index + 1, "each entry belongs to a batch"
        self._batches.extend(batches)

    def applied(self, effect: Apply, outcomes: Sequence[Outcome]) -> None:
        """Entries were applied, with these outcomes."""
        first, entries = effect.first_index, effect.entries
        last, last_term = first + len(entries) - 1, entries[-1].term
        while self._batches:
            batch = self._batches[0]
            is_lost = batch.term < last_term
            if batch.next_index <= last:
                begin = batch.next_index - first
                end = min(begin + batch.missing, len(entries))
                mine = begin
                # Terms never fall along a log: if both ends are ours, so is all between.
                if entries[begin].term == entries[end - 1].term == batch.term:
                    mine = end
                while mine < end and entries[mine].term == batch.term:
                    mine += 1
                batch.outcomes += outcomes[begin:mine]
                batch.missing -= mine - begin
                batch.next_index += mine - begin
                is_lost = is_lost or mine < end
            if batch.missing and not is_lost:
                return
            self._batches.popleft()
            batch.settle(LOST)

    def restored(self, snapshot: Snapshot) -> None:
        """The machine jumped to a snapshot."""
        while self._batches and self._batches[0].term <= snapshot.term:
            batch = self._batches[0]
            jumped = max(0, min(batch.missing, snapshot.index + 1 - batch.next_index))
            batch.outcomes += [UNKNOWN] * jumped
            batch.missing -= jumped
            batch.next_index += jumped
            if batch.missing and batch.term == snapshot.term:
                return
            self._batches.popleft()
            batch.settle(LOST)

    def adopt(self, batches: Sequence[Batch]) -> None:
        """The core took these, but where they stand will not be known any more."""
        self._batches.extend(batches)

    def close(self) -> None:
        """Nothing will be applied here any more."""
        while self._batches:
            self._batches.popleft().settle(UNKNOWN)
