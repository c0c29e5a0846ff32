"""What Raft nodes say to each other, and what an entry of the log is.

Every message is a tagged MessagePack array, encoded and validated in C. A message does not name its sender: the
channel knows who it came from. Terms, indexes and rounds are integers from 0; index 0 of term 0 is the empty log.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from consensus.raft.configuration import Configuration

Natural: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]

COMMAND, NOOP, CONFIGURATION = 0, 1, 2
"""Kinds of entries: the application's bytes, a leader's first entry (§8), a `Configuration` (§6)."""


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One entry of the log. Its index is its position, so it is not repeated here."""

    term: Natural
    data: bytes
    kind: Annotated[int, Meta(ge=0, le=2)] = COMMAND


class HardState(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What must survive a crash besides the log (§5.1, figure 2)."""

    term: Natural = 0
    vote: str | None = None


class Snapshot(msgspec.Struct, array_like=True, frozen=True):
    """Describes a snapshot: it replaces all entries up to `index`. The machine's bytes are kept by the driver."""

    index: Natural = 0
    term: Natural = 0
    configuration: Configuration = Configuration()


class PreVote(msgspec.Struct, array_like=True, frozen=True, tag=0):
    """Would you vote for me in `term`, which I have not begun? (dissertation §9.6)"""

    term: Natural
    last_index: Natural
    last_term: Natural


class PreVoteReply(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """Granted: `term` is the one asked for. Refused: `term` is the answerer's own."""

    term: Natural
    granted: bool


class Vote(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """RequestVote (§5.2). `transfer`: the old leader asked for this election, so its followers need not wait it out."""

    term: Natural
    last_index: Natural
    last_term: Natural
    transfer: bool = False


class VoteReply(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """The answer to a Vote of the same term."""

    term: Natural
    granted: bool


class Append(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """AppendEntries (§5.3); without entries, a heartbeat if `round` is new, which comes back in the answer and proves
    reads and leases; else it only tells commit_index, and only a refusal answers it."""

    term: Natural
    prev_index: Natural
    prev_term: Natural
    commit_index: Natural
    round: Natural
    entries: list[Entry]


class AppendReply(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """Up to `match_index` my log agrees with yours and is on disk; `round` is the highest I heard from you."""

    term: Natural
    match_index: Natural
    round: Natural


class AppendReject(msgspec.Struct, array_like=True, frozen=True, tag=6):
    """I have no entry `prev_index` of your term. We can agree at `hint_index` at most, where I have `hint_term`."""

    term: Natural
    prev_index: Natural
    hint_index: Natural
    hint_term: Natural
    round: Natural


class SnapshotChunk(msgspec.Struct, array_like=True, frozen=True, tag=7):
    """InstallSnapshot (§7): the bytes of a snapshot from `offset` on."""

    term: Natural
    snapshot: Snapshot
    offset: Natural
    data: bytes
    done: bool


class SnapshotReply(msgspec.Struct, array_like=True, frozen=True, tag=8):
    """Of the snapshot at `index` I want the bytes from `offset` on. (All of it: an AppendReply.)"""

    term: Natural
    index: Natural
    offset: Natural


class TimeoutNow(msgspec.Struct, array_like=True, frozen=True, tag=9):
    """Stand for election at once (dissertation §3.10)."""

    term: Natural


class ReadIndex(msgspec.Struct, array_like=True, frozen=True, tag=10):
    """A follower asks the leader from which index on a read is linearizable (dissertation §6.4)."""

    term: Natural
    id: Natural


class ReadIndexReply(msgspec.Struct, array_like=True, frozen=True, tag=11):
    """A machine that has applied `index` may answer read `id`."""

    term: Natural
    id: Natural
    index: Natural


Message: TypeAlias = (
    PreVote
    | PreVoteReply
    | Vote
    | VoteReply
    | Append
    | AppendReply
    | AppendReject
    | SnapshotChunk
    | SnapshotReply
    | TimeoutNow
    | ReadIndex
    | ReadIndexReply
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """A message as bytes. The leader sends one object to all followers that are level: encode that object once."""
    return _encoder.encode(message)


def decode(data: bytes) -> Message:
    """Bytes as a message. Raises msgspec.DecodeError (ValidationError if it is MessagePack, but not a message)."""
    try:
        message: Message = _decoder.decode(data)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"a text is not UTF-8: {error}") from None
    return message


def configuration_entry(term: int, configuration: Configuration) -> Entry:
    """An entry that says who votes (§6)."""
    return Entry(term, _encoder.encode(configuration), CONFIGURATION)


_configuration_decoder = msgspec.msgpack.Decoder(Configuration)


def configuration_of(entry: Entry) -> Configuration:
    """The configuration that an entry of kind CONFIGURATION holds."""
    return _configuration_decoder.decode(entry.data)
