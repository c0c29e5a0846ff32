"""What is on disk, and what may not be said before it is.

Three rules cover all messages:

    1. No message leaves before the term and vote it was sent under are durable. A vote would be forgotten otherwise,
       and a term that was forgotten could be led twice.
    2. An AppendReply names the agreed and durable index, whatever else has arrived: it never needs to wait, and one
       reply after an fsync acknowledges all it covered.
    3. A leader counts itself like anyone else: up to its durable index. Its Appends need not wait for its own disk.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from consensus.raft.effects import Persist, Send
from consensus.raft.messages import Entry, HardState, Message, Snapshot

if TYPE_CHECKING:
    from consensus.raft.state import State


@dataclass(slots=True)
class Write:
    """A Persist under way: once it is durable, so is the log up to `last_index`."""

    number: int
    last_index: int
    asked_at: int


@dataclass(slots=True)
class Durability:
    """durable_number <= number; durable_index <= log.last_index; hard_state_number <= number."""

    number: int = 0  # of the last Persist handed out
    durable_number: int = 0  # of the last one reported
    durable_index: int = 0
    hard_state_number: int = 0  # of the last Persist that held term and vote
    writes: deque[Write] = field(default_factory=deque)
    held: deque[Send] = field(default_factory=deque)

    @property
    def hard_state_is_durable(self) -> bool:
        """Whether the present term and vote would survive a crash now."""
        return self.hard_state_number <= self.durable_number

    def truncate_from(self, index: int) -> None:
        """The log was cut: what was durable from there on counts no more."""
        self.durable_index = min(self.durable_index, index - 1)
        for write in self.writes:
            write.last_index = min(write.last_index, index - 1)

    def stalled_ticks(self, now: int) -> int:
        """For how long the oldest write has been under way."""
        return now - self.writes[0].asked_at if self.writes else 0


def persist_hard_state(state: State, term: int, vote: str | None) -> None:
    """Change term and vote. A term never falls, and within one a vote is never changed."""
    assert term > state.term or (term == state.term and state.vote in (None, vote)), "a vote is given once in a term"
    state.term, state.vote = term, vote
    number = _begin_write(state, state.durability.writes[-1].last_index if state.durability.writes else None)
    state.durability.hard_state_number = number
    state.out.append(Persist(number, hard_state=HardState(term, vote)))


def persist_entries(state: State, first_index: int, entries: list[Entry]) -> None:
    """Write entries that are in the log already."""
    number = _begin_write(state, first_index + len(entries) - 1)
    state.out.append(Persist(number, first_index=first_index, entries=entries))


def persist_snapshot(state: State, snapshot: Snapshot) -> None:
    """Put a received snapshot in the place of the whole log."""
    state.durability.truncate_from(1)
    number = _begin_write(state, snapshot.index)
    state.out.append(Persist(number, snapshot=snapshot))


def send(state: State, to: str, message: Message) -> None:
    """Send as soon as term and vote are durable (rule 1)."""
    durability = state.durability
    effect = Send(to, message, durability.hard_state_number)
    if durability.hard_state_is_durable:
        state.out.append(effect)
    else:
        durability.held.append(effect)


def complete_writes(state: State, number: int) -> None:
    """All writes up to `number` are durable: release what waited for them."""
    durability = state.durability
    assert durability.durable_number < number <= durability.number, "writes are reported once, and only those begun"
    durability.durable_number = number
    while durability.writes and durability.writes[0].number <= number:
        durability.durable_index = durability.writes.popleft().last_index
    while durability.held and durability.held[0].after <= number:
        state.out.append(durability.held.popleft())


def _begin_write(state: State, last_index: int | None) -> int:
    durability = state.durability
    durability.number += 1
    reached = durability.durable_index if last_index is None else last_index
    durability.writes.append(Write(durability.number, reached, state.now))
    return durability.number
