"""Writes on their way: each with its place in this node's client session, together as a leader is told them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from consensus.raft import sessions as clients
from meshnode.replication.messages import UNKNOWN, Proposed, Single

PACK_BYTES = 256 << 10  # about as much as one entry holds of several writes

C = TypeVar("C", contravariant=True)
T = TypeVar("T")


class Commands(Protocol[C, T]):
    """What becomes of commands: bytes, alone or several as one, and their answers results."""

    def size(self, command: C) -> int | None:
        """About how many bytes one has that may go with others as one; None: it goes alone."""
        ...

    def encode(self, command: C) -> bytes:
        """One for itself."""
        ...

    def encode_all(self, commands: Sequence[C]) -> bytes:
        """Several, of those that have a size, as one."""
        ...

    def settle(self, future: asyncio.Future[T], index: int, answer: bytes) -> None:
        """Give one who wrote what the machine answered at `index`. Raises nothing, whatever the answer is."""
        ...

    def results(self, answer: bytes) -> list[T]:
        """What to give each of several, by the one answer to all; changes nothing. Raises what decoding raises."""
        ...

    def settled(self, index: int, results: list[T]) -> None:
        """These, from the answer at `index`, are what those who wrote get now."""
        ...

    def answers(self, answer: bytes) -> list[bytes]:
        """The answer to each, by that to all. Raises what decoding raises."""
        ...


class Client:
    """This node's client session, and the sequence numbers whose answers it still wants, in order."""

    def __init__(self, session: int) -> None:
        self.session = session
        self.sequence = 0
        self.outstanding: dict[int, None] = {}

    @property
    def acknowledged(self) -> int:
        """All up to this one have their answer, or nobody wants it any more."""
        return next(iter(self.outstanding), self.sequence + 1) - 1

    def take(self, write: Write) -> None:
        """Give it the next number."""
        self.sequence += 1
        write.client, write.sequence, write.entry = self, self.sequence, b""
        self.outstanding[self.sequence] = None


class Write(msgspec.Struct, eq=False):
    """A command on its way. `raw`: its bytes, if it goes alone. `entry`: what it was sent as, if alone.

    `in_doubt`: some earlier try got no answer; `is_flying`: one is under way now.
    """

    command: Any
    deadline: float
    future: Any  # asyncio.Future of the outcome
    size: int
    raw: bytes = b""
    entry: bytes = b""
    client: Client | None = None
    sequence: int = 0
    in_doubt: bool = False
    is_flying: bool = False


class Parcel:
    """One entry, and the writes in it: one, or several of one session whose numbers follow each other."""

    __slots__ = ("entry", "writes")

    def __init__(self, entry: bytes, writes: Sequence[Write]) -> None:
        self.entry = entry
        self.writes = writes


class Flight:
    """Parcels sent to one leader; it has until `deadline` to answer. `task`: what waits for that, if anything must."""

    __slots__ = ("deadline", "leader", "parcels", "task")

    def __init__(self, leader: str, parcels: Sequence[Parcel], deadline: float) -> None:
        self.leader = leader
        self.parcels = parcels
        self.deadline = deadline
        self.task: asyncio.Future[Proposed] | None = None

    def __iter__(self) -> Iterator[Write]:
        """The writes, in their order."""
        return (write for parcel in self.parcels for write in parcel.writes)


class Packer(Generic[C, T]):
    """Makes parcels of writes that are added one after the other. All were given the present session's numbers before,
    or have gone out before; `acknowledged` is what that session has the answers to."""

    def __init__(self, commands: Commands[C, T], acknowledged: int) -> None:
        self.parcels: list[Parcel] = []
        self._commands = commands
        self._acknowledged = acknowledged
        self._together: list[Write] = []
        self._bytes = 0

    def add(self, write: Write, *, is_new: bool) -> None:
        """Again goes alone what has gone out before: some of those it was with may have arrived otherwise."""
        if is_new and not write.raw:
            if self._bytes + write.size > PACK_BYTES:
                self._close()
            self._together.append(write)
            self._bytes += write.size
            return
        self._close()
        self._add_alone(write)

    def finish(self) -> list[Parcel]:
        """All of them."""
        self._close()
        return self.parcels

    def _close(self) -> None:
        together, self._together, self._bytes = self._together, [], 0
        if len(together) == 1:
            self._add_alone(together[0])
        elif together:
            first = together[0]
            assert first.client is not None, "it has a number"
            packed = self._commands.encode_all([write.command for write in together])
            runs = clients.Runs(first.client.session, first.sequence, self._acknowledged, len(together), packed)
            self.parcels.append(Parcel(clients.encode(runs), together))

    def _add_alone(self, write: Write) -> None:
        if not write.entry:
            assert write.client is not None, "it has a number"
            raw = write.raw or self._commands.encode(write.command)
            run = clients.Run(write.client.session, write.sequence, self._acknowledged, raw)
            write.entry = clients.encode(run)
        self.parcels.append(Parcel(write.entry, (write,)))


def outcomes_of(commands: Commands[C, T], parcel: Parcel, outcome: Any) -> Sequence[Single]:
    """What became of each write of a parcel, by what is said of its entry. Raises what decoding raises."""
    count = len(parcel.writes)
    if isinstance(outcome, list):
        outcomes: Sequence[Single] = outcome
    elif count == 1 or isinstance(outcome, int):
        outcomes = [outcome] * count
    else:
        outcomes = commands.answers(outcome)
    return outcomes if len(outcomes) == count else [UNKNOWN] * count
