"""The replicated machine of a mesh: variables, sessions and rounds under one log, one time, one snapshot.

What an entry's bytes are

    Open | Close | Run      a client session's command (consensus/raft/sessions.py); a Run holds one of the commands
                            of variables.py, sessions.py or rounds.py; it applies once however often it is retried
    Runs                    several of them in one, which are Sets: its commands are a `variables.Sets`
    Advance(log_ms)         the time, from the leader; needs no session, for it may be repeated

A version is given to each command that is run: the index of its entry, or one more than the version before where that
is larger, as it is behind Runs. Where the end of a session removes several variables, each has its own, for a watcher
takes a version once. So versions rise with the log, and with them every node counts alike.

The log's time is milliseconds that never fall: `log_ms` becomes the larger of its own and the entry's, and sessions
whose time is up end right there. The leader proposes an Advance before a batch of commands if its time moved on by
100 ms since the last, and once a second while any session lives. A new leader goes on from the time it finds here, by
its own monotonic clock:

    at the start of a term       base_ms = machine.log_ms;  base_s = clock()
    each Advance                 Advance(base_ms + int((clock() - base_s) * 1000))

so no wall clock, right or wrong, ends a session; a change of leader can only lengthen one.

Everything here is a function of the entries applied, in their order: same entries, same answers, same bytes of
snapshot. Nothing iterates over a set or reads a clock.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import msgspec

from consensus.bft.certificate import Verify
from consensus.decoding import UNDECODABLE
from consensus.errors import ConsensusError
from consensus.machines import rounds, sessions, variables
from consensus.machines.values import Refusal, RefusedByRule, refuse
from consensus.raft import sessions as clients

FORMAT_VERSION = 2  # 1 had no versions but the indexes of entries
_PART_VARIABLES = 64
_PART_SESSIONS = 512

Command: TypeAlias = variables.Command | sessions.Command | rounds.Command
_OF_SESSIONS = (sessions.Start, sessions.Renew, sessions.Stop)
_OF_ROUNDS = (rounds.OpenRound, rounds.Submit, rounds.Commit, rounds.Show, rounds.Proceed, rounds.Settle)
Result: TypeAlias = (
    variables.Written | variables.Compared | sessions.Granted | sessions.Stopped | rounds.RoundAt | Refusal
)
Change: TypeAlias = variables.Change | sessions.SessionChange | rounds.RoundChange


class Advance(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """The log's time is at least this, in milliseconds. Tags 0 to 2 are those of the client sessions' commands."""

    log_ms: int


class Advanced(msgspec.Struct, frozen=True):
    """The answer to an Advance: the log's time now."""

    log_ms: int


Outcome: TypeAlias = clients.Outcome | Advanced


class SnapshotRefused(ConsensusError):
    """The bytes are no whole snapshot of this version; the machine is as it was."""


class _Header(msgspec.Struct, array_like=True, frozen=True):
    format_version: int
    index: int
    log_ms: int
    sessions: int
    variables: int
    rounds: int = 0
    version: int = 0


_encoder = msgspec.msgpack.Encoder()
_command_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(
    variables.Register
    | variables.Unregister
    | variables.Set
    | variables.Compare
    | sessions.Start
    | sessions.Renew
    | sessions.Stop
    | rounds.OpenRound
    | rounds.Submit
    | rounds.Commit
    | rounds.Show
    | rounds.Proceed
    | rounds.Settle
)
_set_decoder = msgspec.msgpack.Decoder(variables.Set)
_sets_decoder = msgspec.msgpack.Decoder(variables.Sets)
_written_all_decoder = msgspec.msgpack.Decoder(variables.WrittenAll)
_SET_PREFIX = _encoder.encode(variables.Set("", 0))[:5]  # an array of seven, tagged "set"
_result_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Result)
_advance_decoder = msgspec.msgpack.Decoder(Advance)
_ADVANCE_PREFIX = _encoder.encode(Advance(0))[:2]  # an array of two, tagged 3
_header_decoder = msgspec.msgpack.Decoder(_Header)
_sessions_decoder = msgspec.msgpack.Decoder(list[sessions.Session])
_variables_decoder = msgspec.msgpack.Decoder(list[variables.Stored])
_round_decoder = msgspec.msgpack.Decoder(rounds.RoundState)
_LENGTH = struct.Struct("<I")


def encode_command(command: Command) -> bytes:
    """A command as a client session's Run carries it."""
    return _encoder.encode(command)


def decode_command(data: bytes) -> Command:
    """Reverse of encode_command; raises msgspec.DecodeError."""
    command: Command = _command_decoder.decode(data)
    return command


def is_packable(command: Command) -> bool:
    """Whether a command may stand among others in `encode_all`."""
    return type(command) is variables.Set and not command.metadata and not command.version


def encode_all(commands: Sequence[variables.Set]) -> bytes:
    """Packable commands as a client session's Runs carries them."""
    return _encoder.encode(variables.packed(commands))


def decode_sets(data: bytes) -> variables.Sets:
    """Reverse of encode_all; raises msgspec.DecodeError."""
    return _sets_decoder.decode(data)


def decode_results(data: bytes) -> list[variables.Written]:
    """What `clients.Applied.result` holds for Runs: the result of each. Raises msgspec.DecodeError."""
    every = _written_all_decoder.decode(data)
    return list(map(variables.Written, range(every.first, every.first + every.count)))


def encode_advance(log_ms: int) -> bytes:
    """An Advance as the data of an entry."""
    return _encoder.encode(Advance(log_ms))


def decode_result(data: bytes) -> Result:
    """What `clients.Applied.result` holds; raises msgspec.DecodeError."""
    result: Result = _result_decoder.decode(data)
    return result


class Machine:
    """One replica. `index` is that of the last entry applied, `version` of the last command, `log_ms` the log's time.

    `variables`, `sessions` and `rounds` may be read at any time; they change only by `apply` and `restore`. Set
    `is_watched` to False where nobody takes the changes: then those of Runs are given only as far as they are kept.
    verify: checks an Ed25519 signature; a machine without refuses rounds, so all of a mesh have it or none.
    """

    def __init__(self, *, limit_clients: int = 4096, limit_answers: int = 4096, verify: Verify | None = None) -> None:
        self.index = 0
        self.version = 0
        self.log_ms = 0
        self.is_watched = True
        self.variables = variables.Variables()
        self.sessions = sessions.Sessions()
        self.rounds = rounds.Rounds(verify)
        self._clients = clients.Sessions(
            self._run,
            packing=clients.Packing(self._run_all, _unpacked, unpacked_answers),
            limit_sessions=limit_clients,
            limit_answers=limit_answers,
        )
        self._changes: list[Change] = []

    def apply(self, index: int, data: bytes) -> tuple[Outcome, list[Change]]:
        """Apply one committed command; returns its outcome and the changes for watchers, in order."""
        if index <= self.index:
            raise AssertionError(f"entry {index} after {self.index}: entries are applied once, in order")
        self.index = index
        outcome = self._apply_other(index, data)
        changes = self._changes
        if changes:
            self._changes = []
        return outcome, changes

    def apply_all(self, first_index: int, entries: Sequence[bytes]) -> tuple[list[bytes | Outcome], list[Change]]:
        """`apply` for entries that stand one after the other; the answers of those applied are told by their bytes."""
        if first_index <= self.index:
            raise AssertionError(f"entry {first_index} after {self.index}: entries are applied once, in order")
        outcomes = self._clients.apply_all(first_index, entries, self._apply_other)
        self.index = first_index + len(entries) - 1
        changes, self._changes = self._changes, []
        return outcomes, changes

    def check(self, command: Command) -> None:
        """Raise RefusedByRule if the command would be refused as things stand: ask this before proposing."""
        if type(command) is variables.Set:
            refusal = self.variables.check(command)
        elif isinstance(command, _OF_SESSIONS):
            refusal = self.sessions.check(command)
        elif isinstance(command, _OF_ROUNDS):
            refusal = self.rounds.check(command)
        else:
            refusal = self.variables.check(command) or self._without_session(command)
        if refusal is not None:
            raise RefusedByRule(refusal)

    def snapshot(self) -> Iterator[bytes]:
        """The state as it is now, in chunks. They may be consumed later, and in another thread.

        For what is captured here is never altered: changes are frozen, and lists of them copied.
        """
        return self._chunks(
            _Header(
                FORMAT_VERSION,
                self.index,
                self.log_ms,
                len(self.sessions),
                len(self.variables),
                len(self.rounds),
                self.version,
            ),
            self._clients.dump(),
            list(self.sessions),
            self.variables.dump(),
            list(self.rounds),
        )

    def restore(self, chunks: Iterable[bytes]) -> None:
        """Replace the state by a snapshot's, however it was cut into chunks. Raises SnapshotRefused."""
        parts = _parts(chunks)
        restored_clients = clients.Sessions(self._run)
        try:
            header = _header_decoder.decode(next(parts, b""))
            if header.format_version not in (1, FORMAT_VERSION):
                raise SnapshotRefused(f"the snapshot has format {header.format_version}, not {FORMAT_VERSION}")
            table = next(parts, b"")
            restored_clients.restore(table)
            restored_sessions: list[sessions.Session] = []
            while len(restored_sessions) < header.sessions:
                restored_sessions += _sessions_decoder.decode(next(parts, b""))
            restored_variables: list[variables.Stored] = []
            while len(restored_variables) < header.variables:
                restored_variables += _variables_decoder.decode(next(parts, b""))
            restored_rounds = [_round_decoder.decode(next(parts, b"")) for _ in range(header.rounds)]
        except UNDECODABLE as error:
            raise SnapshotRefused(f"the snapshot can't be understood ({error})") from None
        if not all(0 < len(each.history) <= each.declaration.history for each in restored_variables):
            raise SnapshotRefused("a variable has no value, or a longer history than it keeps")
        if next(parts, None) is not None:
            raise SnapshotRefused("something follows the snapshot's end")
        self.index = header.index
        self.version = header.version if header.format_version == FORMAT_VERSION else header.index
        self.log_ms = header.log_ms
        self._clients.restore(table)
        self.sessions.restore(restored_sessions)
        self.variables.restore(restored_variables)
        self.rounds.restore(restored_rounds)

    def digest(self) -> str:
        """SHA-256 of the snapshot: equal on all nodes that applied the same entries."""
        digest = hashlib.sha256()
        for chunk in self.snapshot():
            digest.update(chunk)
        return digest.hexdigest()

    def _apply_other(self, index: int, data: bytes) -> Outcome:
        return self._advance(index, data) if data.startswith(_ADVANCE_PREFIX) else self._clients.apply(index, data)

    def _advance(self, index: int, data: bytes) -> Outcome:
        try:
            log_ms = _advance_decoder.decode(data).log_ms
        except UNDECODABLE:
            return clients.Malformed()
        self.log_ms = max(self.log_ms, log_ms)
        for ended in self.sessions.expire(index, self.log_ms):
            self._changes.append(ended)
            self.version = self._next_version(index)
            self._remove_owned(self.version, ended.id)
        return Advanced(self.log_ms)

    def _next_version(self, index: int) -> int:
        """The version of the next command, if it stands in the entry at `index`."""
        return max(self.version + 1, index)

    def _run(self, index: int, data: bytes) -> bytes:
        """What a client session runs once."""
        result: Result
        version = self.version = self._next_version(index)
        try:
            if data.startswith(_SET_PREFIX):  # by far the most frequent
                result, change = self.variables.apply_set(version, self.log_ms, _set_decoder.decode(data))
                if change is not None:
                    self._changes.append(change)
                return _encoder.encode(result)
            command = _command_decoder.decode(data)
        except UNDECODABLE as error:
            return _encoder.encode(refuse("command", "malformed", str(error)).refusal)
        if isinstance(command, _OF_SESSIONS):
            return _encoder.encode(self._run_session(index, version, command))
        if isinstance(command, _OF_ROUNDS):
            at, passed = self.rounds.apply(index, command)
            if passed is not None:
                self._changes.append(passed)
            return _encoder.encode(at)
        refusal = self._without_session(command) if isinstance(command, variables.Register) else None
        if refusal is not None:
            return _encoder.encode(refusal)
        result, change = self.variables.apply(version, self.log_ms, command)
        if change is not None:
            self._changes.append(change)
        return _encoder.encode(result)

    def _run_all(self, index: int, data: bytes, count: int) -> bytes | list[bytes] | None:
        """What a client session runs once, if it is Runs."""
        try:
            sets = _sets_decoder.decode(data)
        except UNDECODABLE:
            return None
        if len(sets.values) != count:
            return None
        first = self._next_version(index)
        applied = self.variables.apply_sets(first, self.log_ms, sets, is_watched=self.is_watched)
        if applied is None:
            return None
        self.version = first + count - 1
        results, changes = applied
        self._changes += changes
        if isinstance(results, variables.WrittenAll):
            return _encoder.encode(results)
        return list(map(_encoder.encode, results))

    def _run_session(self, index: int, version: int, command: sessions.Command) -> Result:
        result, change = self.sessions.apply(index, self.log_ms, command)
        if change is not None:
            self._changes.append(change)
            if change.what != "started":
                self._remove_owned(version, change.id)
        return result

    def _remove_owned(self, version: int, session: str) -> None:
        """Remove the variables of a session that ended, the first as this version."""
        removed = self.variables.remove_session(version, self.log_ms, session)
        self._changes += removed
        self.version = max(self.version, version + len(removed) - 1)

    def _without_session(self, command: variables.Command) -> Refusal | None:
        """A variable can't be owned by a session that does not live: nothing would ever remove it."""
        if type(command) is not variables.Register or command.declaration.session is None:
            return None
        if self.sessions.get(command.declaration.session) is not None:
            return None
        return refuse(command.declaration.name, "session", "the session that shall own it does not live").refusal

    @staticmethod
    def _chunks(
        header: _Header,
        table: bytes,
        living: list[sessions.Session],
        known: list[variables.Stored],
        held: list[rounds.RoundState],
    ) -> Iterator[bytes]:
        yield _part(_encoder.encode(header))
        yield _part(table)
        for at in range(0, len(living), _PART_SESSIONS):
            yield _part(_encoder.encode(living[at : at + _PART_SESSIONS]))
        for at in range(0, len(known), _PART_VARIABLES):
            yield _part(_encoder.encode(known[at : at + _PART_VARIABLES]))
        for one in held:
            yield _part(_encoder.encode(one))


def _unpacked(data: bytes) -> list[bytes] | None:
    """The commands in Runs, each for itself."""
    try:
        rows = _sets_decoder.decode(data).rows()
    except UNDECODABLE:
        return None
    return None if rows is None else list(map(_encoder.encode, rows))


def unpacked_answers(data: bytes) -> list[bytes]:
    """The answers that a WrittenAll stands for."""
    return list(map(_encoder.encode, decode_results(data)))


def _part(payload: bytes) -> bytes:
    return _LENGTH.pack(len(payload)) + payload


def _parts(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The parts that `_part` made, from chunks that were cut anywhere."""
    rest = bytearray()
    for chunk in chunks:
        rest += chunk
        while len(rest) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(rest)
            if len(rest) < _LENGTH.size + length:
                break
            yield bytes(rest[_LENGTH.size : _LENGTH.size + length])
            del rest[: _LENGTH.size + length]
    if rest:
        raise SnapshotRefused("the snapshot was cut off")
