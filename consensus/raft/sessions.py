"""Client sessions: a command that is retried applies once (§8; dissertation §6.3).

A client that gets no answer can't know whether its command was applied, so it must ask again, perhaps another leader.
What was applied is remembered where nothing can be forgotten: in the replicated machine itself.

    client                          log (any leader)               table, the same on every node
    open                            7: Open                        session 7 = {}
    sequence 1: "add 5"             8: Run(7, 1, 0, "add 5")       runs; session 7 = {1: "5"}
      no answer: sends it again     9: Run(7, 1, 0, "add 5")       answers "5", runs nothing
    sequence 2, has all up to 1    10: Run(7, 2, 1, "add 1")       forgets 1, runs; session 7 = {2: "6"}

A session is named by the index of its Open, so an Open that is repeated only leaves an idle session. A client may
have many commands under way, in any order; `acknowledged` says up to which sequence it has all answers. The table is
bounded: the session unused for the longest time, by log order, makes room. Its client is told `Expired` and can't know
what became of a command without answer: to it, that is an unknown outcome. A machine keeps one `Sessions`, hands it
every entry of kind COMMAND, and puts `dump()` into its snapshots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from consensus.decoding import UNDECODABLE

RunAll: TypeAlias = Callable[[int, Sequence[bytes]], list[bytes] | None]
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


class Opened(msgspec.Struct, frozen=True):
    """The new session."""

    session: int


class Closed(msgspec.Struct, frozen=True):
    """The session is no more, whether it was before or not."""


class Applied(msgspec.Struct, frozen=True, gc=False):
    """What the machine answered when the command was applied: now, or at the first try."""

    result: bytes


class Expired(msgspec.Struct, frozen=True):
    """There is no such session (any more); the command was not run now."""


class Stale(msgspec.Struct, frozen=True):
    """A copy of a command whose answer the client has acknowledged; it was not run again."""


class Unacknowledged(msgspec.Struct, frozen=True):
    """Too many answers of this session are remembered; the command was not run. Acknowledge, then retry."""


class Malformed(msgspec.Struct, frozen=True):
    """The entry is no session command; nothing was run."""


Outcome: TypeAlias = Opened | Closed | Applied | Expired | Stale | Unacknowledged | Malformed

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Open | Close | Run)
_run_decoder = msgspec.msgpack.Decoder(Run)
#: A Run field by field: many of them turn into columns with one call.
_row_decoder = msgspec.msgpack.Decoder(tuple[Literal[2], Natural, Natural, Natural, bytes])
_RUN_PREFIX = _encoder.encode(Run(0, 0, 0, b""))[:2]  # an array of five, tagged 2
_EXPIRED, _STALE, _UNACKNOWLEDGED, _MALFORMED, _CLOSED = Expired(), Stale(), Unacknowledged(), Malformed(), Closed()


def encode(command: Open | Close | Run) -> bytes:
    """A command as the data of an entry."""
    return _encoder.encode(command)


class Table(msgspec.Struct, array_like=True):
    """One session: answers by sequence, all above `acknowledged`."""

    acknowledged: int = 0
    answers: dict[int, bytes] = {}


_dump_decoder = msgspec.msgpack.Decoder(list[tuple[int, Table]])


class Sessions:
    """The table of sessions. `run(index, command)` applies a command to the machine and returns its answer.

    `run_all(first_index, commands)` does so with commands that stand one after the other; or does nothing, and
    returns None, if it has no quicker way for them than `run`.
    """

    def __init__(
        self,
        run: Callable[[int, bytes], bytes],
        *,
        run_all: RunAll | None = None,
        limit_sessions: int = 4096,
        limit_answers: int = 4096,
    ) -> None:
        self._run = run
        self._run_all = run_all
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
        if type(command) is Run:
            answer = self._apply_run(index, command)
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

        `otherwise(index, data)` takes what does not look like a Run.
        """
        fresh = self._apply_fresh(first_index, entries)
        if fresh is not None:
            return fresh  # type: ignore[return-value]  # a list that nobody else has
        outcomes: list[bytes | Outcome | T] = []
        begin = 0
        # Mostly there is but an entry or two of another kind among many Runs.
        for at in [at for at, data in enumerate(entries) if not data.startswith(_RUN_PREFIX)]:
            outcomes += self._apply_runs(first_index + begin, entries[begin:at])
            outcome = otherwise(first_index + at, entries[at])
            outcomes.append(outcome.result if isinstance(outcome, Applied) else outcome)
            begin = at + 1
        outcomes += self._apply_runs(first_index + begin, entries[begin:])
        return outcomes

    def _apply_runs(self, first_index: int, entries: Sequence[bytes]) -> Sequence[bytes | Outcome]:
        """`apply_all` for what looks like Runs."""
        fresh = self._apply_fresh(first_index, entries)
        if fresh is not None:
            return fresh
        run, decode = self._apply_run, _run_decoder.decode
        outcomes: list[bytes | Outcome] = []
        for index, data in enumerate(entries, first_index):
            try:
                outcomes.append(run(index, decode(data)))
            except UNDECODABLE:
                outcomes.append(_MALFORMED)
        return outcomes

    def _apply_fresh(self, first_index: int, entries: Sequence[bytes]) -> list[bytes] | None:
        """The answers, if all entries are Runs of one session in good order, none of them a repetition: the mass of
        them under load, so their bookkeeping is done in C. None, and nothing has changed, if it is not so."""
        if self._run_all is None or len(entries) < 2:
            return None
        try:
            _, sessions, sequences, acknowledgements, commands = zip(*map(_row_decoder.decode, entries), strict=True)
        except UNDECODABLE:
            return None
        session, count = sessions[0], len(entries)
        table = self._tables.get(session)
        if table is None or sessions.count(session) < count:
            return None
        answers, acknowledged = table.answers, max(acknowledgements)
        if (
            min(sequences) <= max(acknowledged, table.acknowledged)
            or len(answers) + count > self._limit_answers
            or len(set(sequences)) < count
            or not answers.keys().isdisjoint(sequences)
        ):
            return None
        results = self._run_all(first_index, commands)
        if results is None:
            return None
        self._tables[session] = self._tables.pop(session)
        if acknowledged > table.acknowledged:
            _forget(answers, table.acknowledged, acknowledged)
            table.acknowledged = acknowledged
        answers.update(zip(sequences, results, strict=True))
        return results

    def dump(self) -> bytes:
        """The table as bytes, for a snapshot."""
        return _encoder.encode(list(self._tables.items()))

    def restore(self, data: bytes) -> None:
        """Reverse of dump."""
        self._tables = dict(_dump_decoder.decode(data))

    def _apply_run(self, index: int, command: Run) -> bytes | Outcome:
        """The machine's answer, or why there is none."""
        session, sequence, acknowledged = command.session, command.sequence, command.acknowledged
        table = self._tables.pop(session, None)
        if table is None:
            return _EXPIRED
        self._tables[session] = table  # now the most recently used
        answers = table.answers
        if acknowledged > table.acknowledged:
            _forget(answers, table.acknowledged, acknowledged)
            table.acknowledged = acknowledged
        if sequence <= table.acknowledged:
            return _STALE
        known = answers.get(sequence)
        if known is not None:
            return known
        if len(answers) >= self._limit_answers:
            return _UNACKNOWLEDGED
        answers[sequence] = result = self._run(index, command.command)
        return result


def _forget(answers: dict[int, bytes], after: int, to: int) -> None:
    if to - after <= len(answers):
        for sequence in range(after + 1, to + 1):
            answers.pop(sequence, None)
    else:  # a large step, honest or not, costs no more than what is there
        for sequence in [each for each in answers if each <= to]:
            del answers[sequence]
