"""Client sessions: a command that is retried applies once (§8; dissertation §6.3).

A client that gets no answer can't know whether its command was applied, so it must ask again, perhaps another leader.
What was applied is remembered where nothing can be forgotten: in the replicated machine itself.

    client                          log (any leader)               table, the same on every node
    open                            7: Open                        session 7 = {}
    sequence 1: "add 5"             8: Run(7, 1, 0, "add 5")       runs; session 7 = {1: "5"}
      no answer: sends it again     9: Run(7, 1, 0, "add 5")       answers "5", runs nothing
    sequence 2, has all up to 1    10: Run(7, 2, 1, "add 1")       forgets 1, runs; session 7 = {2: "6"}
    3 to 5 at once                 11: Runs(7, 3, 2, 3, "add 1 1 1")   the same as three Runs, in one entry

A session is named by the index of its Open, so an Open that is repeated only leaves an idle session. A client may
have many commands under way, in any order; `acknowledged` says up to which sequence it has all answers. The table is
bounded: the session unused for the longest time, by log order, makes room. Its client is told `Expired` and can't know
what became of a command without answer: to it, that is an unknown outcome. A machine keeps one `Sessions`, hands it
every entry of kind COMMAND, and puts `dump()` into its snapshots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from consensus.decoding import UNDECODABLE

T = TypeVar("T")
Natural: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class Open(msgspec.Struct, array_like=True, frozen=True, tag=0):
    """Begin a session."""


class Close(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """End a session."""

    session: Natural


class Run(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=2):
    """Run a command of a session once. All answers up to `acknowledged` have arrived."""

    session: Natural
    sequence: Natural
    acknowledged: Natural
    command: bytes


class Runs(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=4):
    """`count` Runs of a session, of which the first has `sequence` and the others follow, packed as their machine packs
    them: one entry to send, log and apply. Tag 3 is taken (machines/composite.py)."""

    session: Natural
    sequence: Natural
    acknowledged: Natural
    count: Annotated[int, Meta(ge=1, le=1 << 16)]
    commands: bytes


class Opened(msgspec.Struct, frozen=True):
    """The new session."""

    session: int


class Closed(msgspec.Struct, frozen=True):
    """The session is no more, whether it was before or not."""


class Applied(msgspec.Struct, frozen=True, gc=False):
    """What the machine answered when the command was applied: now, or at the first try. For Runs: to all, packed."""

    result: bytes


class Each(msgspec.Struct, frozen=True):
    """What became of each of Runs, where one answer can't say it; an Applied is told by its bytes."""

    outcomes: list[bytes | Outcome]


class Expired(msgspec.Struct, frozen=True):
    """There is no such session (any more); the command was not run now."""


class Stale(msgspec.Struct, frozen=True):
    """A copy of a command whose answer the client has acknowledged; it was not run again."""


class Unacknowledged(msgspec.Struct, frozen=True):
    """Too many answers of this session are remembered; the command was not run. Acknowledge, then retry."""


class Malformed(msgspec.Struct, frozen=True):
    """The entry is no session command; nothing was run."""


Outcome: TypeAlias = Opened | Closed | Applied | Each | Expired | Stale | Unacknowledged | Malformed


class Packing(NamedTuple):
    """How a machine deals with several commands in one.

    run(index, packed, count): apply them; one answer to all (bytes), or one to each; None, having done nothing, if
    these are not `count` commands. commands(packed): each for itself, None as before. answers(answer): that to each.
    """

    run: Callable[[int, bytes, int], bytes | list[bytes] | None]
    commands: Callable[[bytes], list[bytes] | None]
    answers: Callable[[bytes], list[bytes]]


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Open | Close | Run | Runs)
_run_decoder = msgspec.msgpack.Decoder(Run)
_runs_decoder = msgspec.msgpack.Decoder(Runs)
_RUN_PREFIX = _encoder.encode(Run(0, 0, 0, b""))[:2]  # an array of five, tagged 2
_RUNS_PREFIX = _encoder.encode(Runs(0, 0, 0, 1, b""))[:2]
_EXPIRED, _STALE, _UNACKNOWLEDGED, _MALFORMED, _CLOSED = Expired(), Stale(), Unacknowledged(), Malformed(), Closed()


def encode(command: Open | Close | Run | Runs) -> bytes:
    """A command as the data of an entry."""
    return _encoder.encode(command)


class Table(msgspec.Struct, array_like=True):
    """One session: answers by sequence, all above `acknowledged`. `packs`: by the first sequence, how many there are
    and the answer to all of them; some of them may be acknowledged."""

    acknowledged: int = 0
    answers: dict[int, bytes] = {}
    packs: dict[int, tuple[int, bytes]] = {}

    def remembered(self) -> int:
        """How many answers that are not acknowledged."""
        packed = sum(first + count - 1 - max(first - 1, self.acknowledged) for first, (count, _) in self.packs.items())
        return len(self.answers) + packed

    def knows_any(self, first: int, count: int) -> bool:
        """Whether there is an answer to any of these sequences."""
        last = first + count - 1
        if self.answers and not self.answers.keys().isdisjoint(range(first, last + 1)):
            return True
        return any(begin <= last and first < begin + length for begin, (length, _) in self.packs.items())

    def forget(self, to: int) -> None:
        """The answers up to this one have arrived."""
        answers, packs = self.answers, self.packs
        if answers:
            if to - self.acknowledged <= len(answers):
                for sequence in range(self.acknowledged + 1, to + 1):
                    answers.pop(sequence, None)
            else:  # a large step, honest or not, costs no more than what is there
                for sequence in [each for each in answers if each <= to]:
                    del answers[sequence]
        for first in [first for first, (count, _) in packs.items() if first + count - 1 <= to]:
            del packs[first]
        self.acknowledged = to


_dump_decoder = msgspec.msgpack.Decoder(list[tuple[int, Table]])


class Sessions:
    """The table of sessions. `run(index, command)` applies a command to the machine and returns its answer; without
    `packing`, Runs are malformed."""

    def __init__(
        self,
        run: Callable[[int, bytes], bytes],
        *,
        packing: Packing | None = None,
        limit_sessions: int = 4096,
        limit_answers: int = 4096,
    ) -> None:
        self._run = run
        self._packing = packing
        self._limit_sessions = limit_sessions
        self._limit_answers = limit_answers
        self._tables: dict[int, Table] = {}  # least recently used first

    def __len__(self) -> int:
        return len(self._tables)

    def apply(self, index: int, data: bytes) -> Outcome:
        """Apply one committed entry. The same entries give the same outcomes on every node."""
        try:
            command = _decoder.decode(data)
        except UNDECODABLE:
            return _MALFORMED
        if isinstance(command, (Run, Runs)):
            answer = self._apply_run(index, command) if isinstance(command, Run) else self._apply_runs(index, command)
            return Applied(answer) if isinstance(answer, bytes) else answer
        if type(command) is Close:
            self._tables.pop(command.session, None)
            return _CLOSED
        if len(self._tables) >= self._limit_sessions:
            del self._tables[next(iter(self._tables))]
        self._tables[index] = Table()
        return Opened(index)

    def apply_all(
        self, first_index: int, entries: Sequence[bytes], otherwise: Callable[[int, bytes], Outcome | T]
    ) -> list[bytes | Outcome | T]:
        """`apply` for entries that stand one after the other; an Applied is told by its bytes.

        `otherwise(index, data)` takes what does not look like a Run or Runs.
        """
        outcomes: list[bytes | Outcome | T] = []
        for index, data in enumerate(entries, first_index):
            try:
                if data.startswith(_RUN_PREFIX):
                    outcomes.append(self._apply_run(index, _run_decoder.decode(data)))
                elif data.startswith(_RUNS_PREFIX):
                    outcomes.append(self._apply_runs(index, _runs_decoder.decode(data)))
                else:
                    outcome = otherwise(index, data)
                    outcomes.append(outcome.result if isinstance(outcome, Applied) else outcome)
            except UNDECODABLE:
                outcomes.append(_MALFORMED)
        return outcomes

    def dump(self) -> bytes:
        """The table as bytes, for a snapshot."""
        return _encoder.encode(list(self._tables.items()))

    def restore(self, data: bytes) -> None:
        """Reverse of dump."""
        self._tables = dict(_dump_decoder.decode(data))

    def _apply_run(self, index: int, command: Run) -> bytes | Outcome:
        """The machine's answer, or why there is none."""
        table = self._used(command.session, command.acknowledged)
        if table is None:
            return _EXPIRED
        return self._run_once(index, table, command.sequence, command.command)

    def _run_once(self, index: int, table: Table, sequence: int, command: bytes) -> bytes | Outcome:
        if sequence <= table.acknowledged:
            return _STALE
        answers = table.answers
        known = answers.get(sequence)
        if known is not None:
            return known
        if table.packs and (known := self._packed_answer(table, sequence)) is not None:
            return known
        if table.remembered() >= self._limit_answers:
            return _UNACKNOWLEDGED
        answers[sequence] = result = self._run(index, command)
        return result

    def _apply_runs(self, index: int, command: Runs) -> bytes | Outcome:
        """The machine's answer to all, or what became of each, or why there is none."""
        packing, first, count = self._packing, command.sequence, command.count
        if packing is None:
            return _MALFORMED
        table = self._used(command.session, command.acknowledged)
        if table is None:
            return _EXPIRED
        if (
            first > table.acknowledged
            and table.remembered() + count <= self._limit_answers
            and not table.knows_any(first, count)
        ):  # nearly always
            result = packing.run(index, command.commands, count)
            if result is None:
                return _MALFORMED
            if isinstance(result, bytes):
                table.packs[first] = (count, result)
                return result
            table.answers.update(zip(range(first, first + count), result, strict=True))
            return Each(list(result))
        commands = packing.commands(command.commands)
        if commands is None or len(commands) != count:
            return _MALFORMED
        return Each([self._run_once(index, table, at, each) for at, each in enumerate(commands, first)])

    def _used(self, session: int, acknowledged: int) -> Table | None:
        """The session's table, which is now the most recently used."""
        table = self._tables.pop(session, None)
        if table is None:
            return None
        self._tables[session] = table
        if acknowledged > table.acknowledged:
            table.forget(acknowledged)
        return table

    def _packed_answer(self, table: Table, sequence: int) -> bytes | None:
        assert self._packing is not None, "who has no packing packs nothing"
        for first, (count, answer) in table.packs.items():
            if first <= sequence < first + count:
                return self._packing.answers(answer)[sequence - first]
        return None
