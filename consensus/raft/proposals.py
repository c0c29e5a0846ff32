"""What became of the proposals of this node.

applied   `Apply` brought the entry where `Accepted` said, of the term it said.
lost      something of a later term was applied first. Terms never fall along a log, so it will never be applied:
          the caller may retry it, in a session or not.
unknown   a snapshot jumped over the entry, or its caller stopped waiting: only a session makes a retry safe.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from consensus.raft.effects import Accepted, Apply
from consensus.raft.messages import Snapshot

T = TypeVar("T")


@dataclass(slots=True)
class _Batch(Generic[T]):
    next_index: int
    term: int
    tokens: Sequence[T]
    settled: int = 0


class Proposals(Generic[T]):
    """Callers' tokens, in the order their commands were accepted. Costs a few steps a batch, not a command."""

    def __init__(self) -> None:
        self._batches: deque[_Batch[T]] = deque()

    def __len__(self) -> int:
        return sum(len(batch.tokens) - batch.settled for batch in self._batches)

    def accepted(self, effect: Accepted, tokens: Sequence[T]) -> None:
        """One token for each command of a `propose`."""
        assert len(tokens) == effect.last_index - effect.first_index + 1, "each command has a token"
        self._batches.append(_Batch(effect.first_index, effect.term, tokens))

    def applied(self, effect: Apply) -> tuple[list[tuple[T, int]], list[T]]:
        """Tokens whose commands are in this `Apply`, each with its index; and tokens that are lost."""
        done: list[tuple[T, int]] = []
        lost: list[T] = []
        last_index, last_term = effect.first_index + len(effect.entries) - 1, effect.entries[-1].term
        while self._batches and (self._batches[0].next_index <= last_index or self._batches[0].term < last_term):
            batch = self._batches[0]
            while batch.settled < len(batch.tokens) and effect.first_index <= batch.next_index <= last_index:
                if effect.entries[batch.next_index - effect.first_index].term != batch.term:
                    break
                done.append((batch.tokens[batch.settled], batch.next_index))
                batch.settled += 1
                batch.next_index += 1
            if batch.settled < len(batch.tokens) and batch.term == last_term:
                break
            lost.extend(batch.tokens[batch.settled :])
            self._batches.popleft()
        return done, lost

    def restored(self, snapshot: Snapshot) -> tuple[list[T], list[T]]:
        """The machine jumped to a snapshot: tokens whose outcome can't be known, and tokens that are lost."""
        unknown: list[T] = []
        lost: list[T] = []
        while self._batches and self._batches[0].term <= snapshot.term:
            batch = self._batches[0]
            while batch.settled < len(batch.tokens) and batch.next_index <= snapshot.index:
                unknown.append(batch.tokens[batch.settled])
                batch.settled += 1
                batch.next_index += 1
            if batch.settled < len(batch.tokens) and batch.term == snapshot.term:
                break
            lost.extend(batch.tokens[batch.settled :])
            self._batches.popleft()
        return unknown, lost
